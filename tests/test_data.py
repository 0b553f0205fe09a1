import gzip
import io
import math
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hvae_jax.data import BINARIZE, TFDS_NAMES, DataConfig, Dataset, Split, load, make_preprocess
from hvae_jax.errors import RunError

IDX_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
TFDS_SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "svhn_cropped": (32, 32, 3),
    "cifar10": (32, 32, 3),
}


def make_config(name: str, **fields: Any) -> DataConfig:
    values: dict[str, Any] = {
        "data_dir": "",
        "binarize": "none",
        "num_valid": 0,
        "split_seed": 0,
        "streaming": "never",
        "num_workers": 0,
    }
    return DataConfig(name, **(values | fields))


def make_arrays(
    num_train: int = 7, num_test: int = 3, shape: tuple[int, ...] = (8, 9), seed: int = 0
) -> dict[str, np.ndarray]:
    """Random images, so that no two are alike, and labels of three classes, the last one in train."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, num_images in (("train", num_train), ("test", num_test)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (num_images, *shape), np.uint8)
        arrays[f"{split}_labels"] = np.arange(num_images) % 3
    return arrays


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, allow_pickle=True, **arrays)


def assert_split(split: Split, images: np.ndarray, labels: np.ndarray) -> None:
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(split.images, images, strict=False)
    np.testing.assert_array_equal(split.labels, labels)


def pairs(split: Split) -> list[tuple[bytes, int]]:
    """Images with their labels, in an order that does not depend on the split's."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(RunError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- config


