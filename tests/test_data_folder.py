"""Folders of PNG and JPEG files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import picture_folders
import pytest
from data_files import assert_split, error_of, make_config
from PIL import Image

from hvae_jax import data
from hvae_jax.data import folder_files, sources
from hvae_jax.data.folder_files import FolderImages

LABELS = {"train": [0, 0, 0, 1, 1, 2, 2, 2, 2], "test": [1, 1, 2]}
RNG = np.random.default_rng(7)
GREY, COLOUR = RNG.integers(0, 256, (8, 9), np.uint8), RNG.integers(0, 256, (8, 9, 3), np.uint8)


def load(folder: Path, **fields: Any) -> data.Dataset:
    return data.load(make_config(f"folder:{folder}", **fields))


def said(dataset: data.Dataset) -> list[str]:
    assert all("\n" not in notice for notice in dataset.notices)
    return [notice.removeprefix(f"{dataset.name}: ") for notice in dataset.notices]


def read_one(folder: Path, image: Any, name: str = "a.png", **options: Any) -> np.ndarray:
    """What one training image becomes beside a test image of the same shape."""
    picture_folders.write(folder, {f"train/{name}": image}, **options)
    (folder / "test").mkdir()
    shutil.copy(folder / "train" / name, folder / "test" / name)
    dataset = load(folder, check_values=False)
    np.testing.assert_array_equal(dataset.train.images, dataset.test.images)
    return dataset.train.images[0]


# What is read


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3)])
def test_classes_by_name_and_images_by_name(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = picture_folders.make(shape)
    dataset = load(picture_folders.write(tmp_path, images))
    for split in ("train", "test"):
        assert_split(dataset.splits[split], picture_folders.of_split(images, split), np.array(LABELS[split]))
    assert dataset.image_shape == (8, 9, 3 if len(shape) == 3 else 1)
    assert (dataset.class_names, dataset.num_classes) == (("ant", "bee", "cat"), 3)
    assert said(dataset) == ["class folders 'ant', 'bee', 'cat' became 0 to 2"]
    assert dataset.title == tmp_path.name


def test_without_class_folders_there_are_no_labels(tmp_path: Path) -> None:
    images = picture_folders.make(with_classes=False)
    dataset = load(picture_folders.write(tmp_path, images))
    assert_split(dataset.train, picture_folders.of_split(images, "train"), np.zeros(9))
    assert (dataset.class_names, dataset.num_classes, dataset.notices) == ((), 1, ())


@pytest.mark.parametrize("valid", ["valid", "val", "Validation"])
def test_a_validation_split_of_its_own(tmp_path: Path, valid: str) -> None:
    images = picture_folders.make()
    images |= {f"{valid}/cat/1.png": GREY, f"{valid}/bee/0.png": 255 - GREY}
    dataset = load(picture_folders.write(tmp_path, images))
    assert_split(dataset.valid, np.stack([255 - GREY, GREY])[..., None], np.array([1, 2]))
    message = error_of(lambda: load(tmp_path, num_valid=1))
    assert message.startswith("config.data.num_valid=1: must be at most 0")
    assert message.endswith("it has its own validation images")


def test_else_validation_comes_from_training_as_of_other_sources(tmp_path: Path) -> None:
    images = picture_folders.make()
    arrays = {f"{split}_images": picture_folders.of_split(images, split) for split in LABELS}
    arrays |= {f"{split}_labels": np.array(labels) for split, labels in LABELS.items()}
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)
    folder = picture_folders.write(tmp_path / "folder", images)
    for streaming in ("never", "always"):
        fields: dict[str, Any] = {"num_valid": 3, "split_seed": 5, "streaming": streaming}
        dataset = load(folder, **fields)
        other = data.load(make_config(f"npz:{tmp_path / 'a.npz'}", **fields))
        for split in ("train", "valid", "test"):
            for found, wanted in zip(dataset.splits[split], other.splits[split], strict=True):
                np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def test_jpegs_are_what_pillow_decodes(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(COLOUR).resize((40, 30)))
    found = read_one(tmp_path, smooth, "a.JPG", format="JPEG", quality=90)
    with Image.open(tmp_path / "train" / "a.JPG") as image:
        np.testing.assert_array_equal(found, np.asarray(image))
    assert np.abs(found.astype(int) - smooth).mean() < 8  # a picture, not its complement


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_one(tmp_path, COLOUR, "a.jpeg", format="PNG"), COLOUR)


def test_of_a_file_with_several_frames_the_first_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16), value, np.uint8)) for value in (50, 200)]
    for name, kind in (("a.png", "PNG"), ("b.jpg", "MPO")):
        found = read_one(
            tmp_path / kind, frames[0], name, format=kind, save_all=True, append_images=frames[1:]
        )
        np.testing.assert_array_equal(found, 50)


def test_what_systems_leave_and_what_lies_beside_the_splits_is_passed_over(tmp_path: Path) -> None:
    images = picture_folders.make()
    folder = picture_folders.write(tmp_path, images)
    plain = load(folder).describe()
    for name in (
        "LICENSE",
        "labels.csv",
        ".DS_Store",
        "train/.DS_Store",
        "train/ant/._0.png",
        "test/Thumbs.db",
    ):
        (folder / name).write_text("no image")
    (folder / ".git").mkdir()
    (folder / "train" / ".cache").mkdir()
    assert load(folder).describe() == plain


def test_a_class_that_only_training_has_keeps_the_numbers(tmp_path: Path) -> None:
    dataset = load(picture_folders.write(tmp_path, picture_folders.make()))
    assert sorted(set(dataset.test.labels.tolist())) == [1, 2]  # "bee" and "cat", as in training


# Kinds of files


def test_grey_files_among_colour_become_colour(tmp_path: Path) -> None:
    images = {"train/a.png": GREY, "train/b.png": COLOUR, "test/a.png": GREY}
    dataset = load(picture_folders.write(tmp_path, images))
    grey = np.repeat(GREY[..., None], 3, -1)
    np.testing.assert_array_equal(dataset.train.images, np.stack([grey, COLOUR]))
    np.testing.assert_array_equal(dataset.test.images, grey[None])
    first = tmp_path / "train" / "a.png"
    assert said(dataset) == [f"2 files ({first}, …) with grey values among colour: three equal channels"]


def test_one_file_in_colour_in_any_split_decides(tmp_path: Path) -> None:
    images = {"train/a.png": GREY, "test/a.png": COLOUR}
    assert load(picture_folders.write(tmp_path, images)).image_shape == (8, 9, 3)


def test_one_bit(tmp_path: Path) -> None:
    found = read_one(tmp_path, Image.fromarray(GREY > 99))
    np.testing.assert_array_equal(found[..., 0], 255 * (GREY > 99))


@pytest.mark.parametrize("is_grey", [True, False])
def test_palettes(tmp_path: Path, is_grey: bool) -> None:
    """Kept exactly: grey where the whole palette is."""
    palette = np.repeat(np.arange(256)[:, None], 3, 1) if is_grey else RNG.integers(0, 256, (256, 3))
    image = Image.fromarray(GREY).convert("P")
    image.putdata(GREY.ravel().tolist())
    image.putpalette(palette.astype(np.uint8).ravel().tolist())
    found = read_one(tmp_path, image)
    np.testing.assert_array_equal(found, GREY[..., None] if is_grey else palette[GREY])


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("is_grey", [True, False])
def test_alpha_is_laid_over_white(tmp_path: Path, is_grey: bool) -> None:
    alpha = RNG.integers(0, 256, (8, 9), np.uint8)
    colour = GREY[..., None] if is_grey else COLOUR
    image = np.concatenate([colour, alpha[..., None]], -1)
    found = read_one(tmp_path, Image.fromarray(image, "LA" if is_grey else "RGBA"))
    assert found.shape == colour.shape
    assert np.abs(found - over_white(colour, alpha)).max() <= 1  # Pillow rounds on the way
    np.testing.assert_array_equal(found[alpha == 255], colour[alpha == 255])
    np.testing.assert_array_equal(found[alpha == 0], 255)
    first = tmp_path / "train" / "a.png"
    assert said(load(tmp_path)) == [f"2 files ({first}, …) with transparency: laid over white"]


def test_transparent_colours_become_white(tmp_path: Path) -> None:
    grey = GREY.copy()
    grey[0, :3] = 7
    grey[grey == 7] = 7
    found = read_one(tmp_path / "grey", grey, transparency=7)
    np.testing.assert_array_equal(found[..., 0], np.where(grey == 7, 255, grey))
    image = Image.fromarray(grey).convert("P")
    image.putdata(grey.ravel().tolist())
    palette = RNG.integers(0, 255, (256, 3))
    image.putpalette(palette.astype(np.uint8).ravel().tolist())
    found = read_one(tmp_path / "palette", image, transparency=7)
    np.testing.assert_array_equal(found, np.where((grey == 7)[..., None], 255, palette[grey]))


def test_of_16_bits_the_upper_8_are_kept(tmp_path: Path) -> None:
    wide = RNG.integers(0, 2**16, (8, 9), np.uint16)
    np.testing.assert_array_equal(read_one(tmp_path, Image.fromarray(wide))[..., 0], wide >> 8)
    first = tmp_path / "train" / "a.png"
    assert said(load(tmp_path)) == [f"2 files ({first}, …) with 16 bits a channel: the upper 8 are kept"]


def test_printing_colours_are_converted_and_said(tmp_path: Path) -> None:
    white = Image.fromarray(np.full((16, 16, 3), 240, np.uint8)).convert("CMYK")
    found = read_one(tmp_path, white, "a.jpg")
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - 240).max() <= 4  # not its complement
    assert "(CMYK)" in said(load(tmp_path))[0]


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_as_viewers_do(tmp_path: Path, orientation: int, ending: str) -> None:
    """Each corner has its own grey, so that every orientation gives another picture."""
    upright = np.kron(np.array([[0, 60, 120], [255, 180, 90]], np.uint8), np.ones((16, 16), np.uint8))
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # the EXIF standard: where row and column 0 are
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo[orientation](upright))
    found = read_one(tmp_path, stored, f"a.{ending}", exif=exif)
    assert found.shape == (32, 48, 1)
    assert np.abs(found[..., 0].astype(int) - upright).max() <= (0 if ending == "png" else 3)
    assert any("EXIF" in notice for notice in said(load(tmp_path))) == (orientation > 1)


# Squares


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (16, 16), (9, 40)])
def test_a_side_that_is_the_shorter_one_only_cuts(tmp_path: Path, height: int, width: int) -> None:
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    side = min(height, width)
    picture_folders.write(tmp_path, {"train/a.png": pixels, "test/a.png": pixels})
    top, left = (height - side) // 2, (width - side) // 2
    wanted = pixels[top : top + side, left : left + side]
    np.testing.assert_array_equal(load(tmp_path, side=side).train.images[0], wanted)


def bicubic(length: int, side: int) -> np.ndarray:
    """Keys's kernel with a = −1/2, widened where it makes smaller, cut off at the ends: `[side, length]`."""
    scale = max(1.0, length / side)
    centers = (np.arange(side) + 0.5) * length / side
    t = np.abs((np.arange(length) + 0.5 - centers[:, None]) / scale)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width", "side"), [(30, 41, 8), (24, 16, 8), (13, 13, 7), (5, 7, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_squares_are_scaled_by_the_bicubic_filter(
    tmp_path: Path, height: int, width: int, side: int, channels: int
) -> None:
    pixels = RNG.integers(60, 190, (height, width, channels), np.uint8)
    image = pixels[..., 0] if channels == 1 else pixels
    picture_folders.write(tmp_path, {"train/a.png": image, "test/a.png": image})
    dataset = load(tmp_path, side=side)
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = pixels[top : top + square, left : left + square].astype(float)
    weights = bicubic(square, side)
    wanted = np.clip(np.einsum("ih,jw,hwc->ijc", weights, weights, cut), 0, 255)
    assert dataset.image_shape == (side, side, channels)
    assert np.abs(dataset.train.images[0] - wanted).max() < 1.5  # Pillow rounds after each axis
    larger = [notice for notice in said(dataset) if "made larger" in notice]
    assert bool(larger) == (square < side)


