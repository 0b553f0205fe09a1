"""Data by name: the config, the splits, digits."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import assert_split, error_of, make_arrays, make_config, pairs, save_npz, write_idx
from sklearn.datasets import load_digits

from hvae_jax.data import TFDS_NAMES, Dataset, Split, load

# --- config


@pytest.mark.parametrize(
    ("fields", "start", "hint"),
    [
        ({"name": ""}, "config.data.name=''", "must be one of digits, mnist"),
        ({"name": 3}, "config.data.name=3", "must be one of digits, mnist"),
        ({"name": "npz:"}, "config.data.name='npz:'", "npz:FILE"),
        ({"data_dir": None}, "config.data.data_dir=None", 'or ""'),
        ({"data_dir": "gs://bucket/x"}, "config.data.data_dir='gs://bucket/x'", "on this machine"),
        ({"name": "tfds:mnist:3.0.1"}, "config.data.name='tfds:mnist:3.0.1'", "without a version"),
        ({"name": "tfds:../mnist"}, "config.data.name='tfds:../mnist'", "is TFDS's own"),
        ({"check_values": 1}, "config.data.check_values=1", "True or False"),
        ({"binarize": "maybe"}, "config.data.binarize='maybe'", "none, round, sample"),
        ({"num_valid": -1}, "config.data.num_valid=-1", "0 or more"),
        ({"num_valid": 1.5}, "config.data.num_valid=1.5", "integer"),
        ({"num_valid": True}, "config.data.num_valid=True", "integer"),
        ({"split_seed": -2}, "config.data.split_seed=-2", "0 or more"),
        ({"split_seed": "0"}, "config.data.split_seed='0'", "integer"),
    ],
)
def test_config_names_the_field_its_value_and_what_is_allowed(
    fields: dict[str, Any], start: str, hint: str
) -> None:
    message = error_of(lambda: make_config(**({"name": "digits"} | fields)))
    assert message.startswith(f"{start}: ")
    assert hint in message


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("nmist", "mnist"),
        ("MNIST", "mnist"),
        ("fashion-mnist", "fashion_mnist"),
        ("svhn", "svhn_cropped"),
        ("cifar-10", "cifar10"),
        ("digit", "digits"),
    ],
)
def test_unknown_name_gets_the_closest_known_one(name: str, suggestion: str) -> None:
    message = error_of(lambda: load(make_config(name)))
    assert message.endswith(f"; did you mean {suggestion}?")
    assert all(known in message for known in ("digits", "idx:FOLDER", "npz:FILE", *TFDS_NAMES))


def test_unknown_name_far_from_all_gets_no_suggestion() -> None:
    assert "did you mean" not in error_of(lambda: make_config("zzz"))


# --- digits


def test_digits_are_scikit_learns() -> None:
    dataset = load(make_config("digits", num_valid=100))
    assert [len(split.images) for split in (dataset.train, dataset.valid, dataset.test)] == [1337, 100, 360]
    assert (dataset.name, dataset.image_shape, dataset.num_classes) == ("digits", (8, 8, 1), 10)
    values, labels = load_digits(return_X_y=True)
    images = ((values.astype(int) * 255 + 8) // 16).astype(np.uint8)  # v * 255 / 16 rounded, in integers
    assert sorted(pairs(dataset.train) + pairs(dataset.valid) + pairs(dataset.test)) == pairs(
        Split(images, labels)
    )


def test_digits_test_split_never_changes() -> None:
    first, second = (load(make_config("digits", num_valid=9, split_seed=seed)).test for seed in (0, 5))
    assert_split(first, *second)
    # As released: another number means that published results are of another test set.
    assert zlib.crc32(first.images.tobytes()) == 4075397934
    assert np.bincount(first.labels).min() > 20


# --- validation


def test_validation_is_disjoint_complete_and_reproducible(tmp_path: Path) -> None:
    arrays = make_arrays(num_train=50)
    save_npz(tmp_path / "a.npz", arrays)
    name = f"npz:{tmp_path / 'a.npz'}"
    dataset = load(make_config(name, num_valid=20, split_seed=3))
    again = load(make_config(name, num_valid=20, split_seed=3))
    for split, same in zip(dataset.splits.values(), again.splits.values(), strict=True):
        assert_split(split, *same)

    number = {image.tobytes(): i for i, image in enumerate(arrays["train_images"])}
    train, valid = (
        [number[image.tobytes()] for image in split.images] for split in (dataset.train, dataset.valid)
    )
    assert sorted(train + valid) == list(range(50))
    assert len(valid) == 20
    assert train == sorted(train)
    for split, indices in ((dataset.train, train), (dataset.valid, valid)):
        np.testing.assert_array_equal(split.labels, arrays["train_labels"][indices])

    fewer, other = (
        [number[image.tobytes()] for image in load(make_config(name, **fields)).valid.images]
        for fields in ({"num_valid": 8, "split_seed": 3}, {"num_valid": 20, "split_seed": 4})
    )
    assert fewer == valid[:8]
    assert sorted(other) != sorted(valid)


def test_no_validation_leaves_train_as_it_is(tmp_path: Path) -> None:
    arrays = make_arrays(num_train=50)
    save_npz(tmp_path / "a.npz", arrays)
    dataset = load(make_config(f"npz:{tmp_path / 'a.npz'}", split_seed=3))
    assert_split(dataset.train, arrays["train_images"][..., None], arrays["train_labels"])
    assert_split(dataset.valid, np.zeros((0, 8, 9, 1)), np.zeros(0))


def test_validation_must_leave_a_training_image() -> None:
    assert len(load(make_config("digits", num_valid=1436)).train.images) == 1
    message = error_of(lambda: load(make_config("digits", num_valid=1437)))
    assert message.startswith("config.data.num_valid=1437: must be at most 1436 for digits")


# --- paths


def test_paths_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, make_arrays(), zipped=False)
    save_npz(tmp_path / "a.npz", make_arrays())
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for name in (f"idx:~/{tmp_path.name}", f"npz:~/{tmp_path.name}/a.npz"):
        assert len(load(make_config(name)).train.images) == 7


@pytest.mark.parametrize(
    "name", ["npz:gs://bucket/x.npz", "idx:https://example.org/mnist", "npz:file:///x.npz"]
)
def test_data_elsewhere_are_refused(name: str) -> None:
    kind = "file" if name.startswith("npz") else "folder"
    message = error_of(lambda: load(make_config(name)))
    assert message.startswith(f"config.data.name='{name}': must be a {kind} on this machine; copy ")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "npz:~nobody-of-this-name/x.npz"}, "name"),
        ({"name": "idx:~nobody-of-this-name"}, "name"),
        ({"name": "mnist", "data_dir": "~nobody-of-this-name/tfds"}, "data_dir"),
    ],
)
def test_a_home_that_is_not_known(fields: dict[str, str], field: str) -> None:
    message = error_of(lambda: load(make_config(**fields)))
    assert message.startswith(f"config.data.{field}='{fields[field]}': ~nobody")
    assert message.endswith("is in a home folder that is not known; give the path in full")


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_: Path) -> Path:  # what pathlib does without HOME for a user whom the system does not know
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    message = error_of(lambda: load(make_config("mnist")))
    assert message.startswith(
        "config.data.data_dir='': ~/tensorflow_datasets is in a home folder that is not"
    )


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(36, "File name too long")]
)
def test_what_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:  # tests may run as root, who can look at all
    def refuse(_: Path) -> bool:
        raise error

    monkeypatch.setattr(Path, "is_file", refuse)
    for name in (f"npz:{tmp_path}/a.npz", f"idx:{tmp_path}"):
        message = error_of(lambda name=name: load(make_config(name)))
        assert f"cannot read {name[4:]} ({error.strerror})" in message


def test_a_name_that_no_path_can_have() -> None:
    for name in ("npz:a" * 2000, "npz:a\0b", "idx:a\0b"):
        assert "config.data.name=" in error_of(lambda name=name: load(make_config(name)))


def test_an_error_stays_on_one_line(tmp_path: Path) -> None:
    assert "does not exist" in error_of(lambda: load(make_config(f"npz:{tmp_path}/a\nb.npz")))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("digits", "digits"),
        ("cifar10", "cifar10"),
        ("idx:/some/where/fashion-mnist", "fashion-mnist"),
        ("idx:/some/where/mnist-1.0/", "mnist-1.0"),
        ("idx:.", "idx"),
        ("npz:~/images.npz", "images"),
        ("tfds:imagenet_resized/64x64", "imagenet_resized/64x64"),
    ],
)
def test_a_figures_title_has_no_path(name, title):
    split = Split(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int64))
    assert Dataset(name, split, split, split).title == title
