r"""Makes a data set of smooth random images in the form of TensorFlow Datasets, to try streaming with.

    python -m experiments.made_images --data_dir=DIR --num_train=20000 --side=64
    python -m experiments.run --config=experiments/cifar.py --config.data.name=tfds:made_images \
        --config.data.data_dir=DIR --config.data.streaming=always --config.model.num_stages=4

Needs no TensorFlow and no network. The images are PNGs, as large as those of photographs are.
"""

import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from experiments import program
from hvae_jax.errors import RunError

NUM_CLASSES = 10
BLOBS, NOISE = 6, 4.0
# More is typed by mistake: it would fill the disk, or the memory.
_MOST_IMAGES, _MOST_PIXELS = 10**8, 4096


class MadeImages(tfds.core.GeneratorBasedBuilder):
    """TFDS's builder, so that files and metadata are its own."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, num_images: dict[str, int], side: int, **kwargs: Any) -> None:
        self._num_images, self._side = num_images, side
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> Any:
        image = tfds.features.Image(shape=(self._side, self._side, 3), encoding_format="png")
        label = tfds.features.ClassLabel(num_classes=NUM_CLASSES)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._num_images}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(self._num_images[split]):
            file = io.BytesIO()
            Image.fromarray(make_image(split, i, self._side)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % NUM_CLASSES}


def make_image(split: str, number: int, side: int) -> np.ndarray:
    """Coarse random colours, interpolated, and a little noise: uint8 `[side, side, 3]`."""
    rng = np.random.default_rng((number, split == "test"))
    coarse = Image.fromarray(rng.integers(0, 256, (BLOBS, BLOBS, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    return np.clip(smooth + rng.normal(0.0, NOISE, smooth.shape), 0, 255).astype(np.uint8)


def prepare(data_dir: pathlib.Path, num_train: int, num_test: int, side: int) -> None:
    """Writes the data set `made_images`, with splits train and test, into a TFDS folder."""
    builder = MadeImages(data_dir=data_dir, num_images={"train": num_train, "test": num_test}, side=side)
    builder.download_and_prepare()


def main(arguments: list[str]) -> None:
    """Reads the flags, writes."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    data_dir = program.folder_flag("data_dir", options.data_dir)
    prepare(data_dir, options.num_train, options.num_test, options.side)
    print(f"made_images is in {data_dir}")


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("data_dir", None, "Folder for TFDS data sets.", required=True)
    flags.DEFINE_integer("num_train", 20_000, "Training images.", lower_bound=1, upper_bound=_MOST_IMAGES)
    flags.DEFINE_integer("num_test", 1_000, "Test images.", lower_bound=1, upper_bound=_MOST_IMAGES)
    flags.DEFINE_integer("side", 64, "Pixels a side.", lower_bound=8, upper_bound=_MOST_PIXELS)


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
