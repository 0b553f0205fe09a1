"""Codes of images in batches, active units, and codes.npz."""

import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import small_grid

from hvae_jax import data, experiment
from hvae_jax.data import Dataset, Split
from hvae_jax.data.stored import HostArray
from hvae_jax.errors import RunError
from hvae_jax.evaluation import active_units, codes, encoding
from hvae_jax.evaluation.encoding import Encoder
from hvae_jax.keys import make_key
from hvae_jax.models.hvae import make_hvae
from hvae_jax.training.split_evaluator import SplitEvaluator

PREPROCESS = data.make_preprocess("round")


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory):
    """A run of two layers, and its parameters."""
    folder = tmp_path_factory.mktemp("runs")
    small_grid.make_run(folder / "run", small_grid.write_data(folder), (1.0, 1.0), seed=0)
    built = experiment.from_folder(folder / "run")
    return built, experiment.restore(built, folder / "run").eval_params


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 90 images are several, the last one not whole."""
    monkeypatch.setattr(encoding, "EVAL_BATCH", 32)


def joined(batches: Any) -> list[dict[str, np.ndarray]]:
    found = list(batches)
    assert len(found) > 1
    return [
        {name: np.concatenate([batch[layer][name] for batch in found]) for name in first}
        for layer, first in enumerate(found[0])
    ]


# Codes of images


@pytest.mark.long
@pytest.mark.parametrize("is_streamed", [False, True])
def test_batches_are_what_the_model_encodes(restored, small_batches, is_streamed: bool):
    built, params = restored
    images = built.dataset.test.images
    encoder = Encoder(built.model, built.preprocess_fn)
    found = joined(encoder.batches(HostArray(images) if is_streamed else images, params, make_key(3)))

    def encode(params: Any, x: jax.Array, keys: jax.Array) -> Any:
        center = built.model.apply(params, x, keys, 0.0, method="encode")
        return center, built.model.apply(params, x, keys, method="encode")

    center, drawn = SplitEvaluator(images, built.preprocess_fn).map_images(encode, params, make_key(3))
    assert [set(layer) for layer in found] == [{"means", "stds", "samples"}] * 2
    for layer, middle, draw in zip(found, center, drawn, strict=True):
        wanted = {"means": middle.mean, "stds": middle.std, "samples": draw.sample}
        for name, array in wanted.items():
            assert layer[name].shape == (90, *array.shape[1:])
            np.testing.assert_allclose(layer[name], array, rtol=1e-5, atol=1e-5)


def test_means_are_without_noise_and_samples_are_draws(restored, small_batches):
    built, params = restored
    encoder = Encoder(built.model, built.preprocess_fn)
    draws = [joined(encoder.batches(built.dataset.train.images, params, make_key(n))) for n in range(20)]
    for name in ("means", "stds"):
        for layer in range(2):
            np.testing.assert_array_equal(draws[0][layer][name], draws[1][layer][name])
    # Of the top layer, which nothing stands above, mean and deviation are those of its samples.
    top = draws[0][1]
    scaled = (np.stack([draw[1]["samples"] for draw in draws]) - top["means"]) / top["stds"]
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert abs(np.square(scaled).mean() - 1) < 5 * np.sqrt(2 / scaled.size)


@pytest.mark.long
def test_a_categorical_layer_has_probabilities(make_config, small_batches):
    config = make_config(latent_shapes=((4, 4, 2), (2, 5)), latent_kinds=("gaussian", "categorical"))
    model = make_hvae(config, (16, 16, 1))
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), np.uint8)
    params = model.init(make_key(0), np.zeros((1, 16, 16, 1), np.float32), make_key(0))
    found = joined(Encoder(model, PREPROCESS).batches(images, params, make_key(1)))
    assert [set(layer) for layer in found] == [{"means", "stds", "samples"}, {"probs", "samples"}]
    assert found[1]["probs"].shape == found[1]["samples"].shape == (40, 2, 5)
    np.testing.assert_allclose(found[1]["probs"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.sort(found[1]["samples"], -1), [[[0, 0, 0, 0, 1]] * 2] * 40)
    counted = active_units.count(
        Encoder(model, PREPROCESS, has_samples=False).batches(images, params, make_key(1))
    )
    assert counted.units == (32, 2)  # 4 · 4 · 2 numbers, and two variables
    parts = codes.plan(config, _dataset(images), None)
    assert parts.shapes["probs_2"] == parts.shapes["samples_2"] == (2, 5)
    assert "means_2" not in parts.shapes


def _dataset(images: np.ndarray) -> Dataset:
    split = Split(images, np.zeros(len(images), np.int32))
    return Dataset("npz:x", split, Split(images[:0], split.labels[:0]), split)


# Active units


def test_units_are_active_whose_mean_varies_enough():
    """Deviations around 0.1, whose square is the threshold, far from 0."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(500, 3, 4))
    values = (values - values.mean(0)) / values.std(0, ddof=1)
    deviations = np.array([0, 1e-3, 0.099, 0.0999, 0.1001, 0.101, 0.2, 1, 2, 30, 0.0999, 0.1001]).reshape(
        3, 4
    )
    for offset in (0.0, 1000.0):
        means = values * deviations + offset
        counted = active_units.count([[{"means": part}] for part in np.array_split(means, 7)])
        assert counted == ((int((deviations > 0.1).sum()),), (12,)) == ((7,), (12,))


