"""Figures of evaluated models: where in the space of rates each application is served best.

Every function writes NAME.png and NAME.pdf. A dot is a model; a star is the best betas for an
application, chosen on the validation split; numbers are those of the test split.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_jax import bounds
from hvae_jax.evaluation.choices import Entry, Guidance
from hvae_jax.evaluation.guidance import APPLICATIONS
from hvae_jax.evaluation.metrics import AnyApplication
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.figures.style import (
    DISTORTION_COLOR,
    GUIDE_COLOR,
    LAYER_COLORS,
    channels_note,
    image_width,
    layer_label,
    new_figure,
    save,
    tile,
    wrap,
)

DIAGONAL_COLOR = LAYER_COLORS[1]
COLOR_MAP = "viridis"
STAR = {"marker": "*", "ms": 19, "mfc": "none", "mec": "black", "mew": 1.4, "ls": "none", "zorder": 5}
SHORT_NAMES: Mapping[AnyApplication, str] = {
    "reconstruction": "PSNR (dB)",
    "representation": "accuracy from samples of $z_L$",
    "generation": "inception score of {pixels} (own classifier)",
    "detection": "mean AUROC of images from elsewhere",
}


def short_name(application: AnyApplication, models: Sequence[Evaluated]) -> str:
    """An application's number as axes say it, with what the samples of these models are."""
    return SHORT_NAMES[application].format(pixels=models[0].metrics.generation.test.pixels or "samples")


def has_accuracies(model: Evaluated) -> bool:
    """Whether classes were read from its latents."""
    return model.metrics.representation.layers[-1].samples is not None


def rate_axes(models: Sequence[Evaluated]) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Where models lie in the plane of rates: that of the layers below the top across, the top's upwards.

    With one layer, its rate across and the distortion upwards.

    Returns:
      x and y `[M]`, nats, and a label for each.
    """
    rates = np.asarray([model.rates_nats for model in models])
    num_layers = rates.shape[1]
    if num_layers == 1:
        distortion = [model.metrics.rates.test.distortion_nats.value for model in models]
        return rates[:, 0], np.asarray(distortion), "rate $R_1$ (nats)", "distortion D (nats)"
    below = "$R_1$" if num_layers == 2 else f"$R_1 + \\dots + R_{{{num_layers - 1}}}$"
    return rates[:, :-1].sum(axis=1), rates[:, -1], f"rate {below} (nats)", f"rate $R_{num_layers}$ (nats)"


def application_maps(models: Sequence[Evaluated], guidance: Guidance, file: pathlib.Path) -> None:
    """The plane of rates, once for each application, coloured by how well it is served."""
    chosen = dict(guidance.applications.items())
    figure = new_figure(4.4 * len(chosen), 4.1)
    panels = figure.subplots(1, len(chosen), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (application, entry) in zip(panels, chosen.items(), strict=True):
        values = [model.scored.test(application) for model in models]
        rate_map(figure, axes, models, values, short_name(application, models))
        x, y = best_place(models, entry)
        axes.plot(x, y, **STAR, label="best betas")
        axes.set_title(application, fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    only_outer_labels(panels)
    save(figure, file)


def score_factor_maps(models: Sequence[Evaluated], guidance: Guidance, file: pathlib.Path) -> None:
    """The plane of rates coloured by the two factors of the inception score."""
    figure = new_figure(9.2, 4.1)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    scores = [model.metrics.generation.test.scores for model in models]
    judged = [of_model.judged if of_model else None for of_model in scores]
    factors = {
        "diversity $e^{H[p(y)]}$": [one.diversity if one else np.nan for one in judged],
        "sharpness $e^{-E H[p(y|x)]}$": [one.sharpness if one else np.nan for one in judged],
    }
    for axes, (label, values) in zip(panels, factors.items(), strict=True):
        rate_map(figure, axes, models, values, label)
        if entry := guidance.applications.generation:
            x, y = best_place(models, entry)
            axes.plot(x, y, **STAR, label="best betas for generation")
        axes.set_title(label.partition(" ")[0], fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    only_outer_labels(panels)
    save(figure, file)


def metric_by_total_rate(models: Sequence[Evaluated], guidance: Guidance, file: pathlib.Path) -> None:
    """Each application's number against the total rate; the models with equal betas stand out."""
    chosen = dict(guidance.applications.items())
    figure = new_figure(4.4 * len(chosen), 3.9)
    panels = figure.subplots(1, len(chosen), sharex=True, squeeze=False)[0]
    total = np.asarray([sum(model.rates_nats) for model in models])
    for axes, (application, entry) in zip(panels, chosen.items(), strict=True):
        values = np.asarray([model.scored.test(application) for model in models])
        _plot_models(axes, models, total, values)
        axes.plot(sum(entry.best.rates_nats), entry.best.test, **STAR)
        axes.set_xlabel("total rate $R_1 + \\dots + R_L$ (nats)")
        axes.set_ylabel(short_name(application, models))
        axes.set_title(application, fontsize=11)
        axes.grid(alpha=0.2)
    panels[0].plot([], [], **{**STAR, "ms": 12}, label="best by validation")
    panels[0].legend(frameon=False, fontsize=9, loc="best")
    save(figure, file)