def test_files_of_all_sizes_become_one(tmp_path: Path) -> None:
    images = {f"train/{i}.png": np.full((8 + i, 20 - i, 3), 40 * i, np.uint8) for i in range(6)}
    picture_folders.write(tmp_path, images | {"test/a.png": COLOUR})
    dataset = load(tmp_path, side=8)
    assert dataset.train.images.shape == (6, 8, 8, 3)
    assert [np.unique(image).tolist() for image in dataset.train.images] == [[40 * i] for i in range(6)]


# Streaming and fingerprints


@pytest.mark.parametrize("side", [None, 5])
def test_streamed_images_are_those_in_memory(
    tmp_path: Path, side: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_files, "PIXEL_CHUNK", 2)
    monkeypatch.setattr(folder_files, "HEADER_CHUNK", 2)
    picture_folders.write(tmp_path, picture_folders.make((8, 9, 3)))
    kept, stored = (load(tmp_path, streaming=mode, side=side, num_valid=2) for mode in ("never", "always"))
    for split, wanted in kept.splits.items():
        images = stored.splits[split].images
        assert isinstance(images, FolderImages)
        assert isinstance(wanted.images, np.ndarray)
        for key in (0, -1, slice(0, 2), np.array([1, 0, 1])):
            np.testing.assert_array_equal(images[key], wanted.images[key])
        np.testing.assert_array_equal(np.asarray(images), wanted.images)
        np.testing.assert_array_equal(stored.splits[split].labels, wanted.labels)
    assert kept.describe() == stored.describe()