@pytest.mark.parametrize(
    ("fields", "start", "hint"),
    [
        ({"name": ""}, "config.data.name=''", "must be one of digits, mnist"),
        ({"name": 3}, "config.data.name=3", "must be one of digits, mnist"),
        ({"name": "npz:"}, "config.data.name='npz:'", "npz:FILE"),
        ({"data_dir": None}, "config.data.data_dir=None", 'or ""'),
        ({"data_dir": "gs://bucket/x"}, "config.data.data_dir='gs://bucket/x'", "on this machine"),
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
    for split, same in zip(dataset[1:], again[1:], strict=True):
        assert_split(split, *same)

    number = {image.tobytes(): i for i, image in enumerate(arrays["train_images"])}
    train, valid = ([number[image.tobytes()] for image in split.images] for split in dataset[1:3])
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


# --- idx


def write_idx(folder: Path, arrays: dict[str, np.ndarray], zipped: bool) -> None:
    for key, file in IDX_FILES.items():
        array = arrays[key].astype(np.uint8)
        content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        path = folder / (f"{file}.gz" if zipped else file)
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path: Path, zipped: bool) -> None:
    arrays = make_arrays()
    write_idx(tmp_path, arrays, zipped)
    dataset = load(make_config(f"idx:{tmp_path}"))
    assert_split(dataset.train, arrays["train_images"][..., None], arrays["train_labels"])
    assert_split(dataset.test, arrays["test_images"][..., None], arrays["test_labels"])
    assert (dataset.image_shape, dataset.num_classes) == ((8, 9, 1), 3)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda content: b"\x00\x00\x0d\x03" + content[4:], "(it starts 00 00 0d 03)"),
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "not an IDX file of uint8 with 3 axes"),
        (lambda content: content[:9], "not an IDX file"),
        (lambda content: b"", "not an IDX file"),
        (lambda content: content[:-1], "holds 503 values where its header says [7, 8, 9]"),
        (lambda content: content + b"x", "holds 505 values"),
    ],
)
def test_damaged_idx(tmp_path: Path, change: Callable[[bytes], bytes], hint: str) -> None:
    write_idx(tmp_path, make_arrays(), zipped=False)
    path = tmp_path / IDX_FILES["train_images"]
    path.write_bytes(change(path.read_bytes()))
    message = error_of(lambda: load(make_config(f"idx:{tmp_path}")))
    assert message.startswith(f"config.data.name='idx:{tmp_path}': {path} ")
    assert hint in message
    assert message.endswith("get the file again")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"not gzip at all",
        lambda content: content[:10] + b"\xff" + content[11:],  # no such deflate block
    ],
)
def test_damaged_gzip(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    write_idx(tmp_path, make_arrays(), zipped=True)
    path = tmp_path / f"{IDX_FILES['test_images']}.gz"
    path.write_bytes(change(path.read_bytes()))
    message = error_of(lambda: load(make_config(f"idx:{tmp_path}")))
    assert f"cannot read {tmp_path / IDX_FILES['test_images']}" in message
    assert message.endswith("get the file again")


def test_idx_with_a_label_too_few(tmp_path: Path) -> None:
    arrays = make_arrays()
    write_idx(tmp_path, arrays | {"test_labels": arrays["test_labels"][1:]}, zipped=True)
    message = error_of(lambda: load(make_config(f"idx:{tmp_path}")))
    assert "test_labels has shape [2], must be [3], one label per image" in message


@pytest.mark.parametrize("key", list(IDX_FILES))
def test_idx_file_missing(tmp_path: Path, key: str) -> None:
    write_idx(tmp_path, make_arrays(), zipped=False)
    (tmp_path / IDX_FILES[key]).unlink()
    message = error_of(lambda: load(make_config(f"idx:{tmp_path}")))
    assert f"neither {tmp_path / IDX_FILES[key]} nor {IDX_FILES[key]}.gz exists" in message


def test_idx_wants_a_folder(tmp_path: Path) -> None:
    write_idx(tmp_path, make_arrays(), zipped=False)
    for path, found in ((tmp_path / IDX_FILES["train_images"], "is a file"), (tmp_path / "no", "does not")):
        message = error_of(lambda path=path: load(make_config(f"idx:{path}")))
        assert message.startswith(f"config.data.name='idx:{path}': {path} {found}")
        assert message.endswith("name the folder that holds the four IDX files")


# --- npz


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3)])
def test_npz(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = make_arrays(shape=shape)
    save_npz(tmp_path / "a.npz", arrays)
    dataset = load(make_config(f"npz:{tmp_path / 'a.npz'}"))
    full_shape = (8, 9, 3 if shape[2:] == (3,) else 1)
    assert dataset.image_shape == full_shape
    for split, found in (("train", dataset.train), ("test", dataset.test)):
        assert_split(found, arrays[f"{split}_images"].reshape(-1, *full_shape), arrays[f"{split}_labels"])


def test_npz_with_its_own_validation(tmp_path: Path) -> None:
    arrays = make_arrays()
    arrays |= {"valid_images": arrays["train_images"][:2] // 2, "valid_labels": np.array([2, 1])}
    save_npz(tmp_path / "a.npz", arrays)
    name = f"npz:{tmp_path / 'a.npz'}"
    dataset = load(make_config(name))
    assert_split(dataset.valid, arrays["valid_images"][..., None], arrays["valid_labels"])
    assert_split(dataset.train, arrays["train_images"][..., None], arrays["train_labels"])
    message = error_of(lambda: load(make_config(name, num_valid=1)))
    assert message.startswith("config.data.num_valid=1: must be at most 0")
    assert message.endswith("it has its own valid_images")


def test_npz_without_labels(tmp_path: Path) -> None:
    arrays = {key: array for key, array in make_arrays().items() if key.endswith("images")}
    save_npz(tmp_path / "a.npz", arrays)
    dataset = load(make_config(f"npz:{tmp_path / 'a.npz'}"))
    assert_split(dataset.train, arrays["train_images"][..., None], np.zeros(7))
    assert_split(dataset.test, arrays["test_images"][..., None], np.zeros(3))
    assert dataset.num_classes == 1


IMAGES = make_arrays()["train_images"]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        (
            {"train_images": IMAGES / 255},
            "train_images is float64, must be uint8: if its values are in [0, 1]",
        ),
        ({"test_images": IMAGES.astype("f4")}, "multiply by 255 and cast to uint8"),
        ({"test_images": IMAGES.astype(int)}, "test_images is int64, must be uint8"),
        ({"train_images": IMAGES[0]}, "train_images has shape [8, 9], must be [N, H, W]"),
        ({"train_images": IMAGES[..., None, None]}, "train_images has shape [7, 8, 9, 1, 1]"),
        ({"train_images": np.repeat(IMAGES[..., None], 4, -1)}, "with C 1 or 3"),
        ({"train_images": IMAGES[:0], "train_labels": np.zeros(0, int)}, "not empty"),
        ({"train_images": IMAGES[:, :, :5]}, "shapes [[8, 5, 1], [8, 5, 1], [8, 9, 1]], must be alike"),
        ({"train_labels": np.zeros(6, int)}, "train_labels has shape [6], must be [7]"),
        ({"train_labels": np.zeros((7, 1), int)}, "train_labels has shape [7, 1], must be [7]"),
        ({"test_labels": np.zeros(3)}, "test_labels (float64) must be integers"),
        ({"test_labels": np.array([0, 1, -1])}, "must be integers, 0 or more"),
        ({"test_images": None}, "must hold train_images, test_images"),
        ({"train_labels": None}, "_labels for all of these or none"),
        ({"valid_images": IMAGES}, "_labels for all of these or none"),
        (
            {"val_images": IMAGES},
            "holds ['test_images', 'test_labels', 'train_images', 'train_labels', 'val_",
        ),
        ({"train_labels": np.array([None] * 7)}, "allow_pickle=False"),
    ],
)
def test_npz_with_wrong_arrays(tmp_path: Path, changes: dict[str, np.ndarray | None], hint: str) -> None:
    path = tmp_path / "a.npz"
    arrays = {key: array for key, array in (make_arrays() | changes).items() if array is not None}
    save_npz(path, arrays)
    message = error_of(lambda: load(make_config(f"npz:{path}")))
    assert message.startswith(f"config.data.name='npz:{path}': ")
    assert hint in message


