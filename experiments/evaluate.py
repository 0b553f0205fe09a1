"""Evaluate a run or a grid for reconstruction, representation learning and generation.

    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=grids/digits --baseline=grids/digits_one_layer --check_bounds
    python -m experiments.evaluate --workdir=grids/fashion --repeats=grids/fashion_seed_1

Every model gets metrics.json and pictures.npz in its run folder; DIR gets evaluation.csv, guidance.json,
guidance.md, figures/ and report.html. A model that was already evaluated with the same settings is not
evaluated again, so the same command resumes. The data set's classifier is trained once, in
DIR/classifiers. --repeats names a grid of the same models with other seeds, over fewer betas if need be:
the error bars of its betas then know the spread over seeds. --check_bounds exits with status 1 if a model
breaks a bound beyond its sampling error.
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments import program
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import bound_checks, classifier, guidance, results
from hvae_jax.evaluation.applications import ModelEvaluator, Sizes
from hvae_jax.evaluation.results import Evaluated, Runs
from hvae_jax.experiment import Experiment
from hvae_jax.figures import applications as figures
from hvae_jax.figures import report

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run or of a grid.", required=True)
_BASELINE = flags.DEFINE_string("baseline", None, "Folder of a run or grid with L = 1, to compare with.")
_REPEATS = flags.DEFINE_string("repeats", None, "Folder of a grid of the same models with other seeds.")
_CLASSIFIERS = flags.DEFINE_string("classifiers", None, "Where classifiers lie; DIR/classifiers by default.")
_CHECK_BOUNDS = flags.DEFINE_boolean("check_bounds", False, "Exit with status 1 if a bound is broken.")
_SIZES = {
    name: flags.DEFINE_integer(name, default, description)
    for name, default, description in (
        ("num_draws", 5, "Posterior draws per image."),
        ("num_samples", 10_000, "Generated images per split."),
        ("num_splits", 5, "Parts of them for the score's error bar."),
        ("max_fit_images", 2000, "Training images that classifiers of latents are fitted on."),
        ("max_scored_images", 2000, "Images that they, SSIM, precision and recall are scored on."),
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
    baseline_runs = None
    if _BASELINE.value is not None:
        baseline_runs = results.find_runs(program.folder_flag("baseline", _BASELINE.value))
    repeats = None
    if _REPEATS.value is not None:
        repeats = find_repeats(program.folder_flag("repeats", _REPEATS.value), runs)
    classifiers = workdir / "classifiers" if _CLASSIFIERS.value is None else _CLASSIFIERS.value
    evaluators = Evaluators(program.folder_flag("classifiers", classifiers), sizes)
    models = evaluate_runs(runs, evaluators)
    if repeats:
        models += [m._replace(name=name_repeat(m.folder)) for m in evaluate_runs(repeats, evaluators)]
    baseline = evaluate_runs(baseline_runs, evaluators) if baseline_runs else []
    if any(model.num_layers != 1 for model in baseline):
        raise RunError(f"--baseline={_BASELINE.value} must hold models of one layer")

    results.write_table(workdir, models)
    content = guidance.make_guidance(models, baseline)
    records.write_json(workdir / "guidance.json", content)
    text = guidance.to_markdown(content)
    records.write_text(workdir / "guidance.md", text)
    draw(workdir / records.FIGURES_FOLDER, models, content)
    report.write(workdir, models, content)
    print(text)
    if runs.num_left_out:
        print(f"{runs.num_left_out} models of the grid diverged or are not trained yet; they are left out")
    print(f"{len(models)} models. Everything is in {workdir}")
    if _CHECK_BOUNDS.value and not check_bounds(models):
        sys.exit(1)


def require_packages() -> None:
    """Raises RunError where the extra `evaluation` is not installed, before any work."""
    missing = [name for name in ("plotly", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f'evaluation needs {" and ".join(missing)}; pip install -e ".[evaluation]"')


def find_repeats(folder: pathlib.Path, runs: Runs) -> Runs:
    """The runs in `folder`, which repeat some of `runs` with other seeds.

    Raises:
      RunError: they are other models, or the same seeds.
    """
    repeats = results.find_runs(folder)
    known = [records.read_json(run / records.CONFIG_FILE) for run in runs.folders]
    taken = {(*config["objective"]["betas"], config["training"]["seed"]) for config in known}
    for run in repeats.folders:
        config = records.read_json(run / records.CONFIG_FILE)
        if _shared(config) != _shared(known[0]):
            raise RunError(
                f"--repeats={folder} must differ from --workdir in betas and seeds only; {run} does not"
            )
        betas, seed = config["objective"]["betas"], config["training"]["seed"]
        if (*betas, seed) in taken:
            raise RunError(
                f"--repeats={folder}: {run} has betas {betas} and seed {seed}, as a run of --workdir has"
            )
    return repeats


def name_repeat(folder: pathlib.Path) -> str:
    """What a repeated model of a grid is called beside those that it repeats: grid/model."""
    return f"{folder.parents[1].name}/{folder.name}"


class Evaluators:
    """One evaluator for all models that differ in betas and seed only: data and programs stay."""

    def __init__(self, classifiers: pathlib.Path, sizes: Sizes) -> None:
        self._classifiers, self._sizes = classifiers, sizes
        self._shared: str | None = None
        self._current: tuple[Experiment, ModelEvaluator, dict[str, Any]] | None = None

    def get(self, folder: pathlib.Path) -> tuple[Experiment, ModelEvaluator, dict[str, Any]]:
        """What the run in `folder` was built from, its evaluator, and what decides its numbers."""
        config = records.read_json(folder / records.CONFIG_FILE)
        shared = json.dumps(_shared(config), sort_keys=True)
        if self._current is None or shared != self._shared:
            self._current, self._shared = self._make(folder, config), shared
        return self._current

    def _make(
        self, folder: pathlib.Path, config: dict[str, Any]
    ) -> tuple[Experiment, ModelEvaluator, dict[str, Any]]:
        built = experiment.from_folder(folder)
        dataset, binarize = built.dataset, config["data"]["binarize"]
        judge = classifier.load_or_train(
            self._classifiers / classifier.folder_name(dataset.name, binarize),
            dataset,
            built.preprocess_fn,
            classifier.default_training(dataset.image_shape, len(dataset.train.images)),
            config["data"],
            report=lambda line: print(line, flush=True),
        )
        likelihood = config["model"]["likelihood"]
        is_discrete = likelihood == "logistic_mixture" or (likelihood == "bernoulli" and binarize != "none")
        evaluator = ModelEvaluator(built.model, dataset, built.preprocess_fn, judge, self._sizes, is_discrete)
        return built, evaluator, {"sizes": dataclasses.asdict(self._sizes), "classifier": judge.report}


def evaluate_runs(runs: Runs, evaluators: Evaluators) -> list[Evaluated]:
    """Evaluates the runs that need it, one after the other, and loads them all."""
    models = []
    for folder in tqdm(runs.folders, unit="model", disable=None):
        built, evaluator, settings = evaluators.get(folder)
        settings = {**settings, "step": results.latest_step(folder)}
        if not results.is_current(folder, settings):
            state = experiment.restore(built, folder)
            results.save(folder, evaluator.evaluate(state.eval_params, seed=0), settings)
        models.append(results.load(folder, runs.is_grid))
    return models


def draw(folder: pathlib.Path, models: Sequence[Evaluated], content: dict[str, Any]) -> None:
    """Figures of all models together, and of the best for each application."""
    folder.mkdir(exist_ok=True)
    figures.accuracy_by_information(models, folder / "accuracy_by_information")
    figures.distortion_by_rate(models, folder / "distortion_by_rate")
    if len(models) > 1:
        figures.application_maps(models, content, folder / "application_maps")
        figures.score_factor_maps(models, content, folder / "score_factor_maps")
        figures.metric_by_total_rate(models, content, folder / "metric_by_total_rate")
        figures.trade_off(models, content, folder / "trade_off")
    for application, entry in content["applications"].items():
        model = next(model for model in models if model.name == entry["best"]["models"][0])
        betas = ", ".join(f"{beta:.3g}" for beta in model.betas)
        rates = ", ".join(f"{rate:.2f}" for rate in model.rates())
        title = f"best for {application}: betas ({betas}), rates ({rates}) nats"
        figures.pictures(model, title, folder / f"pictures_{application}")
        figures.latents(model, title, folder / f"latents_{application}")


def check_bounds(models: Sequence[Evaluated]) -> bool:
    """Prints what breaks a bound beyond its sampling error; True where nothing does."""
    found = {model.name: bound_checks.violations(model.metrics) for model in models}
    bare = sum(len(bound_checks.violations(model.metrics, 0.0)) for model in models)
    for name, sentences in found.items():
        for sentence in sentences:
            print(f"violation in {name}: {sentence}")
    total = sum(map(len, found.values()))
    print(
        f"Bounds checked on {len(models)} models: {total} violations beyond "
        f"{bound_checks.NUM_STANDARD_ERRORS:g} standard errors; {bare} numbers lie above a bound at all."
    )
    return total == 0


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what may differ between models that one evaluator serves: betas, targets, seeds."""
    objective = config["objective"]
    return {
        **config,
        "objective": {n: value for n, value in objective.items() if n != "betas" and "targets" not in n},
        "training": {name: value for name, value in config["training"].items() if not name.endswith("seed")},
    }


if __name__ == "__main__":
    program.run(main)
