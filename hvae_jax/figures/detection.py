"""Figures of how models tell images from elsewhere from their own.

Every function writes NAME.png and NAME.pdf.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from hvae_jax.evaluation.choices import Guidance
from hvae_jax.evaluation.detection import Detection, OfScore
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.figures.applications import STAR, best_place, only_outer_labels, rate_map
from hvae_jax.figures.style import GUIDE_COLOR, LAYER_COLORS, new_figure, save, wrap

# Of more ratios a figure shows as many, at even distances, and the score that was chosen.
MAX_RATIOS = 3
NUM_BINS, MAX_TICKS = 60, 9
# Differences of AUROC that are much smaller are no colour.
MIN_SCALE = 0.02
_LABELS: Mapping[str, str] = {
    "negative_elbo": "−ELBO",
    "negative_importance_weighted_bound": "−importance-weighted bound",
}


def score_label(score: str) -> str:
    """A score as axes and tables say it.

    Example:
      >>> score_label("llr_above_1"), score_label("negative_elbo_above_12"), score_label("negative_elbo")
      ('LLR$^{>1}$', '−L$^{>12}$', '−ELBO')
    """
    if score in _LABELS:
        return _LABELS[score]
    return re.sub(r"^.*_(\d+)$", ("LLR" if score.startswith("llr") else "−L") + r"$^{>\1}$", score)


def shown_scores(detection: Detection) -> list[str]:
    """The scores that figures show: both bounds, the ratios, or some of many, and the chosen one."""
    names = [entry.score for entry in detection.sets[0].scores]
    ratios = [name for name in names if name.startswith("llr")]
    places = np.unique(np.linspace(0, len(ratios) - 1, min(len(ratios), MAX_RATIOS)).round().astype(int))
    shown = {*_LABELS, *(ratios[place] for place in places), detection.chosen}
    return [name for name in names if name in shown]


def histograms(
    detection: Detection, scores: Mapping[str, np.ndarray], title: str, file: pathlib.Path
) -> None:
    """How the scores of a model's own test images and of each set lie beside each other.

    Args:
      detection: content of the model's ood.json.
      scores: of its ood.npz.
      title: of the figure.
      file: to write, without its ending.
    """
    names, shown = [entry.score for entry in detection.sets[0].scores], shown_scores(detection)
    columns = 3 if len(shown) in (3, 5, 6) else min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = new_figure(5.4 * columns, 2.9 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, shown, strict=False):
        column = names.index(name)
        own = scores["inside_test"][:, column]
        sets = [
            (of_set.name, of_set.by(name), scores[f"outside_{number}_test"][:, column])
            for number, of_set in enumerate(detection.sets, start=1)
        ]
        _histogram(axes, own, sets)
        chosen = " (chosen by validation)" if name == detection.chosen else ""
        axes.set_xlabel(f"{score_label(name)} (nats){chosen}")
    figure.suptitle(wrap(title, 5.4 * columns), fontsize=11)
    save(figure, file)


def detection_maps(models: Sequence[Evaluated], guidance: Guidance, file: pathlib.Path) -> None:
    """The plane of rates, a row for each set and a column for each score, coloured by the test AUROC.

    A row has one scale of colours, so that scores can be compared.
    """
    found = [model.detection for model in models if model.detection is not None]
    chosen = {detection.chosen for detection in found}
    shown = [
        entry.score for entry in found[0].sets[0].scores if entry.score in {*shown_scores(found[0]), *chosen}
    ]
    sets = [of_set.name for of_set in found[0].sets]
    figure = new_figure(4.3 * len(shown), 3.7 * len(sets) + 0.4)
    panels = figure.subplots(len(sets), len(shown), sharex=True, sharey=True, squeeze=False)
    for row, name in enumerate(sets):
        areas = {
            score: [detection.sets[row].by(score).test.auroc.value for detection in found] for score in shown
        }
        highest = max(map(max, areas.values()))
        limits = min(*map(min, areas.values()), highest - MIN_SCALE), highest
        for axes, (score, values) in zip(panels[row], areas.items(), strict=True):
            rate_map(figure, axes, models, values, "AUROC", limits)
            if entry := guidance.applications.detection:
                axes.plot(*best_place(models, entry), **STAR, label="best betas for detection")
            axes.set_title(f"{name}: {score_label(score)}", fontsize=11)
            if row < len(sets) - 1:
                axes.set_xlabel("")
        only_outer_labels(panels[row])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    save(figure, file)


def _histogram(axes: Axes, own: np.ndarray, sets: Sequence[tuple[str, OfScore, np.ndarray]]) -> None:
    finite = [values[np.isfinite(values)] for values in (own, *(values for *_, values in sets))]
    ends = [np.quantile(values, (0.002, 0.998)) for values in finite if len(values)]
    low, high = (float(end) for end in (min(e[0] for e in ends), max(e[1] for e in ends)))
    # Images from elsewhere may lie ten times as far off as one's own spread: linear there, then logarithmic.
    width = max(float(np.quantile(np.abs(finite[0]), 0.95)), 1e-3)
    inner = np.linspace(np.arcsinh(low / width), np.arcsinh(high / width), NUM_BINS + 1)
    edges = width * np.sinh(inner)
    edges = edges if np.all(np.diff(edges) > 0) else low + width * np.linspace(-0.5, 0.5, NUM_BINS + 1)

    def shares(values: np.ndarray) -> np.ndarray:
        """Of the images in each bin; those beyond the last ones are in these."""
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        return counts / len(values)

    axes.stairs(shares(own), edges, fill=True, color=GUIDE_COLOR, alpha=0.55, label="own test images")
    for number, (name, entry, values) in enumerate(sets):
        color = LAYER_COLORS[number % len(LAYER_COLORS)]
        auroc = f"{name}, AUROC {entry.test.auroc.value:.3f}"
        axes.stairs(shares(values), edges, color=color, lw=1.4, label=auroc)
    axes.set_xscale("asinh", linear_width=width)
    axes.set_xlim(edges[0], edges[-1])
    ticks = _ticks(edges[0], edges[-1], width)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylabel("share of images")
    axes.legend(frameon=False, fontsize=8)


def _ticks(low: float, high: float, width: float) -> list[float]:
    """Round numbers on a scale that is linear within `width` of 0 and logarithmic beyond, not too close."""
    powers = np.arange(-3, 10)
    rising = np.sort(np.concatenate([step * 10.0**powers for step in (1, 2, 5)]))
    least = (np.arcsinh(high / width) - np.arcsinh(low / width)) / MAX_TICKS
    ticks: list[float] = []
    # Zero first, then the larger ones of either side, where there is room.
    for tick in (0.0, *(sign * size for size in rising[::-1] for sign in (1, -1))):
        place = np.arcsinh(tick / width)
        if low <= tick <= high and all(abs(place - np.arcsinh(t / width)) >= least for t in ticks):
            ticks.append(float(tick))
    return sorted(ticks)