def accuracy_by_information(models: Sequence[Evaluated], file: pathlib.Path) -> None:
    """Accuracy from the top layer against I_q(y; z_L) and against R_L, under the bound's curve.

    Samples must stay below the curve in both panels; means are drawn in a weaker shade since the bound
    does not speak of them. Information, rate and curve are those of the images that are scored.
    """
    figure = new_figure(9.2, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    informed = [model.metrics.information.test for model in models]
    # Version 0.1.0 did not set them apart.
    scored = [info.scored or info.whole for info in informed]
    labels = [population.label for population in scored if population.label]
    histogram = labels[0].label_histogram
    entropy = bounds.label_entropy(histogram)
    panel_of = {
        "information $I_q(y; z_L)$ (nats)": [label.label_information_nats.value for label in labels],
        "rate $R_L$ of the top layer (nats)": [population.top_rate_nats for population in scored],
    }
    tops = [model.metrics.representation.layers[-1] for model in models]
    from_means, from_samples = (
        [probes.best.test_accuracy.value for probes in read if probes]
        for read in ([top.means for top in tops], [top.samples for top in tops])
    )
    for axes, (label, values) in zip(panels, panel_of.items(), strict=True):
        x = np.asarray(values)
        curve = np.linspace(0, max(1.15 * entropy, 1.04 * x.max()), 400)
        axes.plot(
            curve,
            bounds.max_accuracy(curve, histogram),
            color=DISTORTION_COLOR,
            lw=1.5,
            label="bound for samples, $f^{-1}$",
        )
        axes.axvline(entropy, color=GUIDE_COLOR, lw=1, ls=":", label=f"H[p(y)] = {entropy:.2f} nats")
        axes.plot(
            x,
            from_means,
            "s",
            ms=4,
            mfc="none",
            mec=GUIDE_COLOR,
            alpha=0.8,
            label="from posterior means",
        )
        axes.plot(
            x,
            from_samples,
            "o",
            ms=5,
            color=LAYER_COLORS[0],
            mec="white",
            mew=0.4,
            label="from posterior samples",
        )
        axes.set_xlabel(label)
        axes.set_ylim(0, 1.03)
        axes.set_xlim(0, curve[-1])
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("test accuracy of the class read from $z_L$")
    panels[1].legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, file)


def distortion_by_rate(models: Sequence[Evaluated], file: pathlib.Path) -> None:
    """Distortion against total rate: on a dotted line D + ΣR is the same, and none can go below H."""
    figure = new_figure(5.8, 4.6)
    axes = figure.subplots()
    rates = [model.metrics.rates.test for model in models]
    total = np.asarray([entry.total_rate_nats.value for entry in rates])
    distortion = np.asarray([entry.distortion_nats.value for entry in rates])
    _plot_models(axes, models, total, distortion)
    right, top = 1.08 * total.max(), 1.1 * distortion.max()
    line = np.asarray([0.0, right])
    best = (distortion + total).min()
    for offset in np.linspace(0, max(top, right), 7)[:-1]:
        axes.plot(line, best + offset - line, color=GUIDE_COLOR, lw=0.7, ls=":", zorder=0)
    axes.plot([], [], color=GUIDE_COLOR, lw=0.7, ls=":", label="equal ELBO, D + ΣR")
    axes.plot(line, best - line, color=GUIDE_COLOR, lw=1.2, ls="--", zorder=0, label=f"best: {best:.1f} nats")
    if found := models[0].metrics.reconstruction.test.entropy:
        entropy = found.empirical_data_entropy_nats
        axes.plot(line, entropy - line, color=DISTORTION_COLOR, lw=1.4,
                  label=f"bound H − ΣR, H = {entropy:.2f} nats")  # fmt: skip
    axes.set_xlim(0, right)
    axes.set_ylim(min(0.0, 1.1 * distortion.min()), top)
    axes.set_xlabel("total rate $R_1 + \\dots + R_L$ (nats)")
    axes.set_ylabel("distortion D (nats)")
    axes.legend(frameon=False, fontsize=9)
    save(figure, file)