def test_a_small_variance_around_a_large_mean_in_float32_is_seen():
    means = np.float32(4096) + np.repeat(np.array([[0, 0], [0.25, 0]], np.float32), 50, axis=0)
    assert active_units.count([[{"means": means}]]).active == (1,)


def test_a_categorical_variable_counts_once():
    """Of three variables one is always the same, one hardly varies, and one does."""
    probs = np.tile(np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]), (100, 1, 1))
    probs[::2, 1] = [0.45, 0.55, 0.0]
    probs[::2, 2] = [0.1, 0.1, 0.8]
    layers = [{"means": probs[:, :, 0]}, {"probs": probs}]
    assert active_units.count([layers]) == ((1, 1), (3, 3))


def test_one_image_has_no_active_unit():
    assert active_units.count([[{"means": np.ones((1, 5))}]]) == ((0,), (5,))


# codes.npz


def write(folder: pathlib.Path, restored: Any, dataset: Dataset, most: int | None = None, made: str = "x"):
    built, params = restored
    folder.mkdir(exist_ok=True)
    parts = codes.plan(built.model.config, dataset, most)
    codes.write(folder, Encoder(built.model, built.preprocess_fn), params, dataset, parts, made)
    with np.load(folder / codes.CODES_FILE) as arrays:
        return dict(arrays)


def test_the_file_holds_what_is_promised(restored, small_batches, tmp_path: pathlib.Path):
    built, params = restored
    dataset = built.dataset._replace(class_names=("left", "ä", "right"))
    arrays = write(tmp_path, restored, dataset)
    sizes = {"train": 180, "valid": 60, "test": 90}
    shapes = {"1": (2, 2, 2), "2": (3,)}
    names = {f"{split}_{kind}_{n}" for split in sizes for kind in ("means", "stds", "samples") for n in "12"}
    names |= {f"{split}_{what}" for split in sizes for what in ("labels", "index")}
    assert set(arrays) == names | {"class_names", "settings"}
    assert arrays["class_names"].tolist() == ["left", "ä", "right"]
    for split, num in sizes.items():
        np.testing.assert_array_equal(arrays[f"{split}_labels"], dataset.splits[split].labels)
        np.testing.assert_array_equal(arrays[f"{split}_index"], np.arange(num))
        for layer, shape in shapes.items():
            for kind in ("means", "stds", "samples"):
                assert arrays[f"{split}_{kind}_{layer}"].shape == (num, *shape)
                assert arrays[f"{split}_{kind}_{layer}"].dtype == np.float32
    x = built.preprocess_fn(jax.random.split(make_key(0), 90), dataset.test.images)
    center = built.model.apply(params, x, make_key(0), 0.0, method="encode")
    for layer, code in enumerate(center, start=1):
        for kind, wanted in (("means", code.mean), ("stds", code.std)):
            np.testing.assert_allclose(arrays[f"test_{kind}_{layer}"], wanted, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / codes.PARTIAL).exists()


