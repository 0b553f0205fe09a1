"""A user's arrays in one file."""

import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import assert_split, error_of, make_arrays, make_config, save_npz

from hvae_jax.data import Dataset, load, pixels
from hvae_jax.data import arrays as arrays_module


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
    assert message.endswith("it has its own validation images")


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
        ({"test_images": IMAGES[:3] / 254}, "test_images is float64 with values from 0 to 1.00394, must be"),
        ({"test_images": IMAGES[:3] - 1.0}, "with values from -1 to"),
        ({"test_images": IMAGES.astype(int) + 1}, "test_images is int64 with values from 1 to 256, must be"),
        ({"train_images": IMAGES.astype("i2") - 1}, "train_images is int16 with values from -1 to"),
        ({"train_images": np.full((7, 8, 9), np.nan)}, "train_images (float64) holds NaN or infinity"),
        ({"train_images": np.full((7, 8, 9), np.inf, "f2")}, "train_images (float16) holds NaN or infinity"),
        ({"train_images": IMAGES.astype(complex)}, "train_images is complex128, must be uint8"),
        ({"train_images": IMAGES.astype(str)}, "train_images is <U3, must be uint8"),
        ({"train_images": IMAGES.astype("m8[s]")}, "train_images is timedelta64[s], must be uint8"),
        ({"train_images": np.uint8(3)}, "train_images has shape [], must be [N, H, W]"),
        ({"train_images": IMAGES.reshape(7, 72)}, "reshape flat images to [N, H, W]"),
        ({"train_images": np.repeat(IMAGES[..., None], 5, -1)}, "has shape [7, 8, 9, 5], must be"),
        ({"train_images": np.repeat(IMAGES[:, None], 5, 1)}, "has shape [7, 5, 8, 9], must be"),
        ({"train_images": np.zeros((7, 8, 9, 0), np.uint8)}, "has shape [7, 8, 9, 0], must be"),
        ({"train_images": IMAGES[0]}, "train_images has shape [8, 9], must be [N, H, W]"),
        ({"train_images": IMAGES[..., None, None]}, "train_images has shape [7, 8, 9, 1, 1]"),
        ({"train_images": np.repeat(IMAGES[..., None], 5, -1)}, "with C 1 to 4"),
        ({"train_images": IMAGES[:0], "train_labels": np.zeros(0, int)}, "not empty"),
        ({"train_images": IMAGES[:, :, :5]}, "shapes [[8, 5, 1], [8, 5, 1], [8, 9, 1]], must be alike"),
        ({"train_labels": np.zeros(6, int)}, "train_labels has shape [6], must be [7]"),
        ({"train_labels": np.zeros((7, 2, 1), int)}, "train_labels has shape [7, 2, 1], must be [7]"),
        (
            {"train_labels": np.zeros((3, 7), int)},
            "train_labels has shape [3, 7], must be [7], one label",
        ),
        ({"train_labels": np.int64(3)}, "train_labels has shape [], must be [7]"),
        ({"test_labels": np.array([0, 1, 0.5])}, "test_labels (float64) holds what is not a whole number"),
        ({"test_labels": np.array([0, 1, 1e300])}, "test_labels (float64) holds what is not a whole number"),
        ({"test_labels": np.array([0, 1, np.nan])}, "test_labels (float64) holds what is not a whole number"),
        ({"test_labels": np.array([0, 1, 2j])}, "test_labels (complex128) is of no type that labels have"),
        ({"test_labels": np.array([1, 2, 3], "M8[s]")}, "(datetime64[s]) is of no type that labels have"),
        ({"test_labels": np.array(["a", "b", "c"])}, "one kind in all splits; train_labels, test_labels are"),
        ({"test_labels": np.array([b"\xff", b"b", b"c"])}, "test_labels holds bytes that are not UTF-8"),
        ({"test_labels": np.eye(3)[[0, 1, 2]] + 1}, "test_labels [3, 3] (float64) is not one-hot: each row"),
        ({"test_labels": np.zeros((3, 3), int)}, "test_labels [3, 3] (int64) is not one-hot"),
        ({"test_labels": np.eye(3, dtype=bool)}, "integers and one-hot of 3"),
        ({"train_labels": np.eye(7), "test_labels": np.eye(3)}, "one-hot of 3 and one-hot of 7"),
        ({"test_labels": np.array([0, 1, -1])}, "must be integers, 0 or more"),
        ({"test_images": None}, "must hold train_images, test_images"),
        ({"train_labels": None}, "_labels for all of these or none"),
        ({"valid_images": IMAGES}, "_labels for all of these or none"),
        ({"vaild_images": IMAGES}, "'vaild_images'], must hold train_images, test_images, perhaps valid_"),
        ({"vaild_images": IMAGES}, "val or validation for valid); not known: vaild_images"),
        ({"test_images": None, "test_labels": None}, "missing: test_images"),
        ({"train_images": None}, "missing: train_images"),
        ({"valid_labels": np.zeros(3)}, "missing: valid_images"),
        ({"val_images": IMAGES}, "missing: valid_labels"),
        ({"x_train": IMAGES}, "the images of train are there twice"),
        ({"val_images": IMAGES, "valid_images": IMAGES}, "the images of valid are there twice"),
        ({"arr_0": IMAGES}, "not known: arr_0"),
        ({"train_labels": np.array([None] * 7)}, "train_labels is an array of Python objects, must be"),
    ],
)
def test_npz_with_wrong_arrays(tmp_path: Path, changes: dict[str, np.ndarray | None], hint: str) -> None:
    path = tmp_path / "a.npz"
    arrays = {key: array for key, array in (make_arrays() | changes).items() if array is not None}
    save_npz(path, arrays)
    message = error_of(lambda: load(make_config(f"npz:{path}")))
    assert message.startswith(f"config.data.name='npz:{path}': ")
    assert hint in message


