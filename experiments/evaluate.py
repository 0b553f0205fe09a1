"""Evaluate a run or a grid for reconstruction, representation learning and generation.

    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=grids/digits --baseline=grids/digits_one_layer --check_bounds
    python -m experiments.evaluate --workdir=grids/fashion --repeats=grids/fashion_seed_1

Every model gets metrics.json and pictures.npz in its run folder; DIR gets evaluation.csv, guidance.json,
guidance.md, bounds.json, figures/ and report.html. A model that was already evaluated with the same settings,
of the same checkpoint and data and by the same version, is not evaluated again, so the same command resumes.
The data set's classifier is trained once, in DIR/classifiers. --repeats names a grid of the same models with
other seeds, over fewer betas if need be: the error bars of all betas then know the spread over seeds.
--data names data that moved. --check_bounds exits with status 1 if a model breaks a bound beyond its sampling
error. What the data do not allow, for want of labels, of a validation split or of images, is named.
"""

import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import evaluate_models, program
from experiments.evaluate_models import Evaluators, Reporter
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import bound_checks, classifier, guidance, guidance_text, results, tables
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.evaluation.sizes import Sizes
from hvae_jax.figures import applications as figures
from hvae_jax.figures import report

GUIDANCE_FILE, GUIDANCE_TEXT, BOUNDS_FILE = "guidance.json", "guidance.md", "bounds.json"
# What DIR gets; none of it may be a folder.
FILES = (tables.TABLE_FILE, GUIDANCE_FILE, GUIDANCE_TEXT, BOUNDS_FILE, report.REPORT_FILE)

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run or of a grid.", required=True)
_BASELINE = flags.DEFINE_string("baseline", None, "Folder of a run or grid with L = 1, to compare with.")
_REPEATS = flags.DEFINE_string("repeats", None, "Folder of a grid of the same models with other seeds.")
_SEEDS_FROM = flags.DEFINE_string(
    "seeds_from",
    None,
    "evaluation.csv of other models, whose spread over seeds stands in where these have one seed each.",
)
_DATA = flags.DEFINE_string("data", None, "A config.data.name instead of the runs' own, for data that moved.")
_CLASSIFIERS = flags.DEFINE_string("classifiers", None, "Where classifiers lie; DIR/classifiers by default.")
_CHECK_BOUNDS = flags.DEFINE_boolean("check_bounds", False, "Exit with status 1 if a bound is broken.")
_SIZES = {
    name: flags.DEFINE_integer(name, default, description)
    for name, default, description in (
        ("num_draws", 5, "Posterior draws per image."),
        ("num_samples", 10_000, "Generated images per split."),
        ("num_splits", 5, "Parts of them for the score's error bar."),
        ("max_fit_images", 2000, "Training images that classifiers of latents are fitted on."),
        ("max_scored_images", 2000, "Images that they, their bound, SSIM, precision and recall read."),
    )
}


