"""The figures of a run: its way, its targets, what its model reconstructs and samples."""

import pathlib

from experiments import pictures
from hvae_jax import records
from hvae_jax.evaluation.metrics import Rates, TargetReport
from hvae_jax.experiment import Experiment
from hvae_jax.figures import runs as figures
from hvae_jax.figures import targets as target_figures
from hvae_jax.figures.style import describe_betas
from hvae_jax.training import Params


def draw(
    built: Experiment, params: Params, folder: pathlib.Path, test: Rates, report: TargetReport | None
) -> None:
    """The run's figures."""
    target = folder / records.FIGURES_FOLDER
    target.mkdir(exist_ok=True)
    title = (
        f"{built.dataset.title}, {built.model.config.inference.replace('_', ' ')}, "
        f"{_describe_betas(built, report)}"
    )

    train_log = records.load(folder)
    valid_log = records.load(folder, "valid") if len(built.dataset.valid.images) else None
    figures.training_curves(train_log, valid_log, title, target / "training.png", built.named_groups)
    figures.rate_distortion(train_log, test, title, target / "rate_distortion.png")
    if report and report.targets_nats is not None:
        grouped = built.named_groups if built.objective.beta_groups else None
        target_figures.way_to_targets(train_log, report.targets_nats, title, target / "targets.png", grouped)

    pictures.draw(built, params, title, target)


def _describe_betas(built: Experiment, report: TargetReport | None) -> str:
    """For titles: the betas, or what found them and which they are."""
    objective, in_groups = built.objective, bool(built.objective.beta_groups)
    betas = report.betas if report else objective.betas
    text = describe_betas(betas, built.named_groups.names if in_groups else None)
    if objective.free_nats:
        free = ", ".join(f"{nats:g}" for nats in dict.fromkeys(objective.free_nats))
        text += f", free nats {free}"
    return text if objective.control == "constant" else f"{objective.control.replace('_', ' ')}: {text}"