def test_auto_streams_what_is_large_once_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture_folders.write(tmp_path, picture_folders.make((8, 9, 3)))
    monkeypatch.setattr(sources, "STREAM_BYTES", 5 * 8 * 9 * 3)
    dataset = load(tmp_path, streaming="auto", num_workers=3)
    assert isinstance(dataset.train.images, FolderImages)
    assert dataset.train.images.num_workers == 3
    assert isinstance(dataset.test.images, np.ndarray)
    assert dataset.describe() == load(tmp_path, streaming="never").describe()


def prints(folder: Path, **fields: Any) -> list[str]:
    return [split["fingerprint"] for split in load(folder, **fields).describe()["splits"].values()]


def test_a_fingerprint_does_not_depend_on_place_or_on_the_order_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = picture_folders.make()
    picture_folders.write(tmp_path / "a", images)
    picture_folders.write(tmp_path / "b" / "c", dict(reversed(images.items())))
    wanted = prints(tmp_path / "a", num_valid=2)
    assert prints(tmp_path / "b" / "c", num_valid=2) == wanted
    scandir = os.scandir

    class Backwards:
        def __init__(self, folder: Any) -> None:
            with scandir(folder) as found:
                self._entries = list(found)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self._entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(folder_files.os, "scandir", Backwards)
    assert prints(tmp_path / "a", num_valid=2) == wanted