def load_arrays(folder: Path, arrays: dict[str, np.ndarray], **fields: Any) -> Dataset:
    save_npz(folder / "a.npz", arrays)
    return load(make_config(f"npz:{folder / 'a.npz'}", **fields))


def said(dataset: Dataset) -> list[str]:
    """The notices without the name that each starts with."""
    assert all(notice.startswith(f"{dataset.name}: ") and "\n" not in notice for notice in dataset.notices)
    return [notice.removeprefix(f"{dataset.name}: ") for notice in dataset.notices]


def test_what_is_stored_as_we_keep_it_needs_no_notice(tmp_path: Path) -> None:
    dataset = load_arrays(tmp_path, make_arrays())
    assert (dataset.notices, dataset.class_names) == ((), ())


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test", "x_valid", "y_valid"),
        ("X_train", "Y_train", "X_test", "y_test", "X_val", "y_val"),
        ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
        ("x_train", "train_labels", "test_images", "y_test", "validation_images", "y_validation"),
    ],
)
def test_other_names_are_the_same_arrays(tmp_path: Path, keys: tuple[str, ...]) -> None:
    arrays = make_arrays()
    arrays |= {"valid_images": IMAGES[:2] // 2, "valid_labels": np.array([2, 1])}
    dataset = load_arrays(tmp_path, dict(zip(keys, arrays.values(), strict=True)))
    for split, found in dataset.splits.items():
        assert_split(found, arrays[f"{split}_images"][..., None], arrays[f"{split}_labels"])
    assert dataset.notices == ()


def as_unit(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda images: (images / np.float64(255)).astype(dtype)


@pytest.mark.parametrize(
    ("convert", "notice"),
    [
        (lambda images: images.astype(np.int64), None),
        (lambda images: images.astype(">u2"), None),
        (lambda images: images.astype(np.float32), "float32, whole numbers from 0 to 255, kept as they are"),
        (as_unit(np.float64), "float64, values in [0, 1] were multiplied by 255 and rounded"),
        (as_unit(np.float32), "float32, values in [0, 1] were multiplied by 255 and rounded"),
        (as_unit(np.float16), "float16, values in [0, 1] were multiplied by 255 and rounded"),
        (as_unit(">f4"), ">f4, values in [0, 1] were multiplied by 255 and rounded"),
    ],
)
def test_other_types_become_the_same_bytes(
    tmp_path: Path, convert: Callable[[np.ndarray], np.ndarray], notice: str | None
) -> None:
    every = np.arange(256, dtype=np.uint8)
    arrays = {"train_images": every.reshape(4, 8, 8), "test_images": every[::-1].reshape(4, 8, 8)}
    dataset = load_arrays(tmp_path, {key: convert(array) for key, array in arrays.items()})
    for split in ("train", "test"):
        assert_split(dataset.splits[split], arrays[f"{split}_images"][..., None], np.zeros(4))
    assert said(dataset) == ([f"train_images, test_images: {notice}"] if notice else [])


def test_long_arrays_are_converted_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "CHUNK", 3)
    monkeypatch.setattr(pixels, "CHUNK", 2)
    arrays = make_arrays()
    unit = {key: array / 255 if key.endswith("images") else array for key, array in arrays.items()}
    assert_split(load_arrays(tmp_path, unit).train, arrays["train_images"][..., None], arrays["train_labels"])
    unit["train_images"][6, 0, 0] = np.nan
    assert "holds NaN" in error_of(lambda: load_arrays(tmp_path, unit))


def test_booleans_are_black_and_white(tmp_path: Path) -> None:
    arrays = {"train_images": IMAGES > 99, "test_images": IMAGES[:2] > 99}
    dataset = load_arrays(tmp_path, arrays)
    assert_split(dataset.train, 255 * (IMAGES > 99)[..., None], np.zeros(7))
    assert said(dataset) == ["train_images, test_images: bool, False and True became 0 and 255"]


def test_floats_of_two_ranges_are_not_one_data_set(tmp_path: Path) -> None:
    # A split in [0, 1] beside one in [0, 255]: the first is not scaled on its own.
    arrays = {"train_images": IMAGES / 255, "test_images": IMAGES.astype(float)}
    message = error_of(lambda: load_arrays(tmp_path, arrays))
    assert "train_images is float64 with values from 0 to 1, must be whole numbers" in message


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_are_moved(tmp_path: Path, channels: int) -> None:
    arrays = make_arrays(shape=(8, 9, channels))
    first = {key: np.moveaxis(a, -1, 1) if a.ndim == 4 else a for key, a in arrays.items()}
    dataset = load_arrays(tmp_path, first)
    assert_split(dataset.train, arrays["train_images"], arrays["train_labels"])
    assert said(dataset) == ["train_images, test_images: channels first, [N, C, H, W], became [N, H, W, C]"]


def test_channels_last_stay_where_both_could_be(tmp_path: Path) -> None:
    arrays = make_arrays(shape=(3, 9, 3))
    dataset = load_arrays(tmp_path, arrays)
    assert_split(dataset.train, arrays["train_images"], arrays["train_labels"])
    assert dataset.notices == ()


HUGE = str(2**64 - 1)
TRAIN, TEST = [2, 0, 1, 2, 0, 1, 1], [1, 0, 2]


@pytest.mark.parametrize(
    ("change", "class_names", "notice"),
    [
        (lambda labels: labels[:, None], (), None),
        (lambda labels: labels.astype(float), (), None),
        (lambda labels: labels.astype(np.uint64), (), None),
        (lambda labels: np.eye(3)[labels], (), "one-hot of 3 became numbers from 0"),
        (lambda labels: np.eye(3, dtype=bool)[labels], (), "one-hot of 3 became numbers from 0"),
        (lambda labels: np.eye(3, dtype="i1")[labels], (), "one-hot of 3 became numbers from 0"),
        (lambda labels: np.array(["ant", "bee", "ä"])[labels], ("ant", "bee", "ä"), "became 0 to 2"),
        (lambda labels: np.char.encode(np.array(["a", "b", "c"]))[labels], ("a", "b", "c"), "became 0 to 2"),
        (lambda labels: np.array(["a", "b", "c"])[labels, None], ("a", "b", "c"), "became 0 to 2"),
        (lambda labels: np.array([3, 7, 10**6])[labels], ("3", "7", "1000000"), "became 0 to 2"),
        (
            lambda labels: np.array([0, 1, 2**63 + 5], "u8")[labels],
            ("0", "1", str(2**63 + 5)),
            "became 0 to 2",
        ),
        (lambda labels: np.array([-0.0, 1.0, 6.0])[labels], ("0", "1", "6"), "became 0 to 2"),
    ],
)
def test_labels_become_numbers_from_0(
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
    class_names: tuple[str, ...],
    notice: str | None,
) -> None:
    labels = {"train_labels": change(np.array(TRAIN)), "test_labels": change(np.array(TEST))}
    dataset = load_arrays(tmp_path, make_arrays() | labels)
    assert (dataset.class_names, dataset.num_classes) == (class_names, 3)
    assert dataset.train.labels.tolist() == TRAIN
    assert dataset.test.labels.tolist() == TEST
    assert dataset.train.labels.dtype == np.int32
    shown = [name if name.isdecimal() else repr(name) for name in class_names]
    names = f"{', '.join(shown)} " if class_names else ""
    assert said(dataset) == ([f"train_labels, test_labels: {names}{notice}"] if notice else [])


def test_splits_are_numbered_together_and_long_lists_are_cut(tmp_path: Path) -> None:
    labels = {"train_labels": 1000 * np.arange(1, 8), "test_labels": np.array([7000, 1500, 1000])}
    dataset = load_arrays(tmp_path, make_arrays() | labels)
    assert dataset.train.labels.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert dataset.test.labels.tolist() == [7, 1, 0]
    assert said(dataset) == ["train_labels, test_labels: 1000, 1500, 2000, …, 7000 became 0 to 7"]


def test_a_class_that_is_missing_does_not_renumber_the_others(tmp_path: Path) -> None:
    labels = {"train_labels": np.array([1, 2, 3, 5, 5, 5, 5]), "test_labels": np.array([1, 2, 3])}
    dataset = load_arrays(tmp_path, make_arrays() | labels)
    assert dataset.train.labels.tolist() == [1, 2, 3, 5, 5, 5, 5]
    assert (dataset.num_classes, dataset.notices) == (6, ())


def test_npz_wants_an_npz_file(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "empty.npz").touch()
    os.mkfifo(tmp_path / "pipe.npz")
    np.save(tmp_path / "one.npy", IMAGES)
    save_npz(tmp_path / "half.npz", make_arrays())
    half = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(half[: len(half) // 2])
    for file, found in (
        ("empty.npz", "is empty"),
        ("text.npz/a.npz", "does not exist"),
        ("pipe.npz", "is no file"),  # which would be waited for
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


def test_an_array_that_is_there_twice(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", make_arrays())
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zipfile, which says so
        archive.writestr("train_images.npy", archive.read("test_images.npy"))
    message = error_of(lambda: load(make_config(f"npz:{tmp_path / 'a.npz'}")))
    assert message.endswith("the images of train are there twice")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\x76\x00{'descr': |u1" + b" " * 200,
        b"\x93NUMPY\x09\x00\x76\x00{}",
    ],
)
def test_a_damaged_array_in_a_whole_zip_file(tmp_path: Path, content: bytes) -> None:
    save_npz(tmp_path / "a.npz", {"test_images": IMAGES})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("train_images.npy", content)
    message = error_of(lambda: load(make_config(f"npz:{tmp_path / 'a.npz'}")))
    assert message.endswith("write it again with numpy.savez")


def test_a_zip_file_of_something_else(tmp_path: Path) -> None:
    for key, hint in (
        ("notes.txt", "not known: notes.txt"),
        ("train_images", "train_images is not an array"),
    ):
        arrays = {name: array for name, array in make_arrays().items() if name != key}
        save_npz(tmp_path / "a.npz", arrays)
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
            archive.writestr(key, "no array")
        assert hint in error_of(lambda: load(make_config(f"npz:{tmp_path / 'a.npz'}")))
