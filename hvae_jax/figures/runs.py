"""Figures of single runs. Every function writes one PNG; none keeps global plotting state."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from hvae_jax.evaluation.metrics import Rates
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.figures.style import (
    DISTORTION_COLOR,
    DPI,
    GUIDE_COLOR,
    LAYER_COLORS,
    MANY_LAYERS,
    PathLike,
    channels_note,
    elbo_lines,
    group_label,
    image_width,
    layer_color,
    layer_label,
    new_figure,
    tile,
    wrap,
)
from hvae_jax.groups import Groups, layers_name

# Of a heat map of rates: no colour is of less than this, nor than the largest rate divided by that.
LEAST_RATE, RATE_SPAN = 1e-3, 1e4
LAYER_HEIGHT = 0.12  # inches of such a map
LABEL_SIZE, TITLE_SIZE = 9, 11  # points, of the words beside and above rows of images


def training_curves(
    train: Mapping[str, np.ndarray],
    valid: Mapping[str, np.ndarray] | None,
    title: str,
    file: PathLike,
    grouped: NamedGroups | None = None,
) -> None:
    """Distortion above, one line per layer's rate below, over training steps.

    Of more than MANY_LAYERS layers, a line per group, if there are so few, and a heat map of the layers.

    Args:
      train, valid: as `records.load` returns them; `valid` may be None.
      title: said above the panels.
      file: PNG to write.
      grouped: layers that belong together; None is every layer alone.
    """
    num_layers = train["rates_nats"].shape[1]
    if num_layers > MANY_LAYERS:
        _training_map(train, valid, title, file, grouped or NamedGroups(Groups.of_layers(num_layers), ()))
        return
    figure = new_figure(8.4, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for log, style in ((train, {"alpha": 0.9}), (valid, {"marker": "o", "linestyle": "none", "ms": 4})):
        if log is None:
            continue
        top.plot(log["step"], log["distortion_nats"], color=DISTORTION_COLOR, **style)
        for layer in range(1, num_layers + 1):
            bottom.plot(log["step"], log["rates_nats"][:, layer - 1], color=layer_color(layer), **style)
    top.set_ylabel("distortion (nats per image)")
    bottom.set_ylabel("rate (nats per image)")
    bottom.set_xlabel("training step")
    bottom.set_ylim(bottom=0)
    labels = ["distortion D"], [layer_label(layer, num_layers) for layer in range(1, num_layers + 1)]
    for axes, names in zip((top, bottom), labels, strict=True):
        for line, name in zip(axes.lines, names, strict=False):
            line.set_label(name)
        if valid is not None:
            axes.plot([], [], "o", ms=4, color=GUIDE_COLOR, label="validation")
        # Beside the panel: inside it there is no corner that no curve comes through.
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(wrap(title, 8.4))
    figure.savefig(os.fspath(file), dpi=DPI)


def _training_map(
    train: Mapping[str, np.ndarray],
    valid: Mapping[str, np.ndarray] | None,
    title: str,
    file: PathLike,
    grouped: NamedGroups,
) -> None:
    groups, names = grouped
    has_lines = len(groups) <= MANY_LAYERS
    map_height = max(3.0, LAYER_HEIGHT * groups.num_layers)
    figure = new_figure(9.4, 5.2 + map_height)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 2.2, map_height))
    for log, style in ((train, {"alpha": 0.9}), (valid, {"marker": "o", "linestyle": "none", "ms": 4})):
        if log is None:
            continue
        top.plot(log["step"], log["distortion_nats"], color=DISTORTION_COLOR, **style)
        sums = groups.sum(log["rates_nats"]) if has_lines else log["rates_nats"].sum(axis=1, keepdims=True)
        for number, values in enumerate(sums.T, start=1):
            middle.plot(log["step"], values, color=layer_color(number), **style)
    labels = [f"rate of {group_label(name)}" for name in names] if has_lines else ["all layers together"]
    for axes, own in ((top, ["distortion D"]), (middle, labels)):
        for line, name in zip(axes.lines, own, strict=False):
            line.set_label(name)
        if valid is not None:
            axes.plot([], [], "o", ms=4, color=GUIDE_COLOR, label="validation")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    top.set_ylabel("distortion (nats per image)")
    middle.set_ylabel("rate (nats per image)")
    middle.set_ylim(bottom=0)
    _layer_map(figure, bottom, train, grouped)
    bottom.set_xlabel("training step")
    figure.suptitle(wrap(title, 9.4))
    figure.savefig(os.fspath(file), dpi=DPI)


def _layer_map(figure: Figure, axes: Axes, train: Mapping[str, np.ndarray], grouped: NamedGroups) -> None:
    """Every layer's rate over training as a colour, z_1 lowest; lines between groups."""
    (groups, names), rates = grouped, train["rates_nats"]
    highest = max(rates.max(), 10 * LEAST_RATE)
    lowest = max(LEAST_RATE, highest / RATE_SPAN)
    # A row of the log is of the steps since the row before it.
    steps, layers = np.concatenate([[0], train["step"]]), np.arange(groups.num_layers + 1) + 0.5
    shown = np.maximum(rates.T, lowest)  # an empty layer is as dark as it gets
    colors = axes.pcolormesh(
        steps, layers, shown, norm=LogNorm(lowest, highest), cmap="magma", rasterized=True
    )
    beside = axes.inset_axes((1.02, 0.0, 0.025, 1.0))
    figure.colorbar(colors, cax=beside, label="rate of one layer (nats per image)", extend="min")
    if groups.are_layers:
        axes.set_yticks(range(1, groups.num_layers + 1, -(-groups.num_layers // 12)))
        axes.set_ylabel("layer (1 is nearest the data)")
        return
    for _, top in groups.ranges[:-1]:
        axes.axhline(top + 0.5, color="white", lw=1.0)
    ticks = [
        label
        if (label := group_label(name)).startswith("$")
        else f"{label}, {group_label(layers_name(*pair))}"
        for name, pair in zip(names, groups.ranges, strict=True)
    ]
    axes.set_yticks([(low + high) / 2 for low, high in groups.ranges], ticks, fontsize=LABEL_SIZE)
    axes.set_ylabel("layers, nearest the data below")


def image_rows(rows: Mapping[str, np.ndarray], title: str, file: PathLike) -> None:
    """Rows of images, each with a label to its left.

    Args:
      rows: label → images `[n, H, W, C]`, shown as clipped to [0, 1]; the same n in every row.
      title: said above the rows, with what is to be known of images of two or four channels.
      file: PNG to write.
    """
    some = next(iter(rows.values()))
    size, title = 0.62, title + channels_note(some)
    across = image_width(some, size) * len(some)
    # Words take 0.6 em a letter at most, so that no label and no title is cut off at an edge.
    left, top = max(1.75, 0.3 + 0.6 / 72 * LABEL_SIZE * max(map(len, rows))), 0.55
    width = max(left + across, 0.6 / 72 * TITLE_SIZE * len(title)) + 0.1
    height = top + size * len(rows) + 0.1
    figure = Figure(figsize=(width, height))
    for row, (label, images) in enumerate(rows.items()):
        bottom = 1.0 - (top + size * (row + 1)) / height
        axes = figure.add_axes((left / width, bottom, across / width, size / height * 0.94))
        axes.imshow(tile(images), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        middle = bottom + 0.47 * size / height
        figure.text((left - 0.12) / width, middle, label, ha="right", va="center", fontsize=LABEL_SIZE)
    figure.text(0.5, 1.0 - 0.3 / height, title, ha="center", va="center", fontsize=TITLE_SIZE)
    figure.savefig(os.fspath(file), dpi=DPI)


def rate_distortion(train: Mapping[str, np.ndarray], test: Rates, title: str, file: PathLike) -> None:
    """The rate–distortion plane: the run's way through it, its test point, lines of equal ELBO.

    Args:
      train: as `records.load` returns it.
      test: summary of `evaluation.rates.summarize`.
      title: said above.
      file: PNG to write.
    """
    figure = new_figure(5.6, 4.6)
    axes = figure.subplots()
    total = train["rates_nats"].sum(axis=1)
    axes.plot(
        total, train["distortion_nats"], color=LAYER_COLORS[0], lw=1.2, marker=".", ms=4, label="training"
    )
    rate, distortion = test.total_rate_nats.value, test.distortion_nats.value
    axes.plot(rate, distortion, "*", ms=15, color=LAYER_COLORS[1], label="test split", zorder=3)
    elbo_lines(axes, rate + distortion)
    axes.set_xlabel("total rate $R_1 + \\dots + R_L$ (nats per image)")
    axes.set_ylabel("distortion D (nats per image)")
    axes.legend(frameon=False)
    axes.set_title(wrap(title, 5.6), fontsize=11)
    figure.savefig(os.fspath(file), dpi=DPI)


def rates_against_beta(panels: Mapping[int, Mapping[float, np.ndarray]], file: PathLike) -> None:
    """How every layer's rate answers when the beta of one layer changes; one panel per such layer.

    A line joins the means over seeds; where there are several, every one of them is a dot.

    Args:
      panels: layer (1-based) → its beta → the rates `[S, L]` found with it, one row a seed, nats; other
        betas are 1.
      file: picture to write.
    """
    figure = new_figure(4.4 * len(panels), 3.6)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (layer, points) in zip(row, sorted(panels.items()), strict=True):
        betas = sorted(points)
        means = np.stack([points[beta].mean(axis=0) for beta in betas])
        num_layers = means.shape[1]
        for number in range(1, num_layers + 1):
            color, label = layer_color(number), layer_label(number, num_layers)
            axes.plot(betas, means[:, number - 1], "o-", color=color, label=label)
            for beta in betas:
                seeds = points[beta][:, number - 1]
                if len(seeds) > 1:
                    axes.plot([beta] * len(seeds), seeds, ".", color=color, alpha=0.6, ms=4)
        axes.set_xscale("log")
        axes.set_xticks(list(betas), [f"{beta:g}" for beta in betas])
        axes.minorticks_off()
        axes.set_xlabel(f"$\\beta_{layer}$, other betas 1")
        axes.set_title(f"raising $\\beta_{layer}$ alone", fontsize=11)
    row[0].set_ylabel("test rate (nats per image)")
    row[0].set_ylim(bottom=0)
    row[-1].legend(frameon=False, fontsize=9)
    figure.savefig(os.fspath(file), dpi=DPI)
