"""Ask for many rates, by two controls, and tabulate how near each came.

    python -m experiments.targets_table --config=experiments/digits_targets.py --out=FILE
    python -m experiments.targets_table --config=experiments/digits_targets.py --sweep=frontier --out=FILE

The sweep `table` asks for eight target vectors per number of layers; `frontier` moves a fixed total rate
from one layer to the other, and draws what that does to the distortion beside FILE. The controls
`found_betas` and `found_betas_same_seed` train anew, from another seed or the same, with the betas that
`target_rates` found, held fixed. The models of one setting (targets × seeds) train side by side, so they
share one compiled step: that is what targets in the state are for. Rows already in the file are not
computed again; rows of another config or version are refused. `--only_print --out=FILE` prints any.
"""

import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import program, targets_rows
from experiments.targets_rows import REFITS, WITHIN, Row, Setting, betas_found, describe
from hvae_jax import data, experiment
from hvae_jax.data import DataConfig
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates, targets
from hvae_jax.grid import packed
from hvae_jax.grid.members import Member
from hvae_jax.grid.packed import PackedTrainer
from hvae_jax.models.config import PUBLISHED, ModelConfig
from hvae_jax.training import TrainingConfig, stacks

TABLE = {
    2: ((1, 1), (3, 3), (10, 1), (1, 10), (20, 8), (30, 1), (30, 5), (5, 30)),
    3: ((1, 1, 1), (5, 5, 5), (10, 3, 1), (1, 3, 10), (20, 5, 2), (4, 8, 12), (2, 2, 15), (30, 3, 1)),
}
FRONTIER_TOTAL = 20.0
FRONTIER_SHARES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)
FRONTIER = {2: tuple((FRONTIER_TOTAL * (1 - top), FRONTIER_TOTAL * top) for top in FRONTIER_SHARES)}
# Seeds of models that are trained anew, so far from the others that they share no draw.
REFIT_SEED = 1000
MAX_SEED = 2**32 - REFIT_SEED
SETTLED_WITHIN = 0.02


