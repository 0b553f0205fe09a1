"""Whether images are bytes from 0 to 255."""

from pathlib import Path

import numpy as np
import pytest
from data_files import error_of, make_config, save_npz
from sklearn.datasets import load_digits

from experiments import made_images, program
from hvae_jax.data import BINARIZE, load


def write_images(folder: Path, train: np.ndarray, test: np.ndarray | None = None) -> str:
    save_npz(folder / "a.npz", {"train_images": train, "test_images": train if test is None else test})
    return f"npz:{folder / 'a.npz'}"


def images_up_to(high: int, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, high + 1, (20, 8, 8), np.uint8)
    images[7, 0, 0] = high
    return images


@pytest.mark.parametrize("binarize", BINARIZE)
@pytest.mark.parametrize("streaming", ["never", "always"])
@pytest.mark.parametrize("high", [0, 1])
def test_masks_of_0_and_1_are_refused(tmp_path: Path, binarize: str, streaming: str, high: int) -> None:
    name = write_images(tmp_path, images_up_to(high))
    message = error_of(lambda: load(make_config(name, binarize=binarize, streaming=streaming)))
    assert message.startswith(
        f"config.data.name='{name}': the largest value of the train images is {high}, and"
    )
    assert "multiply them by 255" in message
    assert "config.data.check_values=False" in message
    dataset = load(make_config(name, binarize=binarize, streaming=streaming, check_values=False))
    np.testing.assert_array_equal(dataset.train.images, images_up_to(high)[..., None])
    assert dataset.notices == ()


def test_a_test_split_of_another_range_is_refused(tmp_path: Path) -> None:
    name = write_images(tmp_path, images_up_to(255), images_up_to(1))
    assert "the largest value of the test images is 1" in error_of(lambda: load(make_config(name)))


def test_images_that_rounding_leaves_constant_are_refused(tmp_path: Path) -> None:
    # scikit-learn's digits as they are, 0 to 16.
    digits = load_digits(return_X_y=True)[0].reshape(-1, 8, 8).astype(np.uint8)
    name = write_images(tmp_path, digits)
    message = error_of(lambda: load(make_config(name, binarize="round")))
    assert "rounding at 127 leaves every training image constant: no value is above 16;" in message
    assert "multiply them by 15; config.data.check_values=False" in message
    bright = np.where(np.arange(64).reshape(8, 8) % 2, 255, 128).astype(np.uint8)
    for images in (digits + 200, np.stack([bright, 0 * bright])):
        name = write_images(tmp_path, images)
        assert "none has values on both sides" in error_of(
            lambda name=name: load(make_config(name, binarize="round"))
        )
        assert len(load(make_config(name, binarize="round", check_values=False)).train.images) == len(images)
    # One image that is not constant is enough, wherever it lies.
    images = np.concatenate([digits, digits[:1] * 15])
    assert len(load(make_config(write_images(tmp_path, images), binarize="round")).train.images) == len(
        images
    )


@pytest.mark.parametrize("binarize", ["none", "sample"])
def test_dark_images_are_said_to_be_dark(tmp_path: Path, binarize: str) -> None:
    for high, is_said in ((2, True), (16, True), (127, True), (128, False), (255, False)):
        dataset = load(make_config(write_images(tmp_path, images_up_to(high)), binarize=binarize))
        notice = (
            f"{dataset.name}: the largest value of the training images is {high} of 255; if that is white, "
        )
        notice += f"multiply them by {255 // high}"
        assert dataset.notices == ((notice,) if is_said else ())


def test_values_on_disk_are_checked_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        made_images, "make_image", lambda split, number, side: np.full((side, side, 3), number % 2, np.uint8)
    )
    made_images.prepare(tmp_path, 100, 70, 8)
    for streaming in ("always", "never"):
        fields = {"data_dir": str(tmp_path), "streaming": streaming}
        message = error_of(lambda fields=fields: load(make_config("tfds:made_images", **fields)))
        assert "the largest value of the train images is 1" in message
        dataset = load(make_config("tfds:made_images", **fields, check_values=False))
        assert len(dataset.train.images) == 100


def test_programs_print_notices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset = load(make_config(write_images(tmp_path, images_up_to(16))))
    program.show_notices(dataset)
    assert capsys.readouterr() == ("", f"note: {dataset.notices[0]}\n")
    program.show_notices(dataset._replace(notices=()))
    assert capsys.readouterr() == ("", "")
