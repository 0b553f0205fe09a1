"""Figures of a grid of models, one PNG each; their tables are as `grid_table.load` returns them."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from hvae_jax.figures.style import (
    DISTORTION_COLOR,
    DPI,
    GUIDE_COLOR,
    LAYER_COLORS,
    PathLike,
    elbo_lines,
    group_label,
    new_figure,
    rate_name,
)

Table = Mapping[str, np.ndarray]
# Betas from a logarithmic grid are rounded in configs.
SAME_BETA = 1e-6


def rate_space(table: Table, title: str, file: PathLike, names: Sequence[str] | None = None) -> None:
    """R_l against R_k, one dot a model: all that a choice of betas reaches. One panel per pair of layers.

    Coloured by the ELBO. The model at β = 1 and those with all betas equal, means over seeds, are marked.

    Args:
      table: of L ≥ 2 layers, or with rates of as many groups.
      title: said above.
      file: PNG to write.
      names: of the groups; None where rates are those of layers.
    """
    num_layers = table["rates_nats"].shape[-1]
    pairs = list(itertools.combinations(range(num_layers), 2))
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    figure = new_figure(5.2 * columns + 0.8, 4.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    rates, even = table["rates_nats"], _even(table)
    even_betas, even_rates = even["betas"][:, 0], even["rates_nats"]
    dots = None
    for axes, (low, high) in itertools.zip_longest(panels.ravel(), pairs, fillvalue=(0, 0)):
        assert isinstance(axes, Axes)
        if low == high:
            axes.set_axis_off()
            continue
        dots = axes.scatter(
            rates[..., low].ravel(),
            rates[..., high].ravel(),
            c=-table["elbo_nats"].ravel(),
            cmap="viridis_r",
            s=16,
            lw=0,
        )
        label = "all betas equal"
        axes.plot(even_rates[:, low], even_rates[:, high], "-", color=LAYER_COLORS[1], lw=1.4, label=label)
        at_one = np.isclose(even_betas, 1.0)
        style = {"color": LAYER_COLORS[1], "mec": "black", "ms": 15, "label": "all betas 1 (the ELBO)"}
        axes.plot(even_rates[at_one, low], even_rates[at_one, high], "*", **style)
        axes.set_xlabel(f"{rate_name(low, names)} (nats per image)")
        axes.set_ylabel(f"{rate_name(high, names)} (nats per image)")
        axes.legend(frameon=False)
    if dots is not None:
        figure.colorbar(dots, ax=panels, label="−ELBO (nats per image)", shrink=0.9)
    figure.suptitle(title)
    figure.savefig(os.fspath(file), dpi=DPI)


def rate_maps(
    table: Table,
    title: str,
    file: PathLike,
    names: Sequence[str] | None = None,
    beta_names: Sequence[str] | None = None,
) -> None:
    """Heat maps of every layer's rate over the betas, means over seeds.

    One row per pair of betas that both vary, one column per layer; other betas are those nearest 1.

    Args:
      table: of a grid with at least two betas that vary, not of a list of points.
      title: said above.
      file: PNG to write.
      names: of the groups whose rates they are; None where they are those of layers.
      beta_names: of the groups that share betas; None where there is one per layer.
    """
    betas, rates = table["betas"][..., 0, :], _seed_mean(table["rates_nats"])
    num_layers, num_betas = rates.shape[-1], betas.shape[-1]
    sizes = betas.shape[:-1]
    values = [np.moveaxis(betas[..., i], i, 0).reshape(sizes[i], -1)[:, 0] for i in range(num_betas)]
    pairs = [
        pair for pair in itertools.combinations(range(num_betas), 2) if all(len(values[i]) > 1 for i in pair)
    ]
    figure = new_figure(4.4 * num_layers, 3.8 * len(pairs))
    panels = figure.subplots(len(pairs), num_layers, squeeze=False)
    for row, (low, high) in zip(panels, pairs, strict=True):
        nearest = [int(np.argmin(np.abs(np.log(np.maximum(v, 1e-12))))) for v in values]
        cut = tuple(slice(None) if i in (low, high) else nearest[i] for i in range(num_betas))
        for layer, axes in enumerate(row):
            image = axes.imshow(rates[(*cut, layer)].T, origin="lower", cmap="magma", aspect="auto", vmin=0.0)
            short = rate_name(layer, names).partition(" of ")[0] if names else f"$R_{{{layer + 1}}}$"
            figure.colorbar(image, ax=axes, label=f"{short} (nats per image)")
            for set_ticks, set_label, axis in (
                (axes.set_xticks, axes.set_xlabel, low),
                (axes.set_yticks, axes.set_ylabel, high),
            ):
                shown = range(0, len(values[axis]), max(1, (len(values[axis]) - 1) // 4))
                set_ticks(list(shown), [f"{values[axis][i]:.2g}" for i in shown])
                shared = f"$\\beta$ of {group_label(beta_names[axis])}" if beta_names else None
                set_label(shared or f"$\\beta_{{{axis + 1}}}$")
            name = group_label(names[layer]) if names else f"$z_{{{layer + 1}}}$"
            axes.set_title(f"rate of {name}", fontsize=11)
    figure.suptitle(title)
    figure.savefig(os.fspath(file), dpi=DPI)


def rate_distortion(table: Table, baseline: Table | None, title: str, file: PathLike) -> None:
    """The rate–distortion plane of a grid, the conventional β-VAE and the L = 1 baseline in it.

    Args:
      table: of any number of layers.
      baseline: of a grid with L = 1, or None.
      title: said above.
      file: PNG to write.
    """
    figure = new_figure(6.4, 4.8)
    axes = figure.subplots()
    axes.plot(
        table["rates_nats"].sum(axis=-1).ravel(),
        table["distortion_nats"].ravel(),
        ".",
        ms=4,
        color=GUIDE_COLOR,
        label="one model each, any betas",
    )
    curves = {"all betas equal ($\\beta$-VAE)": (table, LAYER_COLORS[1], "o-")}
    if baseline is not None:
        curves["one layer, L = 1"] = (baseline, LAYER_COLORS[2], "s-")
    for label, (of_curve, color, style) in curves.items():
        even = _even(of_curve)
        if not len(even["betas"]):  # betas that were found are never equal
            continue
        total = even["rates_nats"].sum(axis=-1)
        axes.plot(total, even["distortion_nats"], style, color=color, ms=5, lw=1.4, label=label)
    even = _even(table)
    at_one = np.isclose(even["betas"][:, 0], 1.0)
    if at_one.any():
        rate, distortion = even["rates_nats"][at_one][0].sum(), even["distortion_nats"][at_one][0]
        axes.plot(rate, distortion, "*", ms=15, color=DISTORTION_COLOR, label="all betas 1", zorder=3)
        elbo_lines(axes, float(rate + distortion))
    axes.set_xlabel("total rate $R_1 + \\dots + R_L$ (nats per image)")
    axes.set_ylabel("distortion D (nats per image)")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(title, fontsize=11)
    figure.savefig(os.fspath(file), dpi=DPI)


def _even(table: Table) -> dict[str, np.ndarray]:
    """The models whose betas are all equal: means over seeds, in the order of their beta, `[n, …]`.

    Where the betas were solved for they are those found, each seed's own; no seed without betas counts.
    """
    num_betas, num_rates = table["betas"].shape[-1], table["rates_nats"].shape[-1]
    betas = _seed_mean(table["betas"]).reshape(-1, num_betas)
    spread, largest = np.ptp(table["betas"], axis=-1), table["betas"].max(axis=-1)
    is_even = ((spread <= SAME_BETA * largest) | np.isnan(spread)).all(axis=-1).ravel()
    means = {
        "betas": betas,
        "rates_nats": _seed_mean(table["rates_nats"]).reshape(-1, num_rates),
        "distortion_nats": _seed_mean(table["distortion_nats"], axis=-1).reshape(-1),
    }
    found = np.flatnonzero(is_even & np.isfinite(betas).all(axis=1))
    found = found[np.argsort(betas[found, 0])]
    return {name: values[found] for name, values in means.items()}


def _seed_mean(values: np.ndarray, axis: int = -2) -> np.ndarray:
    """Over the seeds that did not diverge; NaN where none is left."""
    ok = np.isfinite(values)
    count = ok.sum(axis=axis)
    total = np.where(ok, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
