"""What `experiments.evaluate` does to run folders: which belong together, which are stale, their numbers."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from experiments import program
from experiments.evaluate_ood import Detectors
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import classifier, codes, measuring, parts, results, settings
from hvae_jax.evaluation.applications import NO_LABELS, ModelEvaluator
from hvae_jax.evaluation.classifier import ClassifierTraining
from hvae_jax.evaluation.encoding import Encoder
from hvae_jax.evaluation.results import Evaluated, Runs
from hvae_jax.evaluation.settings import Settings
from hvae_jax.evaluation.sizes import Sizes
from hvae_jax.experiment import Experiment
from hvae_jax.files import claims
from hvae_jax.training import Params, checkpoints

LOCK_FILE = "evaluation.lock"
# Enough to fill it; each holds its samples and latents.
MODELS_PER_ACCELERATOR = 8


def find_repeats(folders: Sequence[pathlib.Path], runs: Runs) -> list[Runs]:
    """The runs in each of `folders`, grids, which repeat some of `runs` with other seeds.

    Raises:
      RunError: a single run, other models, or the same seeds.
    """
    found = []
    known = [results.read_config(run) for run in runs.folders]
    taken = {
        (*config["objective"]["betas"], config["training"]["seed"]): run
        for config, run in zip(known, runs.folders, strict=True)
    }
    names = [folder.absolute().name for folder in folders]
    if len(set(names)) < len(names):
        raise RunError(
            f"--repeats: models are named by their grid, and grids are called {names}; rename some"
        )
    for folder in folders:
        repeats = results.find_runs(folder, "repeats")
        if not repeats.is_grid:
            raise RunError(
                f"--repeats={folder} is a single run, it must be a grid of the same models with other seeds"
            )
        for run in repeats.folders:
            config = results.read_config(run)
            if _shared(config) != _shared(known[0]):
                raise RunError(
                    f"--repeats={folder} must differ from --workdir in betas and seeds only; {run} does not"
                )
            betas, seed = config["objective"]["betas"], config["training"]["seed"]
            if other := taken.get((*betas, seed)):
                raise RunError(f"--repeats={folder}: {run} has betas {betas} and seed {seed}, as {other} has")
            taken[(*betas, seed)] = run
        found.append(repeats)
    return found


def find_baseline(folder: pathlib.Path, runs: Runs) -> Runs:
    """The models of one layer in `folder`, of the same data as `runs`.

    Raises:
      RunError: more layers, or data that are seen otherwise.
    """
    baseline = results.find_runs(folder, "baseline")
    config, own = (results.read_config(found.folders[0]) for found in (baseline, runs))
    if results.num_layers(config) != 1:
        raise RunError(
            f"--baseline={folder} must hold models of one layer, it has {results.num_layers(config)}"
        )
    if config["data"]["binarize"] != own["data"]["binarize"]:
        raise RunError(
            f"--baseline={folder} has config.data.binarize={config['data']['binarize']!r}, --workdir has "
            f"{own['data']['binarize']!r}: their numbers are not to be compared"
        )
    return baseline


def name_repeat(folder: pathlib.Path) -> str:
    """What a repeated model of a grid is called beside those that it repeats: grid/model."""
    return f"{folder.absolute().parents[1].name}/{folder.name}"


@contextlib.contextmanager
def locked(folders: Sequence[pathlib.Path]) -> Iterator[None]:
    """Holds evaluation.lock in every folder, so that two evaluations do not write the same files.

    None is left behind: an evaluation that is refused changes nothing.

    Raises:
      RunError: another evaluation is at work there, or a folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for folder in sorted({folder.absolute() for folder in folders}):
            what = f"the evaluation of {folder}"
            stack.enter_context(claims.claim(folder / LOCK_FILE, what, is_kept=False))
        yield


def pick_capacity(num_models: int) -> int:
    """Models that are evaluated side by side: one on each core of a CPU, many on each accelerator."""
    each = 1 if jax.default_backend() == "cpu" else MODELS_PER_ACCELERATOR
    return min(num_models, each * jax.local_device_count())


