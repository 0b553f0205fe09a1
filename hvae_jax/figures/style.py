"""What every figure shares: colours, sizes, names of layers."""

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

# Okabe and Ito's palette, which colour-blind readers can tell apart; black is kept for the distortion.
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DISTORTION_COLOR = "#000000"
GUIDE_COLOR = "#999999"
DPI = 160


def layer_color(layer: int) -> str:
    """The colour of layer `layer` (1-based) in every figure."""
    return LAYER_COLORS[(layer - 1) % len(LAYER_COLORS)]


def layer_label(layer: int, num_layers: int) -> str:
    """What a legend calls the rate of a layer."""
    place = " (top)" if layer == num_layers > 1 else " (nearest the data)" if layer == 1 < num_layers else ""
    return f"rate $R_{layer}$ of $z_{layer}${place}"


def elbo_lines(axes: Axes, through: float) -> None:
    """Lines D + R = const: on each, the ELBO is the same; one goes through a test point."""
    x_limits, y_limits = axes.get_xlim(), axes.get_ylim()
    step = (y_limits[1] - y_limits[0]) / 6
    for offset in range(-8, 9):
        value = through + offset * step
        style = {"lw": 1.4, "ls": "--"} if offset == 0 else {"lw": 0.6, "ls": ":"}
        label = f"D + R = {through:.1f} (test −ELBO)" if offset == 0 else None
        axes.plot(x_limits, [value - x for x in x_limits], color=GUIDE_COLOR, label=label, zorder=0, **style)
    axes.set_xlim(x_limits)
    axes.set_ylim(y_limits)


def tile(images: np.ndarray) -> np.ndarray:
    """`[n, H, W, C]` side by side with a white line between: `[H, n (W + 1) − 1(, 3)]`; see `as_colours`."""
    images = as_colours(np.clip(images, 0.0, 1.0))
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0)
    row = np.concatenate(list(padded), axis=1)[:, :-1]
    return row[..., 0] if row.shape[-1] == 1 else row


def as_colours(images: np.ndarray) -> np.ndarray:
    """Images of one to four channels, `[..., C]` in [0, 1], as grey `[..., 1]` or colours `[..., 3]`.

    Of two channels the first is red and the second cyan, so that they are grey where they are equal; a fourth
    is the opacity of the other three, over white. `channels_note` says so.
    """
    if images.shape[-1] == 2:
        return images[..., [0, 1, 1]]
    if images.shape[-1] == 4:
        return 1.0 - images[..., 3:] * (1.0 - images[..., :3])
    return images


def channels_note(images: np.ndarray) -> str:
    """What the title of a picture adds about its images' channels; nothing where they are as expected."""
    notes = {2: " (channel 1 red, channel 2 cyan)", 4: " (channel 4 is the opacity, over white)"}
    return notes.get(images.shape[-1], "")


def image_width(images: np.ndarray, height: float) -> float:
    """How wide an image of `[n, H, W, C]` is that is drawn this high."""
    return height * images.shape[2] / images.shape[1]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")