def change_a_pixel(folder: Path) -> None:
    path = folder / "train" / "bee" / "1.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[3, 3] ^= 1
    Image.fromarray(pixels).save(path)


def swap(folder: Path) -> None:
    first, second = (folder / "train" / "bee" / f"{i}.png" for i in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


CHANGES: list[Callable[[Path], object]] = [
    change_a_pixel,
    swap,
    lambda folder: (folder / "train" / "bee" / "1.png").rename(folder / "train" / "bee" / "2.png"),
    lambda folder: (folder / "train" / "bee" / "1.png").unlink(),
    lambda folder: (folder / "train" / "bee" / "1.png").rename(folder / "train" / "ant" / "9.png"),
    lambda folder: shutil.copy(folder / "train" / "bee" / "1.png", folder / "train" / "bee" / "9.png"),
    lambda folder: [(folder / split / "bee").rename(folder / split / "bug") for split in ("train", "test")],
]


@pytest.mark.parametrize("place", range(len(CHANGES)))
def test_what_changes_gives_another_fingerprint(tmp_path: Path, place: int) -> None:
    picture_folders.write(tmp_path, picture_folders.make())
    before = prints(tmp_path, num_valid=2)
    CHANGES[place](tmp_path)
    assert prints(tmp_path, num_valid=2)[:2] != before[:2]


def test_of_a_large_split_a_sample_and_all_names_and_sizes_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "STREAM_BYTES", 10)
    monkeypatch.setattr("hvae_jax.data.fingerprints.NUM_SAMPLED", 2)  # the first image and the last
    picture_folders.write(tmp_path, picture_folders.make())
    before = prints(tmp_path, streaming="never")
    assert prints(tmp_path, streaming="always") == before
    path = tmp_path / "train" / "bee" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    assert prints(tmp_path)[0] != before[0]
    path.write_bytes(content)
    assert prints(tmp_path) == before
    path.rename(path.with_name("11.png"))
    assert prints(tmp_path)[0] != before[0]


# What goes wrong


def add(name: str, image: Any = GREY) -> Callable[[Path], object]:
    return lambda folder: picture_folders.write(folder, {name: image})