class Evaluators:
    """One evaluator for all models that differ in betas and seed only: data and programs stay."""

    def __init__(
        self,
        classifiers: pathlib.Path,
        sizes: Sizes,
        data: str | None,
        report: Callable[[str], None],
        capacity: int = 1,
        choose_training: Callable[..., ClassifierTraining] = classifier.choose_training,
    ) -> None:
        """Loads nothing yet.

        Args:
          classifiers: where they lie.
          sizes: how much to do.
          data: a `config.data.name` instead of that of the runs, for data that moved.
          report: called with what the user should know, once for each line.
          capacity: models that are evaluated side by side.
          choose_training: of the classifier, from the shape and the number of the images.
        """
        self._choose_training = choose_training
        self._capacity = capacity
        self._classifiers, self._sizes, self._data, self._report = classifiers, sizes, data, report
        self._shared: str | None = None
        self._built: Experiment | None = None
        self._checked: pathlib.Path | None = None
        self._described: list[dict[str, Any]] = []  # the data whose notices were shown
        self._current: tuple[Experiment, ModelEvaluator, Callable[..., Settings]] | None = None

    def check(self, folder: pathlib.Path) -> Experiment:
        """Looks at the data and the sizes before anything is written; `get` does not read them again.

        Returns:
          what the run was built from.

        Raises:
          RunError: other data than the run's, or none, sizes that do not fit into memory, no such classifier.
        """
        built = self._built = experiment.from_folder(folder, data=self._data)
        records.check_data(folder, built.dataset.describe())
        self._choose_training(built.dataset.image_shape, len(built.dataset.train.images))
        found = parts.make_parts(built.dataset, parts.find_classes(built.dataset), self._sizes)
        self._sizes.check_memory(
            num_dims=built.num_dims,
            num_latents=measuring.num_kept_latents(built.model, found),
            num_features=0,  # the classifier's come on top
        )
        self._checked = folder
        return built

    def check_codes(self, runs: Runs, most: int | None) -> None:
        """That the codes.npz of all runs that have none fit onto the disk; after `check`.

        Raises:
          RunError: they do not.
        """
        assert self._built is not None
        parts = codes.plan(self._built.model.config, self._built.dataset, most)
        absent = [folder for folder in runs.folders if not (folder / codes.CODES_FILE).exists()]
        codes.check_space(runs.folders[0], parts, len(absent))

    def get(
        self, folder: pathlib.Path, before: Callable[[], None]
    ) -> tuple[Experiment, ModelEvaluator, Settings]:
        """What the run in `folder` was built from, its evaluator, and what decides its numbers.

        `before` is called before an evaluator takes the place of the last.
        """
        config = results.read_config(folder)
        shared = json.dumps(_shared(config), sort_keys=True)
        if self._current is None or shared != self._shared:
            before()
            self._current = None  # two data sets at a time may not fit
            self._current, self._shared = self._make(folder, config), shared
        built, evaluator, with_these = self._current
        step = checkpoints.latest_step(folder)
        assert step is not None
        checksum = checkpoints.checksum(folder / records.CHECKPOINTS_FOLDER, step)
        return built, evaluator, with_these(settings.config_hash(config), step, checksum)

    def _make(
        self, folder: pathlib.Path, config: dict[str, Any]
    ) -> tuple[Experiment, ModelEvaluator, Callable[..., Settings]]:
        built = self._built
        if built is None or folder != self._checked:
            built = experiment.from_folder(folder, data=self._data)
        self._built = None  # two data sets at a time may not fit
        dataset, binarize = built.dataset, config["data"]["binarize"]
        described = dataset.describe()
        records.check_data(folder, described)
        if described not in self._described:
            program.show_notices(dataset)
            self._described.append(described)
        fingerprints = {**settings.data_fingerprints(described), "binarize": binarize}
        judge = None
        if parts.find_classes(dataset).can_be_told_apart:
            judge = classifier.load_or_train(
                self._classifiers / classifier.folder_name(dataset.name, binarize),
                dataset,
                built.preprocess_fn,
                self._choose_training(dataset.image_shape, len(dataset.train.images)),
                fingerprints,
                self._report,
            )
        else:
            self._report(f"no classifier is trained: {NO_LABELS}")
        likelihood = config["model"]["likelihood"]
        is_discrete = likelihood == "logistic_mixture" or (likelihood == "bernoulli" and binarize != "none")
        evaluator = ModelEvaluator(
            built.model,
            dataset,
            built.preprocess_fn,
            judge,
            self._sizes,
            is_discrete,
            built.named_groups,
            self._capacity,
        )
        common = functools.partial(
            Settings,
            settings.package_version(),
            self._sizes,
            fingerprints,
            None if judge is None else judge.report,
        )
        return built, evaluator, common


