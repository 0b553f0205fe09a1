"""Figures of runs that ask for rates: the way to the targets, and what a total rate buys."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.figures.style import (
    DPI,
    GUIDE_COLOR,
    LAYER_COLORS,
    MANY_LAYERS,
    PathLike,
    group_label,
    layer_color,
    layer_label,
    new_figure,
    rate_name,
    wrap,
)


def way_to_targets(
    train: Mapping[str, np.ndarray],
    targets: Sequence[float | None],
    title: str,
    file: PathLike,
    grouped: NamedGroups | None = None,
) -> None:
    """Every layer's rate above, its beta below, over training steps; dashed lines are the targets.

    Args:
      train: as `records.load` returns it.
      targets: `[L]` rates, nats; None for a layer without one. `[G]` where layers are grouped.
      title: said above the panels.
      file: PNG to write.
      grouped: the layers that share a beta and a target; None is every layer alone.
    """
    figure = new_figure(6.4, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    num_layers = train["rates_nats"].shape[1]
    rates, betas = train["rates_nats"], train["betas"]
    labels = [(layer_label(layer, num_layers), f"$\\beta_{{{layer}}}$") for layer in range(1, num_layers + 1)]
    if grouped is not None:
        rates, betas = grouped.groups.sum(rates), grouped.groups.collapse(betas)
        names = map(group_label, grouped.names)
        labels = [(f"rate of {name}", f"$\\beta$ of {name}") for name in names]
    for number, (target, (label, beta_label)) in enumerate(zip(targets, labels, strict=True), start=1):
        color = layer_color(number)
        top.plot(train["step"], rates[:, number - 1], color=color, label=label)
        bottom.plot(train["step"], betas[:, number - 1], color=color, label=beta_label)
        if target is not None:
            top.axhline(target, color=color, lw=1.0, ls="--")
    top.plot([], [], color=GUIDE_COLOR, lw=1.0, ls="--", label="target")
    top.set_ylabel("rate (nats per image)")
    top.set_ylim(bottom=0)
    bottom.set_yscale("log")
    decades = np.ptp(np.log10(train["betas"])) if (train["betas"] > 0).all() else 0.0
    bottom.yaxis.set_major_formatter("{x:g}")
    # Over less than a decade or two the powers of ten alone would leave the axis almost without numbers.
    bottom.yaxis.set_minor_formatter("{x:g}" if decades < 1.0 else "")
    bottom.set_ylabel("beta (log scale)")
    bottom.set_xlabel("training step")
    for axes in (top, bottom):
        if len(targets) <= MANY_LAYERS:
            axes.legend(frameon=False, fontsize=9)
    figure.suptitle(wrap(title, 6.4))
    figure.savefig(os.fspath(file), dpi=DPI)


def target_map(
    table: Mapping[str, np.ndarray], title: str, file: PathLike, names: Sequence[str] | None = None
) -> None:
    """Where a grid of target rates lies in rate space, and where its models came out.

    One panel per pair of layers. A cross is a target, a dot a model's rates over the training split,
    coloured by its test distortion; a line joins the two where they differ.

    Args:
      table: as `grid_table.load` returns it for a grid over targets of L ≥ 2 layers, or groups of layers.
      title: said above.
      file: PNG to write.
      names: of the groups; None where there is a target per layer.
    """
    num_layers = table["betas"].shape[-1]
    targets = table["targets_nats"].reshape(-1, num_layers)
    reached = table["train_rates_nats"].reshape(-1, num_layers)
    pairs = list(itertools.combinations(range(num_layers), 2))
    columns = min(len(pairs), 3)
    num_rows = -(-len(pairs) // columns)
    figure = new_figure(5.2 * columns + 0.8, 4.6 * num_rows)
    panels = figure.subplots(num_rows, columns, squeeze=False)
    for axes in panels.ravel()[len(pairs) :]:
        axes.set_axis_off()
    dots = None
    for axes, (low, high) in zip(panels.ravel(), pairs, strict=False):
        ways = np.stack([targets, reached], axis=1)
        axes.plot(ways[..., low].T, ways[..., high].T, "-", color=GUIDE_COLOR, lw=1.0, zorder=1)
        style = {"ms": 9, "mew": 1.0, "color": GUIDE_COLOR, "zorder": 1}
        axes.plot(targets[:, low], targets[:, high], "+", label="asked for", **style)
        dots = axes.scatter(
            reached[:, low],
            reached[:, high],
            c=table["distortion_nats"].ravel(),
            cmap="viridis",
            s=18,
            lw=0,
            zorder=2,
            label="reached, training split",
        )
        axes.set_xlabel(f"{rate_name(low, names)} (nats per image)")
        axes.set_ylabel(f"{rate_name(high, names)} (nats per image)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    legend = panels[0, 0].legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, fontsize=9
    )
    legend.legend_handles[1].set_color(GUIDE_COLOR)  # type: ignore[union-attr]  # no one model's colour
    if dots is not None:
        figure.colorbar(dots, ax=panels, label="test distortion D (nats per image)", shrink=0.9)
    figure.suptitle(title)
    figure.savefig(os.fspath(file), dpi=DPI)


def trade_frontier(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], title: str, file: PathLike
) -> None:
    """Distortion along a line of constant total rate, as the top layer's share of it grows.

    Args:
      lines: name of a model → measured shares R_L / ΣR of the top layer, ascending; test distortions;
        their spread over seeds; `[n]` each, nats.
      title: said above, with the total rate.
      file: PNG to write.
    """
    figure = new_figure(5.6, 3.8)
    axes = figure.subplots()
    for index, (name, (shares, distortions, spread)) in enumerate(lines.items()):
        style = {"color": LAYER_COLORS[index], "marker": "os^D"[index % 4], "ms": 4, "capsize": 3}
        # One seed has no spread, and bars of no length would claim that there is none.
        axes.errorbar(shares, distortions, yerr=spread if spread.any() else None, label=name, **style)
    axes.set_xlabel("share of the total rate in the top layer")
    axes.set_ylabel("test distortion D (nats per image)")
    axes.set_xlim(0.0, 1.0)
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False)
    figure.savefig(os.fspath(file), dpi=DPI)
