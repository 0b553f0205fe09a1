"""Ask for many rates, by two controls, and tabulate how near each came.

    python -m experiments.targets_table --config=experiments/digits_targets.py --out=FILE
    python -m experiments.targets_table --config=experiments/digits_targets.py --sweep=frontier --out=FILE

The sweep `table` asks for eight target vectors per number of layers; `frontier` moves a fixed total rate
from one layer to the other, and draws what that does to the distortion beside FILE. The controls
`found_betas` and `found_betas_same_seed` train anew, from another seed or the same, with the betas that
`target_rates` found, held fixed. The models of one setting (targets × seeds) train side by side, so they
share one compiled step: that is what targets in the state are for. Rows already in the file are not
computed again.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import program
from hvae_jax import experiment, packing, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates, targets
from hvae_jax.figures import targets as figures
from hvae_jax.grid import run as grid_run
from hvae_jax.grid.members import Member

# Controls that train anew with betas that were found.
REFITS = ("found_betas", "found_betas_same_seed")

_CONFIG = config_flags.DEFINE_config_file("config", None, "One of experiments/*.py.", lock_config=True)
_OUT = flags.DEFINE_string("out", None, "JSON file to write or to continue.", required=True)
_SWEEP = flags.DEFINE_enum("sweep", "table", ["table", "frontier"], "Which targets to ask for.")
_INFERENCE = flags.DEFINE_list("inference", ["generalized_top_down", "ladder"], "Inference models.")
_LAYERS = flags.DEFINE_list("layers", ["2", "3"], "Numbers of layers; the frontier has 2.")
_CONTROLS = flags.DEFINE_list("controls", ["target_rates", "pi", *REFITS], "In this order.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of parameters, data order and noise.")
_SCALE = flags.DEFINE_float("scale", 1.0, "Factor of all targets, for data with more to tell.")
_FIRST = flags.DEFINE_integer("first", 0, "Only the first so many target vectors; 0 is all of them.")
flags.mark_flag_as_required("config")

TABLE = {
    2: ((1, 1), (3, 3), (10, 1), (1, 10), (20, 8), (30, 1), (30, 5), (5, 30)),
    3: ((1, 1, 1), (5, 5, 5), (10, 3, 1), (1, 3, 10), (20, 5, 2), (4, 8, 12), (2, 2, 15), (30, 3, 1)),
}
FRONTIER_TOTAL = 20.0
FRONTIER_SHARES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)
FRONTIER = {2: tuple((FRONTIER_TOTAL * (1 - top), FRONTIER_TOTAL * top) for top in FRONTIER_SHARES)}
# Seeds of models that are trained anew, so far from the others that they share no draw.
REFIT_SEED = 1000
SETTLED_WITHIN = 0.02
# How near the rates of a model have to be, by its control; on the test split two standard errors more.
WITHIN = {"target_rates": targets.TOLERANCE, "pi": targets.TOLERANCE, **dict.fromkeys(REFITS, 0.03)}


def main(arguments: list[str]) -> None:
    """Trains what is missing, one setting after the other, and prints the table."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    _, config = program.read_config(_CONFIG)
    file = program.file_flag("out", _OUT.value, (".json", ""))
    program.split_cpu(program.num_cores())
    rows = records.read_json(file) if file.exists() else []
    sweep = {"table": TABLE, "frontier": FRONTIER}[_SWEEP.value]
    seeds = [int(seed) for seed in _SEEDS.value]
    for inference, num_layers, control in itertools.product(
        _INFERENCE.value, map(int, _LAYERS.value), _CONTROLS.value
    ):
        setting = {"inference": inference, "num_layers": num_layers, "control": control}
        vectors = sweep.get(num_layers, ())[: _FIRST.value or None]
        wanted = [tuple(_SCALE.value * rate for rate in vector) for vector in vectors]
        done = {(tuple(r["targets_nats"]), r["seed"]) for r in rows if setting.items() <= r.items()}
        todo = [[(t, seed) for t in wanted if (t, seed) not in done] for seed in seeds]
        if any(todo):
            program.make_parent(file)
            chunks = [[make_model(config, setting, *model, rows) for model in of_seed] for of_seed in todo]
            for new in train_setting(setting, [chunk for chunk in chunks if chunk], len(wanted)):
                rows += new
                records.write_text(file, _as_text(rows))
    print(describe(rows))
    if _SWEEP.value == "frontier":
        draw_frontier(rows, file.with_suffix(".png"))