def test_streamed_data_give_the_same_file(restored, small_batches, tmp_path: pathlib.Path):
    built, _ = restored
    streamed = {
        name: Split(HostArray(split.images), split.labels) for name, split in built.dataset.splits.items()
    }
    found = [
        write(tmp_path / str(n), restored, one)
        for n, one in enumerate((built.dataset, built.dataset._replace(**streamed)))
    ]
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        np.testing.assert_array_equal(found[1][name], array)


def test_a_part_of_a_split_is_drawn_by_a_fixed_seed(restored, small_batches, tmp_path: pathlib.Path):
    dataset = restored[0].dataset
    whole, part = (write(tmp_path / str(most), restored, dataset, most) for most in (None, 70))
    assert [len(part[f"{split}_index"]) for split in ("train", "valid", "test")] == [70, 60, 70]
    for split in ("train", "test"):
        index = part[f"{split}_index"]
        np.testing.assert_array_equal(index, data.subset(len(dataset.splits[split].images), 70))
        np.testing.assert_array_equal(part[f"{split}_labels"], dataset.splits[split].labels[index])
        np.testing.assert_allclose(
            part[f"{split}_means_1"], whole[f"{split}_means_1"][index], rtol=1e-5, atol=1e-6
        )


def test_without_a_validation_split_its_arrays_are_not_there(restored, tmp_path: pathlib.Path):
    dataset = restored[0].dataset
    empty = Split(dataset.valid.images[:0], dataset.valid.labels[:0])
    whole, arrays = (
        write(tmp_path / str(n), restored, one)
        for n, one in enumerate((dataset, dataset._replace(valid=empty)))
    )
    assert {name for name in whole if not name.startswith("valid")} == set(arrays)
    np.testing.assert_array_equal(arrays["test_samples_1"], whole["test_samples_1"])


def test_what_was_there_is_kept_until_all_is_written(
    restored, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    built, _ = restored
    before = write(tmp_path, restored, built.dataset, 60, "before")
    (tmp_path / codes.PARTIAL).mkdir()  # of a process that was killed
    (tmp_path / codes.PARTIAL / "rest.npy").write_bytes(b"rest")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(codes, "_pack", full)
        with pytest.raises(RunError, match=r"codes.npz cannot be written: No space left .* is kept"):
            write(tmp_path, restored, built.dataset, 61, "after")
    assert codes.are_written(tmp_path, "before")
    assert [entry.name for entry in tmp_path.iterdir()] == [codes.CODES_FILE]
    after = write(tmp_path, restored, built.dataset, 61, "after")
    assert set(after) == set(before)
    assert codes.are_written(tmp_path, "after")
    assert not codes.are_written(tmp_path, "before")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_file_is_written_again(restored, tmp_path: pathlib.Path, share: float):
    write(tmp_path, restored, restored[0].dataset)
    content = (tmp_path / codes.CODES_FILE).read_bytes()
    (tmp_path / codes.CODES_FILE).write_bytes(content[: int(share * len(content))])
    assert not codes.are_written(tmp_path, "x")


def test_what_the_disk_cannot_hold_is_refused(
    restored, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    built, _ = restored
    parts = codes.plan(built.model.config, built.dataset, None)
    # 330 images of three arrays of 8 and of 3 numbers; the largest array once more.
    assert parts.num_bytes == 4 * (330 * 3 * 11 + 180 * 8)
    write(tmp_path, restored, built.dataset)
    assert os.path.getsize(tmp_path / codes.CODES_FILE) > 4 * 330 * 3 * 11
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(codes.shutil, "disk_usage", lambda _: usage._replace(free=2 * parts.num_bytes))
    codes.check_space(tmp_path, parts, 2)
    with pytest.raises(
        RunError, match=r"--codes needs about .* GiB of disk in .* below 180, with --max_codes"
    ):
        codes.check_space(tmp_path, parts, 3)
