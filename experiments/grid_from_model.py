"""A grid of betas, or of rates, of one conditioned model: its table and figures, without training."""

import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import grid_results, program
from hvae_jax import conditioned, data, experiment, records
from hvae_jax.conditioned import Measure
from hvae_jax.errors import RunError
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.experiment import Experiment
from hvae_jax.files import claims
from hvae_jax.grid import folders
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import plan as grid_plan
from hvae_jax.grid import table as grid_table
from hvae_jax.grid.members import LISTS, PRODUCTS, GridConfig, Member
from hvae_jax.training import Params, checkpoints

SEARCH_IMAGES = 512


def make(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    runs: Sequence[pathlib.Path],
    baseline: dict[str, np.ndarray] | None,
) -> None:
    """Asks the runs at every point of a grid; the folder is then as that of a grid that was trained.

    Each point has a folder under models/ with links to its run's checkpoint, so that `experiments.evaluate`
    takes it for any other model. What is complete is left as it is.

    Args:
      folder: of the grid; it may be there or not.
      config: whose group `grid` says which betas, or target rates; all else is the runs'.
      runs: folders of conditioned runs that differ in their seeds alone.
      baseline: table of a grid with one layer, for a figure, or None.

    Raises:
      RunError: no such runs or betas, or the folder holds something else.
    """
    if "grid" not in config:
        raise RunError("config has no group grid, which says at which betas to ask; give one of *_grid.py")
    program.split_cpu(program.num_cores())
    stored = [experiment.with_tuples(records.config_of(run)) for run in runs]
    builts = [experiment.from_folder(run) for run in runs]
    check_runs("from_model", runs, builts)
    seeds = [one.training.seed for one in builts]
    built = builts[0]
    params = [experiment.restore(built, run).eval_params for run in runs]
    grid = experiment.build_group("grid", GridConfig, config)
    points = {name: getattr(grid, name) for name in (*PRODUCTS, *LISTS)}
    if grid.has_targets and len(runs) > 1:
        raise RunError(
            f"config.grid.{grid.field}: the betas that give these rates differ from run to run; give "
            "--from_model one run, and a grid of each"
        )
    if grid.has_targets:
        found = [betas for target in grid.vectors if (betas := _solve(built, params[0], target))]
        if not found:
            raise RunError(f"no point of config.grid.{grid.field} is within reach of {runs[0]}")
        points = {**dict.fromkeys(points, ()), "points": tuple(found)}
    own = {**vars(grid), **points, "seeds": tuple(seeds), "data_order": "shared"}
    full = {**stored[0], "grid": own}
    grid, members = grid_members.read_config(full)
    described = built.dataset.describe()
    folders.check(folder, full, members, described)
    with claims.claim(grid_plan.launch_lock(folder), f"the grid in {folder}"):
        members = folders.open_grid(folder, full, members, described)
        evaluate = _Evaluate(built)
        for member in tqdm(members, unit="point", disable=None):
            if not folders.is_complete(folder, member):
                place = seeds.index(member.seed)
                step = _link(runs[place], member.folder(folder), member, described)
                content = evaluate(params[place], member, step)
                records.write_json(member.folder(folder) / records.EVALUATION_FILE, content)
        grid_results.write(folder, built, grid, members, baseline)


def check_runs(flag: str, runs: Sequence[pathlib.Path], builts: Sequence[Experiment]) -> None:
    """Raises RunError unless the runs that a flag names are conditioned, and differ in their seeds alone."""
    for run, one in zip(runs, builts, strict=True):
        if one.beta_range is None:
            raise RunError(f"--{flag}={run} is not conditioned: it is a model of one vector of betas")
    stored = [experiment.with_tuples(records.config_of(run)) for run in runs]
    own = ("training.seed", "training.order_seed", "objective.betas")
    may_differ = (*own, *records.NOT_TRAINING, *records.ON_ITS_WAY)
    for run, other in zip(runs, stored, strict=True):
        if changed := records.differences(stored[0], other, may_differ):
            raise RunError(f"--{flag}: {run} and {runs[0]} differ in config.{', config.'.join(changed)}")
    seeds = [one.training.seed for one in builts]
    if len(set(seeds)) < len(seeds):
        raise RunError(f"--{flag}: the runs have the seeds {seeds}; give runs of different seeds")


def refuse_training(members: Sequence[Member]) -> None:
    """Raises RunError where a grid would train one conditioned model several times."""
    if (
        members[0].config["model"].get("conditioning", "none") != "none"
        and len({m.betas for m in members}) > 1
    ):
        raise RunError(
            "config.grid has several points, and a conditioned model (config.model.conditioning) is one for "
            "all betas: train a grid of one point, with several seeds, or a run; --from_model=RUN then makes "
            "a grid of any betas of it"
        )


class _Evaluate:
    """(parameters, model, step) → what its evaluation.json holds; one compiled program for all betas."""

    def __init__(self, built: Experiment) -> None:
        self._built = built
        images = {split: getattr(built.dataset, split).images for split in grid_table.SPLITS}
        self._images = {split: rows for split, rows in images.items() if len(rows)}
        self._measures: dict[tuple[int, str], Measure] = {}

    def __call__(self, params: Params, member: Member, step: int) -> dict[str, Any]:
        of_split = {}
        for split, rows in self._images.items():
            key = id(params), split
            if key not in self._measures:
                num_samples = self._built.evaluation.num_samples
                self._measures[key] = Measure(self._built, params, rows, num_samples)
            terms = self._measures[key].terms(member.betas)
            if not all(np.isfinite(array).all() for array in terms):
                return {"step": step, "status": grid_table.DIVERGED}
            of_split[split] = conditioned.summarize(self._built, terms)
        return to_plain(RunEvaluation(step=step, status=grid_table.OK, **of_split))


def _link(run: pathlib.Path, folder: pathlib.Path, member: Member, described: Mapping[str, Any]) -> int:
    """Makes the model's folder with the run's newest checkpoint and its log; which step it is of."""
    records.open_run(folder, member.config, described)
    step = checkpoints.steps_of(run / records.CHECKPOINTS_FOLDER)[-1]
    target = folder / records.CHECKPOINTS_FOLDER
    try:
        shutil.rmtree(target, ignore_errors=True)
        for name in sorted(entry.name for entry in (run / records.CHECKPOINTS_FOLDER).iterdir()):
            if name == str(step):
                source = run / records.CHECKPOINTS_FOLDER / name
                shutil.copytree(source, target / name, copy_function=_link_file)
        shutil.copyfile(run / records.RATES_FILE, folder / records.RATES_FILE)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}: {error.filename}") from error
    checksum = checkpoints.checksum(run / records.CHECKPOINTS_FOLDER, step)
    content = {"folder": str(run.absolute()), "step": step, "checksum": checksum}
    records.write_json(folder / records.FROM_MODEL_FILE, content)
    return step


def _link_file(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
    return target


def _solve(built: Experiment, params: Params, targets: Sequence[float]) -> tuple[float, ...]:
    """The betas of target rates; () of those out of reach, which is said."""
    found = built.beta_range
    assert found is not None
    valid = built.dataset.valid.images if len(built.dataset.valid.images) else built.dataset.train.images
    few = valid[data.subset(len(valid), SEARCH_IMAGES)]
    answer = conditioned.solve(
        Measure(built, params, valid), targets, found.lows, found.highs, search=Measure(built, params, few)
    )
    if answer.out_of_reach:
        print(f"left out: {tuple(targets)}: {'; '.join(answer.out_of_reach)}")
        return ()
    return tuple(float(f"{beta:.6g}") for beta in answer.betas)