class Model(NamedTuple):
    """One row of the table: what is asked for, in nats, under which seed, and how it is trained."""

    wanted: tuple[float, ...]
    seed: int
    member: Member


def make_model(
    config: dict[str, Any],
    setting: dict[str, Any],
    wanted: tuple[float, ...],
    seed: int,
    found: list[dict[str, Any]],
) -> Model:
    """The model that a setting asks for.

    Args:
      config: of any of the models; targets, seed and layers are set here.
      setting: inference, number of layers, control.
      wanted: targets, nats.
      seed: of its row; a model of the control "found_betas" has another.
      found: rows of `target_rates`, whose betas the controls REFITS take.

    Raises:
      RunError: it takes betas that are not there.
    """
    num_layers, control = setting["num_layers"], setting["control"]
    first, *_, top = config["model"]["latent_shapes"]
    shapes = (first, *((2 * top[0],),) * (num_layers - 2), top)
    objective = {**config["objective"], "betas": (1.0,) * num_layers, "targets_nats": wanted}
    own_seed = seed
    if control in REFITS:
        asked = {**setting, "control": "target_rates", "seed": seed, "targets_nats": list(wanted)}
        rows = [row for row in found if asked.items() <= row.items()]
        if not rows:
            raise RunError(f"--controls={control} needs the rows of target_rates; name it first")
        objective.update(betas=tuple(rows[0]["betas"]), control="constant", targets_nats=())
        own_seed += REFIT_SEED if control == "found_betas" else 0
    else:
        objective["control"] = control
    groups = {
        "model": {**config["model"], "inference": setting["inference"], "latent_shapes": shapes},
        "objective": objective,
        "training": {**config["training"], "seed": own_seed, "order_seed": own_seed},
    }
    return Model(wanted, seed, Member(0, {**config, **groups}))


def train_setting(
    setting: dict[str, Any], chunks: list[list[Model]], capacity: int
) -> Iterator[list[dict[str, Any]]]:
    """Trains the models of one setting, a chunk at a time: one row for each.

    Args:
      setting: inference, number of layers, control.
      chunks: models that are trained side by side, from `make_model`.
      capacity: the size of the largest chunk that may come, so that all calls share one program.

    Raises:
      RunError: a loss that is not finite.
    """
    built = experiment.from_config(chunks[0][0].member.config, num_devices=1)
    trainer = grid_run.make_trainer(built, capacity)
    fresh_terms = grid_run.make_fresh_terms(built, trainer, ("train", "test"))
    for chunk in chunks:
        members = [model.member for model in chunk]
        logs: list[list[Any]] = [[] for _ in members]
        seeds = np.asarray([member.seed for member in members])
        stack = trainer.train(
            grid_run.init_stack(built, members),
            logs,
            seeds=seeds,
            order_seeds=np.asarray([member.order_seed for member in members]),
            save=lambda step, stack: None,
            report=lambda progress: None,
        )
        if stack.failed_at.any():
            raise RunError(f"a loss is not finite at step {int(stack.failed_at.max())}")
        terms = fresh_terms(stack, seeds)
        rows = []
        for index, model in enumerate(chunk):
            row = {**setting, "seed": model.seed, "targets_nats": list(model.wanted)}
            row["betas"] = stack.states.beta_state.betas[index].tolist()
            summaries = {
                split: rates.summarize(of_split, built.num_dims)
                for split, of_split in packing.entry(terms, index).items()
            }
            for split, summary in summaries.items():
                for name in ("rates_nats", "rates_nats_standard_error", "distortion_nats"):
                    row[f"{split}_{name}"] = summary[name]
            if model.member.objective.control != "constant":
                row["target_status"] = targets.report_targets(
                    model.member.objective, built.num_dims, row["betas"], summaries
                )["target_status"]
            log = [entry for entry in logs[index] if entry["split"] == "train"]
            steps, measured = (np.asarray([entry[name] for entry in log]) for name in ("step", "rates_nats"))
            row["settled_at_step"] = settled_at(steps, measured, model.wanted)
            row["num_steps"] = built.num_steps
            rows.append(row)
        yield rows


