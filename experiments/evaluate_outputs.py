"""What `experiments.evaluate` writes beside the models: table, guidance, bounds, figures, report."""

import pathlib
from collections.abc import Sequence

from experiments import evaluate_ood
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import bound_checks, guidance, guidance_text, ood_files, tables
from hvae_jax.evaluation.bound_checks import Report, Violation
from hvae_jax.evaluation.choices import Guidance
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.figures import applications as figures
from hvae_jax.figures import detection as detection_figures
from hvae_jax.figures import report
from hvae_jax.figures.style import describe_betas, group_label

GUIDANCE_FILE, GUIDANCE_TEXT, BOUNDS_FILE = "guidance.json", "guidance.md", "bounds.json"
# What DIR gets; none of it may be a folder.
FILES = (
    tables.TABLE_FILE,
    GUIDANCE_FILE,
    GUIDANCE_TEXT,
    BOUNDS_FILE,
    report.REPORT_FILE,
    ood_files.TABLE_FILE,
)
# What `draw` draws, without ending.
DRAWN = (
    *("accuracy_by_information", "distortion_by_rate", "application_maps", "metric_by_total_rate"),
    *("score_factor_maps", "trade_off", "detection_maps", "pictures_*", "latents_*"),
)


def check(workdir: pathlib.Path) -> None:
    """Raises RunError where what is to be written is in the way of itself, before any work."""
    figures_folder = workdir / records.FIGURES_FOLDER
    if figures_folder.exists() and not figures_folder.is_dir():
        raise RunError(f"{figures_folder} is a file, but figures are to be drawn into a folder of that name")
    for name in FILES:
        if (workdir / name).is_dir():
            raise RunError(f"{workdir / name} is a folder, but a file of that name is to be written")


def write(workdir: pathlib.Path, models: Sequence[Evaluated], content: Guidance) -> Report:
    """Writes the table, the guidance, bounds, figures and the report of evaluated models.

    Args:
      workdir: of the run or grid.
      models: evaluated.
      content: of guidance.json.

    Returns:
      content of bounds.json.
    """
    tables.write_table(workdir, models)
    if any(model.detection for model in models):
        ood_files.write_table(workdir, models)
    records.write_json(workdir / GUIDANCE_FILE, to_plain(content))
    records.write_text(workdir / GUIDANCE_TEXT, guidance_text.to_markdown(content))
    bounds = check_bounds(models)
    records.write_json(workdir / BOUNDS_FILE, to_plain(bounds))
    draw(workdir / records.FIGURES_FOLDER, models, content)
    report.write(workdir, models, content)
    return bounds


def draw(folder: pathlib.Path, models: Sequence[Evaluated], content: Guidance) -> None:
    """Figures of all models together, and of the best for each application, as far as there are numbers."""
    folder.mkdir(exist_ok=True)
    # Those of an earlier evaluation: there may be fewer models now, and the best may be another.
    for kind in DRAWN:
        for file in folder.glob(f"{kind}.p[nd][gf]"):
            file.unlink()
    chosen = dict(content.applications.items())
    if all(figures.has_accuracies(model) for model in models):
        figures.accuracy_by_information(models, folder / "accuracy_by_information")
    figures.distortion_by_rate(models, folder / "distortion_by_rate")
    if len(models) > 1 and chosen:
        figures.application_maps(models, content, folder / "application_maps")
        figures.metric_by_total_rate(models, content, folder / "metric_by_total_rate")
        if "generation" in chosen:
            figures.score_factor_maps(models, content, folder / "score_factor_maps")
        if guidance.APPLICATIONS.keys() <= chosen.keys():
            figures.trade_off(models, content, folder / "trade_off")
        if all(model.detection for model in models):
            detection_figures.detection_maps(models, content, folder / "detection_maps")
    best = {f"best for {name}": (name, entry.best.models[0]) for name, entry in chosen.items()}
    if len(models) == 1:
        best = {"": ("model", models[0].name)}
    for words, (ending, name) in best.items():
        model = next(model for model in models if model.name == name)
        groups = model.metrics.rates.test.groups
        rates = ", ".join(f"{rate:.2f}" for rate in model.rates_nats)
        rates = f"rates ({rates})"
        if groups is not None:
            parts = [f"{group.rate_nats.value:.2f} ({group_label(group.name)})" for group in groups]
            rates = "rates " + ", ".join(parts)
        title = f"{words if len(models) > 1 else ''}: {describe_betas(model.betas)}, {rates} nats"
        title = title.removeprefix(": ")
        figures.pictures(model, title, folder / f"pictures_{ending}")
        figures.latents(model, title, folder / f"latents_{ending}")
        if ending == "detection" and len(models) > 1:
            evaluate_ood.draw_histograms(model, folder)


def check_bounds(models: Sequence[Evaluated]) -> Report:
    """Which bounds were checked, what that is worth, and what breaks one."""
    broken = [
        Violation(model.name, sentence)
        for model in models
        for sentence in bound_checks.violations(model.metrics)
    ]
    worth = bound_checks.worth([model.metrics for model in models])
    return Report(len(models), bound_checks.NUM_STANDARD_ERRORS, worth, tuple(broken))


def print_bounds(content: Report) -> None:
    """Prints what breaks a bound beyond its sampling error, and how much the checks are worth."""
    for entry in content.violations:
        print(f"violation in {entry.model}: {entry.sentence}")
    beyond = sum(kind.num_beyond_at_all for kind in content.bounds.values())
    print(
        f"Bounds checked on {content.num_models} models: {len(content.violations)} violations beyond "
        f"{content.num_standard_errors:g} standard errors; {beyond} numbers lie above a bound at all."
    )
    for kind in content.bounds.values():
        print(f"  {bound_checks.describe(kind)}")
