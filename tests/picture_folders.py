"""Folders of PNG and JPEG files that tests write, and what must be read of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# By split and class, so many images. Names are written in an order that is not theirs.
CLASSES = {"train": {"cat": 4, "ant": 3, "bee": 2}, "test": {"bee": 2, "cat": 1}}


def write(folder: Path, images: Mapping[str, Any], **options: Any) -> Path:
    """Images by name below `folder`, each an array `[H, W]` or `[H, W, C]` or Pillow's own."""
    for name, image in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found = image if isinstance(image, Image.Image) else Image.fromarray(image)
        found.save(path, **options)
    return folder


def make(shape: tuple[int, ...] = (8, 9), with_classes: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random PNGs, so that no two are alike, by name; the numbers in the names fall as they are drawn."""
    rng = np.random.default_rng(seed)
    images = {}
    for split, classes in CLASSES.items():
        for label, num_images in classes.items():
            for i in reversed(range(num_images)):
                name = f"{label}/{i}.png" if with_classes else f"{label}_{i}.png"
                images[f"{split}/{name}"] = rng.integers(0, 256, shape, np.uint8)
    return images


def of_split(images: Mapping[str, np.ndarray], split: str) -> np.ndarray:
    """Those of a split in the order in which they must be read, `[N, H, W, C]`."""
    found = np.stack([images[name] for name in sorted(images) if name.startswith(f"{split}/")])
    return found if found.ndim == 4 else found[..., None]
