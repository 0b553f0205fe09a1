"""MNIST's own file format."""

from collections.abc import Callable
from pathlib import Path

import pytest
from data_files import IDX_FILES, assert_split, error_of, make_arrays, make_config, write_idx

from hvae_jax.data import load


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
        (lambda content: b"", "not an IDX file of uint8 with 3 axes (it is empty)"),
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


def dotted(path: Path) -> Path:
    return path.with_name(path.name.replace("-idx", ".idx"))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        dotted,
        lambda path: path.with_name(path.name.replace("t10k", "test")),
        lambda path: path / path.name,
        lambda path: dotted(path) / path.name,  # as Kaggle's copy unpacks
        lambda path: dotted(path) / dotted(path).name,
        lambda path: path.with_suffix("" if path.suffix else ".gz"),  # content of the other kind
    ],
)
def test_idx_under_the_names_that_the_files_have_elsewhere(
    tmp_path: Path, place: Callable[[Path], Path], zipped: bool
) -> None:
    arrays = make_arrays()
    write_idx(tmp_path, arrays, zipped)
    for path in list(tmp_path.iterdir()):
        content, target = path.read_bytes(), place(path)
        path.unlink()
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    dataset = load(make_config(f"idx:{tmp_path}"))
    assert_split(dataset.train, arrays["train_images"][..., None], arrays["train_labels"])
    assert_split(dataset.test, arrays["test_images"][..., None], arrays["test_labels"])
    assert dataset.notices == ()


def test_idx_of_no_images(tmp_path: Path) -> None:
    write_idx(tmp_path, {key: array[:0] for key, array in make_arrays().items()}, zipped=True)
    message = error_of(lambda: load(make_config(f"idx:{tmp_path}")))
    assert "train_images has shape [0, 8, 9], must be" in message