def main(arguments: list[str]) -> None:
    """Trains what is missing, one setting after the other, and prints the table."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    file = program.file_flag("out", flags.FLAGS.out, (".json", ""))
    rows = targets_rows.read(file)
    scale = flags.FLAGS.scale
    if not (math.isfinite(scale) and scale > 0.0):
        raise RunError(f"--scale={scale} must be a positive number")
    if not flags.FLAGS.only_print:
        train_missing(file, rows, scale)
    elif not rows:
        raise RunError(f"--out={file} has no rows to print; leave --only_print out to make them")
    print(describe(rows))
    if flags.FLAGS.sweep == "frontier":
        targets_rows.draw_frontier(rows, scale * FRONTIER_TOTAL, file.with_suffix(".png"))


def train_missing(file: pathlib.Path, rows: list[Row], scale: float) -> None:
    """Trains what the flags ask for and `rows` do not have, and adds it to them and to the file.

    Raises:
      RunError: flags or a config that cannot be, before anything is trained.
    """
    if flags.FLAGS.config is None:
        raise RunError("--config must be given, unless --only_print is; --help names all flags")
    _, config = program.read_config()
    sweep = {"table": TABLE, "frontier": FRONTIER}[flags.FLAGS.sweep]
    layers, controls, inferences, seeds = read_lists(sweep)
    check_config(config, inferences, layers, controls)
    dataset = data.load(experiment.build_group("data", DataConfig, config))
    program.show_notices(dataset)
    described = dataset.describe()
    targets_rows.check_made_by(file, rows, config, described, controls)
    made_by = targets_rows.made_by(config, described)
    wanted = {
        number: [tuple(scale * rate for rate in v) for v in sweep[number][: flags.FLAGS.first or None]]
        for number in layers
    }
    asked = [Setting(*one) for one in itertools.product(inferences, layers, controls)]
    todo: dict[Setting, list[list[tuple[tuple[float, ...], int]]]] = {}
    known = {(row.setting, row.targets_nats, row.seed) for row in rows}
    for setting in asked:
        models = [[(t, seed) for t in wanted[setting.num_layers]] for seed in seeds]
        keys = [[(setting, *model) for model in of_seed] for of_seed in models]
        for found in itertools.chain(*keys) if setting.control in REFITS else ():
            if found not in known and (setting._replace(control="target_rates"), *found[1:]) not in known:
                raise RunError(f"--controls={setting.control} needs the rows of target_rates; name it first")
        todo[setting] = [
            [model for model, key in zip(*pair, strict=True) if key not in known]
            for pair in zip(models, keys, strict=True)
        ]
        known.update(itertools.chain(*keys))
    program.make_parent(file)
    program.split_cpu(program.num_cores())
    for setting, missing in todo.items():
        if not any(missing):
            continue
        chunks = [
            [make_model(config, setting, *one, betas_found(rows, setting, *one)) for one in of_seed]
            for of_seed in missing
            if of_seed
        ]
        for new in train_setting(setting, chunks, len(wanted[setting.num_layers])):
            gains = config["objective"]["pi_gains"] if setting.control == "pi" else None
            rows += [dataclasses.replace(row, pi_gains=gains, made_by=made_by) for row in new]
            targets_rows.write(file, rows)


def read_lists(
    sweep: Mapping[int, Sequence[tuple[float, ...]]],
) -> tuple[list[int], list[str], list[str], list[int]]:
    """Layers, controls, inference models and seeds, each once.

    Args:
      sweep: number of layers → target vectors.

    Raises:
      RunError: one that is unknown, or none.
    """
    layers = list(sweep)
    if flags.FLAGS["layers"].present:
        layers = _integers("layers", flags.FLAGS.layers)
        for number in layers:
            if number not in sweep:
                known = " and ".join(map(str, sweep))
                raise RunError(
                    f"--layers={number}: --sweep={flags.FLAGS.sweep} has targets for {known} layers"
                )
    seeds = _integers("seeds", flags.FLAGS.seeds)
    for seed in seeds:
        if not 0 <= seed < MAX_SEED:
            raise RunError(f"--seeds={seed} must be 0 to {MAX_SEED - 1}")
    controls = _chosen("controls", flags.FLAGS.controls, tuple(WITHIN))
    return layers, controls, _chosen("inference", flags.FLAGS.inference, PUBLISHED), seeds


def check_config(
    config: dict[str, Any], inferences: Sequence[str], layers: Sequence[int], controls: Sequence[str]
) -> None:
    """Raises RunError where the table cannot be made from a config, before its data are read."""
    shapes = config["model"].get("latent_shapes")
    if (
        not isinstance(shapes, tuple)
        or len(shapes) < 2
        or not all(isinstance(s, tuple) and s for s in shapes)
    ):
        raise RunError(
            f"config.model.latent_shapes={shapes!r} must name the shapes of two layers or more; the table "
            "takes the first and the last for its models"
        )
    for name, empty in (("beta_groups", ""), ("free_nats", ())):
        if given := config["objective"].get(name, empty):
            raise RunError(f"config.objective.{name}={given!r} is not for the table; set it to {empty!r}")
    for setting in itertools.starmap(Setting, itertools.product(inferences, layers, controls)):
        ones = (1.0,) * setting.num_layers
        member = make_model(config, setting, ones, 0, ones).member
        member.objective.check_layers(setting.num_layers)
        for group, cls in (("model", ModelConfig), ("training", TrainingConfig), ("data", DataConfig)):
            experiment.build_group(group, cls, member.config)


def _integers(flag: str, values: Sequence[str]) -> list[int]:
    for value in values:
        if not re.fullmatch(r"-?[0-9]{1,18}", value):
            raise RunError(f"--{flag}={','.join(values)} must be integers with commas between them")
    return list(dict.fromkeys(map(int, _chosen(flag, values))))


def _chosen(flag: str, values: Sequence[str], known: Sequence[str] | None = None) -> list[str]:
    """The values, each once."""
    if not values:
        raise RunError(f"--{flag} is empty; " + (f"choose from {', '.join(known)}" if known else "give some"))
    for value in values:
        if known is not None and value not in known:
            raise RunError(f"--{flag}={value} is unknown; choose from {', '.join(known)}")
    return list(dict.fromkeys(values))


class Model(NamedTuple):
    """One row of the table: what is asked for, in nats, under which seed, and how it is trained."""

    wanted: tuple[float, ...]
    seed: int
    member: Member


def make_model(
    config: dict[str, Any],
    setting: Setting,
    wanted: tuple[float, ...],
    seed: int,
    found: tuple[float, ...] | None,
) -> Model:
    """The model that a setting asks for.

    Args:
      config: of any of the models; targets, seed and layers are set here.
      setting: what it shares with others.
      wanted: targets, nats.
      seed: of its row; a model of the control "found_betas" has another.
      found: the betas that the controls REFITS take.

    Raises:
      RunError: it takes betas that are not there.
    """
    inference, num_layers, control = setting
    first, *_, top = config["model"]["latent_shapes"]
    shapes = (first, *((2 * top[0],),) * (num_layers - 2), top)
    objective = {**config["objective"], "betas": (1.0,) * num_layers, "targets_nats": wanted}
    own_seed = seed
    if control in REFITS:
        if found is None:
            raise RunError(f"--controls={control} needs the rows of target_rates; name it first")
        objective.update(betas=found, control="constant", targets_nats=())
        own_seed += REFIT_SEED if control == "found_betas" else 0
    else:
        objective["control"] = control
    groups = {
        "model": {**config["model"], "inference": inference, "latent_shapes": shapes},
        "objective": objective,
        "training": {**config["training"], "seed": own_seed, "order_seed": own_seed},
    }
    return Model(wanted, seed, Member(0, {**config, **groups}, {}))


def train_setting(setting: Setting, chunks: list[list[Model]], capacity: int) -> Iterator[list[Row]]:
    """Trains the models of one setting, a chunk at a time: one row for each.

    Args:
      setting: what all of them share.
      chunks: models that are trained side by side, from `make_model`.
      capacity: the size of the largest chunk that may come, so that all calls share one program.

    Raises:
      RunError: a loss that is not finite.
    """
    built = experiment.from_config(chunks[0][0].member.config, num_devices=1)
    trainer = PackedTrainer(built, capacity)
    fresh_terms = packed.make_fresh_terms(built, trainer, ("train", "test"))
    for chunk in chunks:
        members = [model.member for model in chunk]
        logs: list[list[Any]] = [[] for _ in members]
        seeds = np.asarray([member.seed for member in members])
        stack = trainer.train(
            packed.init_stack(built, members),
            logs,
            members,
            save=lambda step, stack: None,
        )
        if stack.failed_at.any():
            raise RunError(f"a loss is not finite at step {int(stack.failed_at.max())}")
        terms = fresh_terms(stack, seeds)
        rows = []
        for index, model in enumerate(chunk):
            betas = tuple(stack.states.beta_state.betas[index].tolist())
            summaries = {
                split: rates.summarize(of_split, built.num_dims)
                for split, of_split in stacks.entry(terms, index).items()
            }
            status, objective = None, model.member.objective
            if objective.control != "constant":
                report = targets.report_targets(objective, built.num_dims, betas, **summaries)
                status = report.target_status
            log = [entry for entry in logs[index] if entry["split"] == "train"]
            steps, measured = (np.asarray([entry[name] for entry in log]) for name in ("step", "rates_nats"))
            test, train = summaries["test"], summaries["train"]
            rows.append(
                Row(
                    **setting._asdict(),
                    seed=model.seed,
                    targets_nats=model.wanted,
                    betas=betas,
                    test_rates_nats=test.rates_nats,
                    test_distortion_nats=test.distortion_nats.value,
                    train_rates_nats=train.rates_nats,
                    train_distortion_nats=train.distortion_nats.value,
                    target_status=status,
                    settled_at_step=settled_at(steps, measured, model.wanted),
                    num_steps=built.num_steps,
                )
            )
        yield rows


def settled_at(steps: np.ndarray, measured: np.ndarray, wanted: tuple[float, ...]) -> int | None:
    """The step from which every interval's mean rates `[T, L]` stay within 2 % of the targets."""
    is_off = (np.abs(measured / np.asarray(wanted) - 1.0) > SETTLED_WITHIN).any(axis=1)
    last_off = np.flatnonzero(is_off)
    first = 0 if not len(last_off) else last_off[-1] + 1
    return int(steps[first]) if first < len(steps) else None


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    config_flags.DEFINE_config_file("config", None, "One of experiments/*.py.", lock_config=True)
    flags.DEFINE_string("out", None, "JSON file to write or to continue.", required=True)
    flags.DEFINE_enum("sweep", "table", ["table", "frontier"], "Which targets to ask for.")
    flags.DEFINE_list("inference", list(PUBLISHED), "Inference models.")
    flags.DEFINE_list("layers", ["2", "3"], "Numbers of layers; the frontier has 2.")
    flags.DEFINE_list("controls", ["target_rates", "pi", *REFITS], "In this order.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Of parameters, data order and noise.")
    flags.DEFINE_float("scale", 1.0, "Factor of all targets, for data with more to tell.")
    flags.DEFINE_integer("first", 0, "Only the first so many target vectors; 0 is all.", lower_bound=0)
    flags.DEFINE_boolean("only_print", False, "Train nothing; print, and draw, what --out has.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