def trade_off(models: Sequence[Evaluated], guidance: Guidance, file: pathlib.Path) -> None:
    """All three applications at once: PSNR across, accuracy upwards, the inception score as colour."""
    figure = new_figure(6.4, 4.8)
    axes = figure.subplots()
    first, second, third = APPLICATIONS
    models = [model for model in models if all(map(model.scored.serves, APPLICATIONS))]
    x, y, color = (np.asarray([m.scored.test(name) for m in models]) for name in (first, second, third))
    order = np.argsort(color)
    dots = axes.scatter(x[order], y[order], c=color[order], cmap=COLOR_MAP, s=34, ec="white", lw=0.4)
    figure.colorbar(dots, label=short_name(third, models))
    offsets = dict(zip(APPLICATIONS, ((-10, -16), (8, 8), (8, -14)), strict=True))
    for application in APPLICATIONS:
        entry = guidance.applications.get(application)
        assert entry is not None
        offset, group = offsets[application], [m for m in models if m.name in entry.best.models]
        across, up = (float(np.mean([m.scored.test(name) for m in group])) for name in (first, second))
        axes.plot(across, up, **STAR)
        axes.annotate(
            f"best for {application}", (across, up), xytext=offset, textcoords="offset points", fontsize=9,
            ha="right" if across > x.mean() else "left", zorder=6,
        )  # fmt: skip
    axes.set_xlabel(SHORT_NAMES[first])
    axes.set_ylabel(SHORT_NAMES[second])
    axes.grid(alpha=0.2)
    axes.margins(0.09)
    save(figure, file)


def pictures(model: Evaluated, title: str, file: pathlib.Path) -> None:
    """What a model does: test images, their reconstructions from each layer down, samples, neighbours."""
    arrays = model.pictures()
    rows = {"test images": arrays["images"]}
    from_layers = model.metrics.reconstruction.test.layers or range(1, model.num_layers + 1)
    for layer, images in zip(from_layers, arrays["reconstructions"], strict=True):
        which = (
            "all layers"
            if layer == 1
            else f"$z_{{{layer}}}$" + ("" if layer == model.num_layers else " and up")
        )
        rows[f"reconstructed from {which}"] = images
    samples = f"samples ({model.metrics.generation.test.pixels or 'means'})"
    rows[samples] = arrays["samples"]
    rows["nearest training images"] = arrays["neighbors"]
    size, left, top, gap = 0.62, 2.35, 0.55, 0.16
    num_columns = max(map(len, rows.values()))  # there may be fewer test images than samples
    across = image_width(arrays["images"], size)
    width = left + across * num_columns + 0.1
    height = top + size * len(rows) + gap + 0.1
    figure = Figure(figsize=(width, height))
    below = height - top
    for label, images in rows.items():
        below -= size + (gap if label == samples else 0.0)
        place = (left / width, below / height, across * len(images) / width, 0.94 * size / height)
        axes = figure.add_axes(place)
        axes.imshow(
            tile(images / 255), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="auto"
        )
        axes.set_axis_off()
        middle = (below + 0.47 * size) / height
        figure.text((left - 0.12) / width, middle, label, ha="right", va="center", fontsize=9)
    title = wrap(title + channels_note(arrays["images"]), width)
    figure.text(0.5, 1 - 0.3 / height, title, ha="center", va="center", fontsize=11)
    save(figure, file)