class _Pending(NamedTuple):
    """A run that must be evaluated."""

    folder: pathlib.Path
    params: Params
    wanted: Settings


def evaluate_runs(
    runs: Runs,
    evaluators: Evaluators,
    report: Callable[[str], None],
    detectors: Detectors | None = None,
) -> list[Evaluated]:
    """Evaluates the runs that need it, as many side by side as the evaluator takes, and loads them all.

    With detectors they also look at images from elsewhere.
    """
    pending: list[_Pending] = []
    evaluator: ModelEvaluator | None = None

    def evaluate_pending() -> None:
        if evaluator is not None and pending:
            found = evaluator.evaluate_all([one.params for one in pending], seed=0)
            for one, evaluation in zip(pending, found, strict=True):
                results.save(one.folder, evaluation, one.wanted)
            progress.update(len(pending))
            pending.clear()

    with tqdm(total=len(runs.folders), unit="model", disable=None) as progress:
        for folder in runs.folders:
            built, needed, wanted = evaluators.get(folder, before=evaluate_pending)
            evaluator = needed
            why = results.why_stale(folder, wanted)
            if why is None:
                progress.update()
                continue
            if (folder / results.METRICS_FILE).exists():
                report(f"{folder} is evaluated again: {why}")
            state = experiment.restore(built, folder)
            betas = results.read_config(folder)["objective"]["betas"]
            pending.append(_Pending(folder, built.at(state.eval_params, betas), wanted))
            if len(pending) == evaluator.capacity:
                evaluate_pending()
        evaluate_pending()
    models = [results.load(folder, runs.is_grid) for folder in runs.folders]
    if detectors is not None:
        looked = []
        for model in tqdm(models, desc="images from elsewhere", unit="model", disable=None):
            built, _, wanted = evaluators.get(model.folder, before=lambda: None)
            looked.append(detectors.add(model, built, wanted))
        models = looked
    for name, reason in models[0].metrics.left_out.items():
        report(f"left out: {name}: {reason}")
    return models


def write_codes(runs: Runs, evaluators: Evaluators, most: int | None, report: Callable[[str], None]) -> None:
    """Writes codes.npz of the runs that have none of these settings."""
    shared, encoder = None, None
    for folder in tqdm(runs.folders, unit="model", disable=None):
        built, _, wanted = evaluators.get(folder, before=lambda: None)
        made_with = codes.settings_of(wanted, most)
        if codes.are_written(folder, made_with):
            continue
        if encoder is None or built is not shared:
            shared, encoder = built, Encoder(built.model, built.preprocess_fn)
        parts = codes.plan(built.model.config, built.dataset, most)
        codes.check_space(folder, parts)
        state = experiment.restore(built, folder)
        params = built.at(state.eval_params, results.read_config(folder)["objective"]["betas"])
        codes.write(folder, encoder, params, built.dataset, parts, made_with)
        counts = ", ".join(f"{len(places)} of {split}" for split, places in parts.places.items())
        report(f"{folder / codes.CODES_FILE} has the codes of {counts} images")


class Reporter:
    """Prints lines above progress bars, each only once, and of many that end alike only the first few."""

    def __init__(self, most: int = 3) -> None:
        self._most, self._said, self._counts = most, set(), {}

    def __call__(self, line: str) -> None:
        """Prints it, unless it, or `most` lines with the same end, were printed."""
        kind = line.partition(": ")[2] or line
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if line in self._said or count > self._most:
            return
        self._said.add(line)
        tqdm.write(line + (" (and of others, which are not listed)" if count == self._most else ""))


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what may differ between models of one evaluator: betas, targets, seeds, logs."""
    objective, training = config["objective"], config["training"]
    free = {name.removeprefix("training.") for name in records.ON_ITS_WAY}
    return {
        **config,
        "objective": {n: value for n, value in objective.items() if n != "betas" and "targets" not in n},
        "training": {n: value for n, value in training.items() if not n.endswith("seed") and n not in free},
    }
