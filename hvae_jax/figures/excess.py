"""Figures of a conditioned model beside models that were trained for single betas."""

import os
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from hvae_jax.evaluation.excess import Point
from hvae_jax.figures.style import DPI, PathLike, new_figure


def excess_map(points: Sequence[Point], file: PathLike) -> None:
    """A map of the excess over two betas, and how each rate answers to its own beta on both sides.

    Args:
      points: of two layers, on a grid of betas.
      file: PNG to write.

    Raises:
      ValueError: not two layers.
    """
    if len(points[0].betas) != 2:
        raise ValueError(f"a map has the axes of two betas, and there are {len(points[0].betas)}")
    figure = new_figure(15.0, 4.6)
    first, *others = figure.subplots(1, 3, width_ratios=(1.25, 1.0, 1.0))
    _map(first, points)
    for layer, axes in enumerate(others):
        _lines(axes, points, layer)
    num_seeds = len(points[0].objective_nats)
    seeds = f"mean of {num_seeds} seeds" if num_seeds > 1 else "one seed"
    figure.suptitle(
        f"one conditioned model ({seeds}) beside {len(points)} models for single betas; test split"
    )
    figure.savefig(os.fspath(file), dpi=DPI)


def _map(axes: Axes, points: Sequence[Point]) -> None:
    values = [sorted({point.betas[layer] for point in points}) for layer in range(2)]
    excess = np.full((len(values[1]), len(values[0])), np.nan)
    for point in points:
        excess[values[1].index(point.betas[1]), values[0].index(point.betas[0])] = point.excess_nats
    limit = float(np.nanmax(np.abs(excess)))
    image = axes.imshow(excess, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(excess):
        if np.isfinite(value):
            color = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=8, color=color)
    for set_ticks, of_layer in zip((axes.set_xticks, axes.set_yticks), values, strict=True):
        set_ticks(range(len(of_layer)), [f"{value:.2g}" for value in of_layer])
    axes.set(xlabel=r"$\beta_1$", ylabel=r"$\beta_2$")
    axes.set_title(r"excess of $D + \sum \beta_l R_l$ (nats; blue: one model is better)", fontsize=10)
    axes.figure.colorbar(image, ax=axes)


def _lines(axes: Axes, points: Sequence[Point], layer: int) -> None:
    """A line for each value of the other beta, of one model; a dot for each that was trained alone."""
    other = 1 - layer
    held = sorted({point.betas[other] for point in points})
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, len(held)))
    for value, shade in zip(held, shades, strict=True):
        line = sorted((p for p in points if p.betas[other] == value), key=lambda p: p.betas[layer])
        x = [point.betas[layer] for point in line]
        axes.plot(x, [np.mean(point.rates_nats, axis=0)[layer] for point in line], color=shade, lw=1.3)
        axes.plot(x, [point.separate_rates_nats[layer] for point in line], "o", color=shade, ms=3.5)
    axes.plot([], [], color="black", lw=1.3, label="one model")
    axes.plot([], [], "o", color="black", ms=3.5, label="trained alone")
    axes.set_xscale("log")
    axes.set(xlabel=rf"$\beta_{layer + 1}$", ylabel=rf"$R_{layer + 1}$ (nats per image)")
    axes.set_title(rf"a line for each $\beta_{other + 1}$, {held[0]:g} (dark) to {held[-1]:g}", fontsize=10)
    axes.legend(frameon=False)