def write_text(name: str, content: bytes = b"no image") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, share: float) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: shutil.rmtree(f / "test"), ["has no test/; it must hold train/, test/"]),
        (lambda f: shutil.rmtree(f / "train"), ["has no train/; it must hold train/, test/"]),
        (lambda f: (f / "vaild").mkdir(), ["/vaild is no split; it must hold"]),
        (lambda f: [(f / s).mkdir() for s in ("val", "valid")], ["/valid is a second valid split"]),
        (lambda f: (f / "valid").mkdir(), ["/valid is empty; it must hold"]),
        (lambda f: (f / "train" / "dog").mkdir(), ["/train/dog is empty; put the images of the class there"]),
        (add("a.png"), ["/a.png is in no split; it must hold"]),
        (add("train/a.png"), ["/train holds the file a.png beside the folder ant; sort all images by class"]),
        (add("train/ant/more/a.png"), ["/train/ant/more is a folder in that of a class; images must lie in"]),
        (add("test/dog/a.png"), ["/test/dog is a class that", "/train lacks, which has ant, bee, cat; add"]),
        (add("valid/dog/a.png"), ["/valid/dog is a class that", "/train lacks"]),
        (add("valid/a.png"), ["/train has class folders and", "/valid has none; sort the images of all"]),
        (add("train/ant/a.gif"), ["/train/ant/a.gif does not end in .png, .jpg, .jpeg; convert it to PNG"]),
        (write_text("train/ant/labels.txt"), ["labels.txt does not end in .png, .jpg, .jpeg"]),
        (write_text("test/bee/0.png"), ["cannot read", "/test/bee/0.png (it is no PNG or JPEG file); get"]),
        (write_text("test/bee/0.png", b""), ["/test/bee/0.png (it is no PNG or JPEG file); get the file"]),
        (cut("train/cat/3.png", 0.5), ["cannot read", "/train/cat/3.png (", "get the file again, or move"]),
        (cut("train/cat/3.png", 0.2), ["cannot read", "/train/cat/3.png (", "get the file again, or move"]),
        (
            lambda f: Image.fromarray(GREY).save(f / "train" / "cat" / "3.png", "GIF"),
            ["/train/cat/3.png (it is no PNG or JPEG file)"],
        ),
        (
            lambda f: (f / "test" / "bee" / "2.png").symlink_to("nowhere.png"),
            ["/test/bee/2.png (No such file or directory)"],
        ),
        (lambda f: os.mkfifo(f / "test" / "bee" / "2.png"), ["/test/bee/2.png (it is no file); get"]),
        (
            lambda f: (f / "train" / "ant" / "9.png").symlink_to("9.png"),
            ["/train/ant/9.png (Too many levels of symbolic links); make it readable"],
        ),
        (
            add("test/bee/0.png", GREY[:, :5]),
            [
                "/test/bee/0.png has 8 × 5 pixels,",
                "/train/ant/0.png has 8 × 9 (height × width); --config.data.side=N",
            ],
        ),
        (
            add("train/cat/1.png", GREY.T),
            ["/train/cat/1.png has 9 × 8 pixels,", "/train/ant/0.png has 8 × 9"],
        ),
    ],
)
@pytest.mark.parametrize("streaming", ["never", "always"])
def test_what_is_wrong_with_a_folder_is_one_line(
    tmp_path: Path, change: Callable[[Path], object], words: list[str], streaming: str
) -> None:
    picture_folders.write(tmp_path, picture_folders.make())
    change(tmp_path)
    message = error_of(lambda: np.asarray(load(tmp_path, streaming=streaming).train.images))
    assert message.startswith(f"config.data.name='folder:{tmp_path}': ")
    for word in words:
        assert word in message


def test_a_damaged_jpeg(tmp_path: Path) -> None:
    large = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    picture_folders.write(tmp_path, {"train/a.jpg": large, "test/a.jpg": large})
    cut("train/a.jpg", 0.7)(tmp_path)
    message = error_of(lambda: load(tmp_path))
    assert f"cannot read {tmp_path}/train/a.jpg (image file is truncated" in message


def test_a_file_that_is_replaced_while_it_is_streamed(tmp_path: Path) -> None:
    picture_folders.write(tmp_path, picture_folders.make())
    images = load(tmp_path, streaming="always").train.images
    add("train/cat/0.png", GREY[:, :5])(tmp_path)
    assert "cat/0.png (it has [8, 5] pixels now); get" in error_of(lambda: images[:])


@pytest.mark.parametrize("name", ["file.txt", "absent"])
def test_it_wants_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").touch()
    message = error_of(lambda: load(tmp_path / name))
    found = "is a file" if name == "file.txt" else "does not exist"
    assert f"{tmp_path / name} {found}; name a folder of images: it must hold train/" in message


@pytest.mark.parametrize("side", [0, -3, 2.0, True, "32", 10**6])
def test_a_side_that_cannot_be(side: Any) -> None:
    message = error_of(lambda: make_config("folder:x", side=side))
    assert message == f"config.data.side={side!r}: must be an integer, 1 to 4096, or None"


@pytest.mark.parametrize("name", ["digits", "npz:a.npz", "idx:a", "mnist", "tfds:a"])
def test_a_side_is_of_folders_only(name: str) -> None:
    message = error_of(lambda: make_config(name, side=32))
    assert message.startswith("config.data.side=32: only images of folder:PATH are scaled")
    assert repr(name) in message
    assert message.endswith("leave it out")
