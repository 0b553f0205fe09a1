"""Figures of bits on disk: what each layer takes of a file, against its rate."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hvae_jax.figures.style import DPI, GUIDE_COLOR, PathLike, layer_color, new_figure

MARKERS = "osD^vP"
# Of rates below it no percentages are drawn, and the axes are linear.
SMALL_BITS = 1.0


def bits_against_rates(rows: Sequence[Mapping[str, Any]], file: PathLike) -> None:
    """A dot for every layer of every file: its bits on disk against its rate, and below what they differ by.

    Bars are two standard errors over the images.

    Args:
      rows: of files, each with `data`, and `rates_bits`, `net_bits` and `difference_error_bits` `[L]`.
      file: PNG to write.
    """
    figure = new_figure(6.0, 6.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    sets = list(dict.fromkeys(row["data"] for row in rows))
    for row in rows:
        marker = MARKERS[sets.index(row["data"]) % len(MARKERS)]
        for i, (rate, net, error) in enumerate(
            zip(row["rates_bits"], row["net_bits"], row["difference_error_bits"], strict=True)
        ):
            style = {
                "color": layer_color(i + 1),
                "marker": marker,
                "ms": 5,
                "ls": "",
                "mec": "white",
                "mew": 0.5,
            }
            above.plot(rate, net, **style)
            if rate >= SMALL_BITS:
                below.errorbar(rate, 100.0 * (net / rate - 1.0), 200.0 * error / rate, lw=0.8, **style)
    every = np.concatenate([[*row["rates_bits"], *row["net_bits"]] for row in rows])
    ends = [-0.3 * SMALL_BITS, every.max() * 1.25]
    above.plot(ends, ends, color=GUIDE_COLOR, lw=1.0, zorder=0)
    # A layer may take nothing at all, or by chance a little less.
    for scale in (above.set_xscale, above.set_yscale):
        scale("symlog", linthresh=SMALL_BITS, linscale=0.5)
    above.set(xlim=ends, ylim=ends, ylabel="bits on disk, per image")
    for edge in (-1.0, 0.0, 1.0):
        below.axhline(edge, color=GUIDE_COLOR, lw=1.0, ls="--" if edge else "-", zorder=0)
    below.set_ylim(-4.0, 4.0)
    below.set(xlabel="rate in the log, bits per image", ylabel="difference (%)")
    for layer in range(1, max(len(row["rates_bits"]) for row in rows) + 1):
        above.plot([], [], color=layer_color(layer), marker="o", ls="", label=f"$z_{layer}$")
    for number, name in enumerate(sets):
        above.plot([], [], color=GUIDE_COLOR, marker=MARKERS[number % len(MARKERS)], ls="", label=name)
    above.legend(frameon=False, fontsize=9)
    for axes in (above, below):
        axes.xaxis.set_major_formatter("{x:g}")
    above.yaxis.set_major_formatter("{x:g}")
    figure.savefig(os.fspath(file), dpi=DPI)