def latents(model: Evaluated, title: str, file: pathlib.Path) -> None:
    """Each layer's posterior means along their two main directions; colour and number are the class."""
    arrays, layers = model.pictures(), model.metrics.representation.layers
    figure = new_figure(4.3 * len(layers), 4.2)
    row = figure.subplots(1, len(layers), squeeze=False)[0]
    labels = arrays["latent_labels"]
    for place, (layer, axes) in enumerate(zip(layers, row, strict=True), start=1):
        points = arrays[f"latent_coordinates_{place}"]
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
        for number, label in enumerate(np.unique(labels)):
            own = points[labels == label]
            color, marker = LAYER_COLORS[number % len(LAYER_COLORS)], "os^D"[number // len(LAYER_COLORS) % 4]
            axes.plot(own[:, 0], own[:, 1], marker, ms=3, color=color, alpha=0.45, mew=0)
        for label in np.unique(labels):
            centre = np.median(points[labels == label], axis=0)
            box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": GUIDE_COLOR, "lw": 0.8, "alpha": 0.9}
            axes.annotate(str(label), centre, ha="center", va="center", fontsize=9, bbox=box)
        shares = layer.principal_component_shares
        name = layer_label(layer.layer, model.num_layers).partition(" of ")[2]
        axes.set_title(f"means of {name}", fontsize=11)
        axes.set_xlabel(f"first principal component ({shares[0]:.0%})")
        if len(shares) > 1:
            axes.set_ylabel(f"second ({shares[1]:.0%})")
    figure.suptitle(wrap(title, 4.3 * len(layers)), fontsize=11)
    save(figure, file)


def rate_map(
    figure: Figure,
    axes: Axes,
    models: Sequence[Evaluated],
    values: Sequence[float],
    label: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """The plane of rates with a dot for each model, coloured by its value; the way of equal betas in it.

    Args:
      figure, axes: to draw on.
      models: the dots.
      values: one for each.
      label: of the colours.
      limits: of the colours; those of the values by default.
    """
    low, high = (None, None) if limits is None else limits
    x, y, x_label, y_label = rate_axes(models)
    order = np.argsort(values)
    order = order[np.isfinite(np.asarray(values)[order])]  # of a model without this number there is no dot
    dots = axes.scatter(
        x[order], y[order], c=np.asarray(values)[order], cmap=COLOR_MAP, vmin=low, vmax=high, s=34,
        ec="white", lw=0.4, zorder=3,
    )  # fmt: skip
    figure.colorbar(dots, ax=axes, label=label, pad=0.02)
    equal: dict[tuple[float, ...], list[int]] = {}
    for number, model in enumerate(models):
        if _has_equal_betas(model) and model.num_layers > 1:
            equal.setdefault(model.betas, []).append(number)
    if len(equal) > 1:
        way = np.asarray([[x[group].mean(), y[group].mean()] for _, group in sorted(equal.items())])
        axes.plot(way[:, 0], way[:, 1], color=DIAGONAL_COLOR, lw=1.6, zorder=2, label="equal betas")
    # Rates span from collapsed to tens of nats: linear below 1 nat, logarithmic above.
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    axes.set_xlim(-0.08, 1.35 * max(x.max(), 1.0))
    if models[0].num_layers > 1:
        axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
        axes.set_ylim(-0.08, 1.35 * max(y.max(), 1.0))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _plot_models(axes: Axes, models: Sequence[Evaluated], x: np.ndarray, y: np.ndarray) -> None:
    """A dot for each model; those with equal betas stand out. The legend names what is there."""
    is_equal = np.array([_has_equal_betas(model) for model in models], dtype=bool)
    for which, marker, style in (
        (~is_equal, "o", {"ms": 4, "color": LAYER_COLORS[0], "alpha": 0.6, "mew": 0}),
        (is_equal, "D", {"ms": 5.5, "color": DIAGONAL_COLOR, "mec": "white", "mew": 0.5}),
    ):
        if which.any():
            label = "equal betas" if marker == "D" else "independent betas"
            axes.plot(x[which], y[which], marker, label=label, **style)


def best_place(models: Sequence[Evaluated], entry: Entry) -> tuple[float, float]:
    """Where an application's best models lie in it, the mean over seeds."""
    x, y, _, _ = rate_axes([model for model in models if model.name in entry.best.models])
    return float(x.mean()), float(y.mean())


def _has_equal_betas(model: Evaluated) -> bool:
    return bool(np.allclose(model.betas, model.betas[0], rtol=1e-6))


def only_outer_labels(panels: np.ndarray) -> None:
    """Leaves the label of the vertical axis to the first of panels side by side."""
    for axes in panels[1:]:
        axes.set_ylabel("")
