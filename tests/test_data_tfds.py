"""Data sets that TensorFlow Datasets prepared."""

import io
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import error_of, make_arrays, make_config, pairs
from PIL import Image

from hvae_jax.data import TFDS_NAMES, Split, load

TFDS_SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "svhn_cropped": (32, 32, 3),
    "cifar10": (32, 32, 3),
}


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
    assert [len(split.images) for split in dataset.splits.values()] == [8, 4, 5]
    for split in dataset.splits.values():
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


@pytest.mark.parametrize(
    "content",
    [b'\xff"array_record"', b'["array_record"]', b'{"a": "array_record", "splits": [{"name": "train"}]}'],
)
def test_tfds_info_that_is_no_info(own_mnist: Path, content: bytes) -> None:
    (own_mnist / "dataset_info.json").write_bytes(content)
    message = error_of(lambda: load(make_config("mnist", data_dir=str(own_mnist.parent.parent))))
    assert message.startswith(f"config.data.name='mnist': cannot read {own_mnist} (")


def test_tfds_data_dir_that_cannot_be_looked_into(own_mnist: Path) -> None:
    assert "cannot look into" in error_of(lambda: load(make_config("mnist", data_dir="a" * 300)))
    (own_mnist / "dataset_info.json").unlink()
    (own_mnist / "dataset_info.json").mkdir()
    message = error_of(lambda: load(make_config("mnist", data_dir=str(own_mnist.parent.parent))))
    assert "(Is a directory); name a folder that can be read" in message


def test_tfds_classes_have_their_names(prepared: Path) -> None:
    names = {}
    for streaming in ("always", "never"):
        dataset = load(make_config("cifar10", data_dir=str(prepared), streaming=streaming))
        names[streaming] = dataset.class_names
        assert dataset.num_classes == 10  # also where no training image is of the last
    # A download writes names beside the records; without one, classes have TFDS's numbers.
    assert names["always"] == names["never"] == tuple("0123456789")


def test_tfds_data_dir_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    message = error_of(lambda: load(make_config("cifar10", data_dir=str(path))))
    assert message == f"config.data.data_dir='{path}': {path} is a file; name a folder"