def main(arguments: list[str]) -> None:
    """Reads the flags, evaluates what is not yet evaluated, compares, draws, checks."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    require_packages()
    workdir = program.folder_flag("workdir", _WORKDIR.value)
    sizes = Sizes(**{name: holder.value for name, holder in _SIZES.items()})
    runs = results.find_runs(workdir)
    baseline_folder, repeats_folder = (
        program.folder_flag(holder.name, holder.value) if holder.value else None
        for holder in (_BASELINE, _REPEATS)
    )
    baseline_runs = evaluate_models.find_baseline(baseline_folder, runs) if baseline_folder else None
    repeats = evaluate_models.find_repeats(repeats_folder, runs) if repeats_folder else None
    others = tables.read_table(_SEEDS_FROM.value) if _SEEDS_FROM.value else []
    if _CLASSIFIERS.value:
        classifiers = program.folder_flag("classifiers", _CLASSIFIERS.value)
    else:
        classifiers = workdir / "classifiers"
    classifier.check_folder(classifiers)
    check_outputs(workdir)

    reporter = Reporter()
    evaluators = Evaluators(classifiers, sizes, _DATA.value, reporter)
    folders = [folder for folder in (workdir, baseline_folder, repeats_folder) if folder]
    with evaluate_models.locked(folders):
        models = evaluate_models.evaluate_runs(runs, evaluators, reporter)
        if repeats:
            repeated = evaluate_models.evaluate_runs(repeats, evaluators, reporter)
            models += [m._replace(name=evaluate_models.name_repeat(m.folder)) for m in repeated]
        baseline = evaluate_models.evaluate_runs(baseline_runs, evaluators, reporter) if baseline_runs else []
        is_kept = write(workdir, models, guidance.make_guidance(models, baseline, others))
    if runs.num_left_out:
        print(f"{runs.num_left_out} models of the grid diverged or are not trained yet; they are left out")
    print(f"{len(models)} model{'s' * (len(models) > 1)}. Everything is in {workdir}")
    if _CHECK_BOUNDS.value and not is_kept:
        sys.exit(1)


def write(workdir: pathlib.Path, models: Sequence[Evaluated], content: dict[str, Any]) -> bool:
    """Writes the table, the guidance, bounds, figures and the report; prints the guidance.

    Returns:
      whether all models keep all bounds, within their sampling error.
    """
    tables.write_table(workdir, models)
    records.write_json(workdir / GUIDANCE_FILE, content)
    text = guidance_text.to_markdown(content)
    records.write_text(workdir / GUIDANCE_TEXT, text)
    bounds = check_bounds(models)
    records.write_json(workdir / BOUNDS_FILE, bounds)
    draw(workdir / records.FIGURES_FOLDER, models, content)
    report.write(workdir, models, content)
    print(text)
    if _CHECK_BOUNDS.value:
        print_bounds(bounds)
    return not bounds["violations"]


def require_packages() -> None:
    """Raises RunError where the extra `evaluation` is not installed, before any work."""
    missing = [name for name in ("plotly", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f'evaluation needs {" and ".join(missing)}; pip install -e ".[evaluation]"')


def check_outputs(workdir: pathlib.Path) -> None:
    """Raises RunError where what is to be written is in the way of itself, before any work."""
    figures_folder = workdir / records.FIGURES_FOLDER
    if figures_folder.exists() and not figures_folder.is_dir():
        raise RunError(f"{figures_folder} is a file, but figures are to be drawn into a folder of that name")
    for name in FILES:
        if (workdir / name).is_dir():
            raise RunError(f"{workdir / name} is a folder, but a file of that name is to be written")


def draw(folder: pathlib.Path, models: Sequence[Evaluated], content: dict[str, Any]) -> None:
    """Figures of all models together, and of the best for each application, as far as there are numbers."""
    folder.mkdir(exist_ok=True)
    chosen = content["applications"]
    if all(figures.has_accuracies(model) for model in models):
        figures.accuracy_by_information(models, folder / "accuracy_by_information")
    figures.distortion_by_rate(models, folder / "distortion_by_rate")
    if len(models) > 1 and chosen:
        figures.application_maps(models, content, folder / "application_maps")
        figures.metric_by_total_rate(models, content, folder / "metric_by_total_rate")
        if "generation" in chosen:
            figures.score_factor_maps(models, content, folder / "score_factor_maps")
        if chosen.keys() == guidance.APPLICATIONS.keys():
            figures.trade_off(models, content, folder / "trade_off")
    best = {f"best for {name}": (name, entry["best"]["models"][0]) for name, entry in chosen.items()}
    if not best and len(models) == 1:
        best = {"": ("model", models[0].name)}
    for words, (ending, name) in best.items():
        model = next(model for model in models if model.name == name)
        betas = ", ".join(f"{beta:.3g}" for beta in model.betas)
        rates = ", ".join(f"{rate:.2f}" for rate in model.rates())
        title = f"{words if len(models) > 1 else ''}: betas ({betas}), rates ({rates}) nats".removeprefix(
            ": "
        )
        figures.pictures(model, title, folder / f"pictures_{ending}")
        figures.latents(model, title, folder / f"latents_{ending}")


def check_bounds(models: Sequence[Evaluated]) -> dict[str, Any]:
    """Content of bounds.json: which bounds were checked, what that is worth, and what breaks one."""
    return {
        "num_models": len(models),
        "num_standard_errors": bound_checks.NUM_STANDARD_ERRORS,
        "bounds": bound_checks.worth([model.metrics for model in models]),
        "violations": [
            {"model": model.name, "sentence": sentence}
            for model in models
            for sentence in bound_checks.violations(model.metrics)
        ],
    }


def print_bounds(content: dict[str, Any]) -> None:
    """Prints what breaks a bound beyond its sampling error, and how much the checks are worth."""
    for entry in content["violations"]:
        print(f"violation in {entry['model']}: {entry['sentence']}")
    beyond = sum(kind["num_beyond_at_all"] for kind in content["bounds"].values())
    print(
        f"Bounds checked on {content['num_models']} models: {len(content['violations'])} violations beyond "
        f"{content['num_standard_errors']:g} standard errors; {beyond} numbers lie above a bound at all."
    )
    for kind in content["bounds"].values():
        print(f"  {bound_checks.describe(kind)}")


if __name__ == "__main__":
    program.run(main)