def settled_at(steps: np.ndarray, measured: np.ndarray, wanted: tuple[float, ...]) -> int | None:
    """The step from which every interval's mean rates `[T, L]` stay within 2 % of the targets."""
    is_off = (np.abs(measured / np.asarray(wanted) - 1.0) > SETTLED_WITHIN).any(axis=1)
    last_off = np.flatnonzero(is_off)
    first = 0 if not len(last_off) else last_off[-1] + 1
    return int(steps[first]) if first < len(steps) else None


def describe(rows: list[dict[str, Any]]) -> str:
    """One line per setting: how many runs have every layer near its target, errors, time to settle."""
    header = ("inference", "L", "control", "runs", "within", "train", "test", "worst", "median", "settled")
    lines = ["{:<21} {}  {:<21} {:>4}  {:>6}  {:>5}  {:>4}  {:>7}  {:>7}  {}".format(*header)]
    settings = dict.fromkeys((r["inference"], r["num_layers"], r["control"]) for r in rows)
    for inference, num_layers, control in settings:
        setting = {"inference": inference, "num_layers": num_layers, "control": control}
        own = [row for row in rows if setting.items() <= row.items()]
        within = WITHIN[control]
        reference = np.asarray([r["targets_nats"] for r in own])
        train = np.abs(np.asarray([r["train_rates_nats"] for r in own]) / reference - 1.0)
        test = np.abs(np.asarray([r["test_rates_nats"] for r in own]) / reference - 1.0)
        slack = 2.0 * np.asarray([r["test_rates_nats_standard_error"] for r in own]) / reference
        steps = [r["settled_at_step"] for r in own if r["settled_at_step"] is not None]
        settled = f"{len(steps)}/{len(own)}" + (f", median step {np.median(steps):.0f}" if steps else "")
        at_bound = sum(any("bound" in status for status in r.get("target_status", ())) for r in own)
        lines.append(
            f"{inference:<21} {num_layers}  {control:<21} {len(own):>4}  {100 * within:4.0f} %"
            f"  {(train < within).all(1).sum():>5}  {(test < within + slack).all(1).sum():>4}"
            f"  {100 * train.max():5.2f} %  {100 * np.median(train):5.2f} %  {settled}"
            + (f"; {at_bound} with a beta at its bound" if at_bound else "")
        )
    return "\n".join(lines)


def draw_frontier(rows: list[dict[str, Any]], file: pathlib.Path) -> None:
    """The distortion along the line of constant total rate, mean and spread over seeds."""
    lines = {}
    for inference in dict.fromkeys(row["inference"] for row in rows):
        own = [r for r in rows if r["inference"] == inference and r["control"] == "target_rates"]
        vectors = sorted({tuple(r["targets_nats"]) for r in own}, key=lambda vector: vector[-1])
        groups = [[r for r in own if tuple(r["targets_nats"]) == vector] for vector in vectors]
        shares = [np.mean([r["test_rates_nats"][-1] / sum(r["test_rates_nats"]) for r in g]) for g in groups]
        distortions = [[r["test_distortion_nats"] for r in group] for group in groups]
        lines[inference.replace("_", " ")] = (
            np.asarray(shares),
            np.asarray([np.mean(d) for d in distortions]),
            np.asarray([np.std(d, ddof=1) if len(d) > 1 else 0.0 for d in distortions]),
        )
    figures.trade_frontier(lines, f"Total rate held at {FRONTIER_TOTAL:g} nats", file)


def _as_text(rows: list[dict[str, Any]]) -> str:
    """JSON with one row per line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


if __name__ == "__main__":
    program.run(main)