def test_npz_wants_an_npz_file(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.save(tmp_path / "one.npy", IMAGES)
    save_npz(tmp_path / "half.npz", make_arrays())
    half = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(half[: len(half) // 2])
    for file, found in (
        ("text.npz", "is no npz file"),
        ("one.npy", "is no npz file"),
        ("half.npz", "is no npz file"),
        ("none.npz", "does not exist"),
        ("", "is a folder"),
    ):
        message = error_of(lambda file=file: load(make_config(f"npz:{tmp_path / file}")))
        assert message.endswith(f"{tmp_path / file} {found}; name a file written by numpy.savez")


@pytest.mark.parametrize(("save", "offset"), [(np.savez, 200), (np.savez_compressed, 0)])
def test_damaged_npz(tmp_path: Path, save: Callable[..., None], offset: int) -> None:
    path = tmp_path / "a.npz"
    save(path, **make_arrays())
    content = bytearray(path.read_bytes())
    header_size = 30 + sum(struct.unpack_from("<HH", content, 26))  # of the first array in the zip file
    content[header_size + offset] ^= 255
    path.write_bytes(content)
    message = error_of(lambda: load(make_config(f"npz:{path}")))
    assert f"cannot read {path} (" in message
    assert message.endswith("write it again with numpy.savez")


# --- paths


def test_paths_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, make_arrays(), zipped=False)
    save_npz(tmp_path / "a.npz", make_arrays())
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for name in (f"idx:~/{tmp_path.name}", f"npz:~/{tmp_path.name}/a.npz"):
        assert len(load(make_config(name)).train.images) == 7


def test_an_error_stays_on_one_line(tmp_path: Path) -> None:
    assert "does not exist" in error_of(lambda: load(make_config(f"npz:{tmp_path}/a\nb.npz")))


# --- TFDS


def encode_examples(arrays: dict[str, np.ndarray], split: str, with_id: bool) -> Iterator[tuple[int, dict]]:
    for i, (image, label) in enumerate(
        zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
    ):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
        file.seek(0)
        yield i, {"image": file, "label": int(label)} | ({"id": f"{split}{i}"} if with_id else {})


def split_generators(builder: Any, arrays: dict[str, np.ndarray]) -> dict[str, Iterator]:
    with_id = "id" in builder.info.features
    splits = [key.removesuffix("_images") for key in arrays if key.endswith("_images")]
    return {split: encode_examples(arrays, split, with_id) for split in splits}


def prepare(data_dir: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes `arrays` with TFDS's own builder, in its own format, without TensorFlow or a network."""
    import tensorflow_datasets as tfds

    builder_cls: Any = tfds.builder_cls(name)
    builder = builder_cls(data_dir=data_dir, file_format="array_record")
    builder._split_generators = lambda _: split_generators(builder, arrays)
    builder.download_and_prepare()


def tfds_arrays(name: str) -> dict[str, np.ndarray]:
    arrays = make_arrays(12, 5, TFDS_SHAPES[name], seed=len(name))
    if name == "svhn_cropped":  # which must not be read
        arrays |= {"extra_images": 255 - arrays["train_images"], "extra_labels": arrays["train_labels"]}
    return arrays


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS data_dir where TFDS's own builders prepared images of ours."""
    data_dir = tmp_path_factory.mktemp("tfds")
    for name in TFDS_NAMES:
        prepare(data_dir, name, tfds_arrays(name))
    return data_dir


@pytest.fixture
def own_mnist(prepared: Path, tmp_path: Path) -> Path:
    """The version folder of a copy of the prepared mnist, in `tmp_path`, to damage."""
    shutil.copytree(prepared / "mnist", tmp_path / "mnist")
    (folder,) = (tmp_path / "mnist").iterdir()
    return folder


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_tfds_gives_back_what_was_written(prepared: Path, name: str) -> None:
    arrays = tfds_arrays(name)
    dataset = load(make_config(name, data_dir=str(prepared), num_valid=4))
    assert (dataset.name, dataset.image_shape) == (name, TFDS_SHAPES[name])
    assert [len(split.images) for split in dataset[1:]] == [8, 4, 5]
    for split in dataset[1:]:
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    # TFDS writes examples in an order of its own.
    train = sorted(pairs(dataset.train) + pairs(dataset.valid))
    assert train == pairs(Split(arrays["train_images"], arrays["train_labels"]))
    assert pairs(dataset.test) == pairs(Split(arrays["test_images"], arrays["test_labels"]))


def test_tfds_reads_more_than_one_slice(tmp_path: Path) -> None:
    arrays = make_arrays(2003, 1000, (28, 28, 1))
    prepare(tmp_path, "mnist", arrays)
    dataset = load(make_config("mnist", data_dir=str(tmp_path)))
    for split, found in (("train", dataset.train), ("test", dataset.test)):
        assert pairs(found) == pairs(Split(arrays[f"{split}_images"], arrays[f"{split}_labels"]))


def test_tfds_default_folders(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(load(make_config("mnist")).train.images) == 12
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"is not prepared in {tmp_path / 'tensorflow_datasets'} (" in error_of(
        lambda: load(make_config("mnist"))
    )
    (tmp_path / "tensorflow_datasets").symlink_to(prepared)
    assert len(load(make_config("mnist")).train.images) == 12


def test_tfds_reads_the_newest_readable_version(own_mnist: Path) -> None:
    # 3.0.10 is the one to read: 4.0.0 is in another format, and the older ones lose their records.
    for version in ("3.0.9", "3.0.10", "4.0.0", "incomplete.ABCDEF_5.0.0"):
        shutil.copytree(own_mnist, own_mnist.with_name(version))
        info = own_mnist.with_name(version) / "dataset_info.json"
        info.write_text(info.read_text().replace(own_mnist.name, version))
    info = own_mnist.with_name("4.0.0") / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    for old in (own_mnist, own_mnist.with_name("3.0.9")):
        for path in old.glob("*.array_record*"):
            path.unlink()
    assert len(load(make_config("mnist", data_dir=str(own_mnist.parent.parent))).train.images) == 12


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_not_prepared_is_said_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("opened a socket")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # an import would raise ImportError
    start = time.perf_counter()
    message = error_of(lambda: load(make_config(name, data_dir=str(tmp_path))))
    assert time.perf_counter() - start < 2
    assert message.startswith(f"config.data.name='{name}': is not prepared in {tmp_path} (config.data.data")
    assert 'pip install -e ".[prepare]" && python -c ' in message
    assert f'"{name}", data_dir="{tmp_path}", file_format="array_record"' in message


def test_importing_data_does_not_import_tfds() -> None:
    code = "import sys, hvae_jax.data; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_printed_command_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    data_dir = tmp_path / 'it\'s my "dätä" 😀'
    config = make_config("mnist", data_dir=str(data_dir))
    command = error_of(lambda: load(config)).partition(" && ")[2]
    python, flag, code = shlex.split(command)
    assert (python, flag) == ("python", "-c")

    arrays = tfds_arrays("mnist")
    builder_cls = tfds.builder_cls("mnist")
    monkeypatch.setattr(builder_cls, "_split_generators", lambda self, _: split_generators(self, arrays))
    exec(code, {})
    assert pairs(load(config).test) == pairs(Split(arrays["test_images"], arrays["test_labels"]))


def test_tfds_in_another_format(own_mnist: Path) -> None:
    info = own_mnist / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    message = error_of(lambda: load(make_config("mnist", data_dir=str(own_mnist.parent.parent))))
    assert f"{own_mnist} is not in the array_record format; move it away. Prepare it once: pip" in message


def drop_train(folder: Path) -> None:
    next(folder.glob("*train.array_record*")).unlink()


def cut_test(folder: Path) -> None:
    path = next(folder.glob("*test.array_record*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_info(folder: Path) -> None:
    path = folder / "dataset_info.json"
    path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize("damage", [drop_train, cut_test, cut_info])
def test_damaged_tfds(own_mnist: Path, damage: Callable[[Path], None]) -> None:
    damage(own_mnist)
    message = error_of(lambda: load(make_config("mnist", data_dir=str(own_mnist.parent.parent))))
    assert message.startswith(f"config.data.name='mnist': cannot read {own_mnist} (")
    assert "move it away, then: pip install" in message


def test_tfds_data_dir_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    message = error_of(lambda: load(make_config("cifar10", data_dir=str(path))))
    assert message == f"config.data.data_dir='{path}': {path} is a file; name a folder"


# --- preprocessing

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)


def make_keys(num: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num)


@pytest.mark.parametrize("binarize", BINARIZE)
@pytest.mark.parametrize("jit", [False, True])
def test_preprocess_gives_float32_in_the_unit_interval(binarize: str, jit: bool) -> None:
    preprocess = jax.jit(make_preprocess(binarize)) if jit else make_preprocess(binarize)
    x = preprocess(make_keys(4), jnp.asarray(EVERY_VALUE))
    assert (x.shape, x.dtype) == ((4, 8, 8, 1), jnp.float32)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert float(x.ravel()[0]) == 0.0
    assert float(x.ravel()[255]) == 1.0
    assert set(np.unique(x)) == {0.0, 1.0} or binarize == "none"


def test_none_divides_by_255() -> None:
    x = jax.jit(make_preprocess("none"))(make_keys(4), jnp.asarray(EVERY_VALUE))
    np.testing.assert_array_max_ulp(np.asarray(x), EVERY_VALUE.astype(np.float32) / np.float32(255), maxulp=1)


def test_round_is_the_nearest_of_zero_and_one() -> None:
    x = make_preprocess("round")(make_keys(4), jnp.asarray(EVERY_VALUE))
    np.testing.assert_array_equal(x, np.round(EVERY_VALUE / 255))
    np.testing.assert_array_equal(x.ravel()[jnp.array([0, 127, 128, 255])], [0, 0, 1, 1])


def test_none_and_round_ignore_keys() -> None:
    images = jnp.asarray(EVERY_VALUE)
    for binarize in ("none", "round"):
        first, second = (make_preprocess(binarize)(make_keys(4, seed), images) for seed in (0, 1))
        np.testing.assert_array_equal(first, second)


def test_sample_has_the_mean_of_the_image() -> None:
    num_draws = 20000  # enough to tell 254 / 255 from 254 / 256
    values = np.array([0, 1, 25, 64, 127, 128, 200, 254, 255], np.uint8).reshape(1, 3, 3, 1)
    x = make_preprocess("sample")(make_keys(num_draws), jnp.asarray(np.repeat(values, num_draws, 0)))
    mean, probs = np.asarray(x, np.float64).mean(0), values[0] / 255
    assert np.all(np.abs(mean - probs) <= 5 * np.sqrt(probs * (1 - probs) / num_draws))


def test_sample_draws_pixels_and_images_independently() -> None:
    num_images = 500
    grey = jnp.full((num_images, 2, 2, 3), 128, jnp.uint8)
    x = np.asarray(make_preprocess("sample")(make_keys(num_images), grey)).reshape(num_images, 12)
    correlations = np.corrcoef(x.T)[np.triu_indices(12, 1)]  # each about N(0, 1 / num_images)
    assert np.abs(correlations).max() < 5 / math.sqrt(num_images)
    neighbours = np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(x[1:].size)


def test_sample_belongs_to_an_image_and_its_key() -> None:
    preprocess, keys, images = make_preprocess("sample"), make_keys(4), jnp.asarray(EVERY_VALUE)
    x = preprocess(keys, images)
    np.testing.assert_array_equal(preprocess(keys, images), x)
    np.testing.assert_array_equal(preprocess(keys[2:3], images[2:3]), x[2:3])
    np.testing.assert_array_equal(preprocess(keys[::-1], images[::-1]), x[::-1])
    assert np.any(preprocess(make_keys(4, seed=1), images) != x)


def test_preprocess_names_what_is_allowed() -> None:
    message = error_of(lambda: make_preprocess("threshold"))
    assert re.fullmatch(r"config\.data\.binarize='threshold': must be one of none, round, sample", message)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("digits", "digits"),
        ("cifar10", "cifar10"),
        ("idx:/some/where/fashion-mnist", "fashion-mnist"),
        ("npz:~/images.npz", "images"),
        ("tfds:imagenet_resized/64x64", "imagenet_resized/64x64"),
    ],
)
def test_a_figures_title_has_no_path(name, title):
    split = Split(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int64))
    assert Dataset(name, split, split, split).title == title
