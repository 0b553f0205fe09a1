"""A figure of what each layer decides, from `evaluation.set_latents`."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hvae_jax.figures.style import LAYER_COLORS, channels_note, image_width, save, tile

LEGEND = (
    "A row draws its own latents anew for every image. Rows below it keep those of the framed image; latents "
    "that no row has drawn yet are at their means."
)


def set_latents(pictures: np.ndarray, labels: Sequence[str], title: str, file: pathlib.Path) -> None:
    """A row for each layer, the top layer first, and a block of columns for each base sample; PNG and PDF.

    Args:
      pictures: `[rows, bases, draws, H, W, C]`, z_1's row first, shown as clipped to [0, 1].
      labels: of the rows, in the same order.
      title: said above.
      file: to write, with either suffix or none.
    """
    num_rows, num_bases, num_draws = pictures.shape[:3]
    some = pictures[0, 0]
    size, gap, top, edge = 0.62, 0.18, 0.78, 0.12
    left = 0.3 + 0.085 * max(map(len, labels))
    across = image_width(some, size) * num_draws
    width = max(left + num_bases * (across + gap), 0.0625 * len(LEGEND)) + edge
    height = top + size * num_rows + edge
    figure = Figure(figsize=(width, height))
    for place, (row, label) in enumerate(zip(pictures[::-1], labels[::-1], strict=True)):
        bottom = height - top - size * (place + 1)
        for number, images in enumerate(row):
            start = left + number * (across + gap)
            box = (start / width, bottom / height, across / width, 0.94 * size / height)
            axes = figure.add_axes(box)
            axes.imshow(tile(images), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            if place < num_rows - 1:
                corner, sides = (-0.5, -0.5), (some.shape[2], some.shape[1])
                frame = {"fill": False, "edgecolor": LAYER_COLORS[1], "linewidth": 2.0, "clip_on": False}
                axes.add_patch(Rectangle(corner, *sides, **frame))
        middle = (bottom + 0.47 * size) / height
        figure.text((left - 0.12) / width, middle, label, ha="right", va="center", fontsize=9)
    title += channels_note(some)
    figure.text(0.5, 1 - 0.27 / height, title, ha="center", va="center", fontsize=11)
    figure.text(0.5, 1 - 0.54 / height, LEGEND, ha="center", va="center", fontsize=8)
    save(figure, file)
