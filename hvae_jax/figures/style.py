"""What every figure shares: colours, sizes, names of layers."""

import os
import pathlib
import re
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_jax.groups import layers_name, runs

PathLike = str | os.PathLike[str]

# Okabe and Ito's palette, which colour-blind readers can tell apart; black is kept for the distortion.
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DISTORTION_COLOR = "#000000"
GUIDE_COLOR = "#999999"
DPI = 160
# Of more layers there is a heat map instead of a line each, and titles say their betas in short.
MANY_LAYERS, MANY_BETAS = 6, 4


def layer_color(layer: int) -> str:
    """The colour of layer `layer` (1-based) in every figure."""
    return LAYER_COLORS[(layer - 1) % len(LAYER_COLORS)]


def layer_label(layer: int, num_layers: int) -> str:
    """What a legend calls the rate of a layer."""
    return f"rate $R_{{{layer}}}$ of $z_{{{layer}}}${layer_place(layer, num_layers)}"


def layer_place(layer: int, num_layers: int) -> str:
    """What is said behind the name of the highest and of the lowest of several layers."""
    return " (top)" if layer == num_layers > 1 else " (nearest the data)" if layer == 1 < num_layers else ""


def group_label(name: str) -> str:
    """A group's name as axes and legends say it: "8×8 layers" of 8x8, else its layers with z as a symbol."""
    text, num_found = re.subn(r"z_(\d+)", r"$z_{\1}$", name)
    return text.replace("-", " … ") if num_found else f"{name.replace('x', '×')} layers"


def rate_name(index: int, names: Sequence[str] | None) -> str:
    """What an axis calls the rate of entry `index`: of layer `index` + 1, or of the group of that name."""
    if names is None:
        return f"rate $R_{{{index + 1}}}$ of $z_{{{index + 1}}}$"
    return f"rate of {group_label(names[index])}"


def describe_betas(betas: Sequence[float], names: Sequence[str] | None = None) -> str:
    """The betas for a title.

    Args:
      betas: z_1's first.
      names: of the groups that share them; None where there is one per layer.

    Example:
      >>> describe_betas((1.0, 0.5)), describe_betas((1.0,) * 9), describe_betas((1.0, 0.5), ("8x8", "1x1"))
      ('betas (1, 0.5)', 'all betas 1', 'betas 1 (8×8), 0.5 (1×1)')
      >>> describe_betas((1.0,) * 4 + (0.5,) * 5)
      'betas 1 ($z_{1}$ … $z_{4}$), 0.5 ($z_{5}$ … $z_{9}$)'
    """
    if names is None and len(betas) <= MANY_BETAS:
        return f"betas ({', '.join(f'{beta:.3g}' for beta in betas)})"
    if len(set(betas)) == 1:
        return f"all betas {betas[0]:.3g}"
    if names is None:
        same = runs(betas)
        names, betas = [layers_name(*layers) for _, *layers in same], [beta for beta, *_ in same]
    if len(betas) > MANY_LAYERS:
        return f"betas from {min(betas):.3g} to {max(betas):.3g}"
    labels = [group_label(name).removesuffix(" layers") for name in names]
    return "betas " + ", ".join(f"{beta:.3g} ({label})" for beta, label in zip(betas, labels, strict=True))


def wrap(title: str, width: float) -> str:
    """A title in as many lines as it needs over a figure of so many inches."""
    num_signs = int(10 * width)  # 0.6 em each, of 12 points
    is_short = len(re.sub(r"[${}_]", "", title)) <= num_signs
    # A beta stays with what it is of.
    return title if is_short else textwrap.fill(title.replace(" (", "\u00a0("), num_signs)


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


def save(figure: Figure, file: pathlib.Path) -> None:
    """As PNG and PDF, laid out once."""
    figure.savefig(file.with_suffix(".png"), dpi=DPI)
    figure.set_layout_engine("none")
    figure.savefig(file.with_suffix(".pdf"), dpi=DPI)
