"""Ask for many rates, by two controls, and tabulate how near each came.

    python -m experiments.targets_table --config=experiments/digits_targets.py --out=FILE
    python -m experiments.targets_table --config=experiments/digits_targets.py --sweep=frontier --out=FILE

The sweep `table` asks for eight target vectors per number of layers; `frontier` moves a fixed total rate
from one layer to the other, and draws what that does to the distortion beside FILE. The control
`found_betas` trains anew, from another seed, with the betas that `target_rates` found, held fixed. The
models of one setting (targets × seeds) train side by side, so they share one compiled step: that is what
targets in the state are for. Rows already in the file are not computed again.
"""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import program
from hvae_jax import batches, experiment, records, training
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates, targets
from hvae_jax.experiment import Experiment
from hvae_jax.figures import targets as figures
from hvae_jax.training import TrainState

_CONFIG = config_flags.DEFINE_config_file("config", None, "One of experiments/*.py.", lock_config=True)
_OUT = flags.DEFINE_string("out", None, "JSON file to write or to continue.", required=True)
_SWEEP = flags.DEFINE_enum("sweep", "table", ["table", "frontier"], "Which targets to ask for.")
_INFERENCE = flags.DEFINE_list("inference", ["generalized_top_down", "ladder"], "Inference models.")
_LAYERS = flags.DEFINE_list("layers", ["2", "3"], "Numbers of layers; the frontier has 2.")
_CONTROLS = flags.DEFINE_list("controls", ["target_rates", "pi", "found_betas"], "In this order.")
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


def main(arguments: list[str]) -> None:
    """Trains what is missing, one setting after the other, and prints the table."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    _, config = program.read_config(_CONFIG)
    file = pathlib.Path(_OUT.value)
    rows = records.read_json(file) if file.exists() else []
    sweep = {"table": TABLE, "frontier": FRONTIER}[_SWEEP.value]
    seeds = [int(seed) for seed in _SEEDS.value]
    for inference in _INFERENCE.value:
        for num_layers in map(int, _LAYERS.value):
            vectors = sweep.get(num_layers, ())[: _FIRST.value or None]
            wanted = [tuple(_SCALE.value * rate for rate in vector) for vector in vectors]
            for control in _CONTROLS.value if wanted else ():
                setting = {"inference": inference, "num_layers": num_layers, "control": control}
                done = {(tuple(r["targets_nats"]), r["seed"]) for r in rows if setting.items() <= r.items()}
                models = [(t, seed) for t in wanted for seed in seeds if (t, seed) not in done]
                if models:
                    rows += train_setting(config, setting, models, rows)
                    records.write_text(file, _as_text(rows))
    print(describe(rows))
    if _SWEEP.value == "frontier":
        draw_frontier(rows, file.with_suffix(".png"))


def train_setting(
    config: dict[str, Any],
    setting: dict[str, Any],
    models: list[tuple[tuple[float, ...], int]],
    found: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """One row for each of `models` (targets, seed), trained side by side.

    Args:
      config: of any of the models; targets, seed and layers are set here.
      setting: inference, number of layers, control.
      models: targets in nats, and seeds.
      found: rows of `target_rates`, whose betas the control "found_betas" takes.
    """
    builds = [_build(config, setting, wanted, seed, found) for wanted, seed in models]
    # The models differ in what their states hold alone, so the first one's functions serve them all.
    built = builds[0]
    states = [build.init_state() for build in builds]
    state, log = train_side_by_side(built, states, [build.training.seed for build in builds])
    evaluators = {
        split: rates.SplitEvaluator(getattr(built.dataset, split).images, built.preprocess_fn)
        for split in ("train", "test")
    }
    rows = []
    for index, (wanted, seed) in enumerate(models):
        params = jax.tree.map(lambda leaf, index=index: leaf[index], state.eval_params)
        row = {**setting, "seed": seed, "targets_nats": list(wanted)}
        row["betas"] = np.asarray(state.beta_state.betas[index]).tolist()
        for split, evaluator in evaluators.items():
            num_samples, key = built.evaluation.num_samples, jax.random.key(seed)
            terms = targets.fresh_terms(evaluator, built.terms_fn, params, key, num_samples)
            summary = rates.summarize(terms, built.num_dims)
            for name in ("rates_nats", "rates_nats_standard_error", "distortion_nats"):
                row[f"{split}_{name}"] = summary[name]
        row["settled_at_step"] = settled_at(log["step"], log["rates_nats"][:, index], wanted)
        row["num_steps"] = built.num_steps
        rows.append(row)
    return rows


def train_side_by_side(
    built: Experiment, states: list[TrainState], seeds: list[int]
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Trains states of one model, each on its own order of the data.

    Returns:
      the final states along a leading model axis M, on the host, and the log of every interval: `step`
      `[T]` and `rates_nats` `[T, M, L]`.

    Raises:
      RunError: a loss that is not finite.
    """
    config, images = built.training, built.dataset.train.images
    num_devices = jax.local_device_count() if len(states) % jax.local_device_count() == 0 else 1
    step_fn = training.make_train_step(built.terms_fn, built.preprocess_fn, built.make_control(), config)
    by_model = jax.vmap(batches.make_interval(step_fn), in_axes=(0, None, 0, None))
    interval = jax.pmap(
        by_model, in_axes=(0, None, 0, None), donate_argnums=0, devices=jax.local_devices()[:num_devices]
    )

    def split(leaf: Any) -> Any:
        return leaf.reshape(num_devices, -1, *leaf.shape[1:])

    state = jax.tree.map(lambda *leaves: split(jnp.stack(leaves)), *states)
    length, log = config.log_every_steps, {"step": [], "rates_nats": []}
    for start in range(0, built.num_steps, length):
        count = min(length, built.num_steps - start)
        indices = np.zeros((len(states), length, config.batch_size), np.int32)
        for row, seed in zip(indices, seeds, strict=True):
            row[:count] = batches.batch_indices(seed, len(images), config.batch_size, start, count)
        state, means, done = interval(state, images, split(indices), count)
        if np.min(done) < count:
            raise RunError(f"a loss is not finite after step {start + int(np.min(done))}")
        log["step"].append(start + count)
        log["rates_nats"].append(np.asarray(means.rates).reshape(len(states), -1))
    whole = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(len(states), *leaf.shape[2:]), state)
    return whole, {name: np.asarray(values) for name, values in log.items()}


def settled_at(steps: np.ndarray, measured: np.ndarray, wanted: tuple[float, ...]) -> int | None:
    """The step from which every interval's mean rates `[T, L]` stay within 2 % of the targets."""
    is_off = (np.abs(measured / np.asarray(wanted) - 1.0) > SETTLED_WITHIN).any(axis=1)
    last_off = np.flatnonzero(is_off)
    first = 0 if not len(last_off) else last_off[-1] + 1
    return int(steps[first]) if first < len(steps) else None


def describe(rows: list[dict[str, Any]]) -> str:
    """One line per setting: how many targets were reached, errors, time to settle."""
    lines = ["inference             L  control       models  train ≤ 1 %  test ok  worst   median  settled"]
    settings = dict.fromkeys((r["inference"], r["num_layers"], r["control"]) for r in rows)
    for inference, num_layers, control in settings:
        own = [
            r
            for r in rows
            if (r["inference"], r["num_layers"], r["control"]) == (inference, num_layers, control)
        ]
        reference = np.asarray([r["targets_nats"] for r in own])
        train = np.abs(np.asarray([r["train_rates_nats"] for r in own]) / reference - 1.0)
        test = np.abs(np.asarray([r["test_rates_nats"] for r in own]) / reference - 1.0)
        slack = 2.0 * np.asarray([r["test_rates_nats_standard_error"] for r in own]) / reference
        steps = [r["settled_at_step"] for r in own if r["settled_at_step"] is not None]
        settled = f"{len(steps)}/{len(own)}" + (f", median step {np.median(steps):.0f}" if steps else "")
        lines.append(
            f"{inference:<21} {num_layers}  {control:<13} {len(own):>5}  {(train < 0.01).all(1).sum():>10}"
            f"  {(test < 0.01 + slack).all(1).sum():>7}  {100 * train.max():5.1f} %  "
            f"{100 * np.median(train):5.2f} %  {settled}"
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


def _build(
    config: dict[str, Any],
    setting: dict[str, Any],
    wanted: tuple[float, ...],
    seed: int,
    found: list[dict[str, Any]],
) -> Experiment:
    num_layers, control = setting["num_layers"], setting["control"]
    first, *_, top = config["model"]["latent_shapes"]
    shapes = (first, *((2 * top[0],),) * (num_layers - 2), top)
    objective = {**config["objective"], "betas": (1.0,) * num_layers, "targets_nats": wanted}
    if control == "found_betas":
        asked = {**setting, "control": "target_rates", "seed": seed, "targets_nats": list(wanted)}
        rows = [row for row in found if asked.items() <= row.items()]
        if not rows:
            raise RunError("--controls=found_betas needs the rows of target_rates; name it first")
        objective.update(betas=tuple(rows[0]["betas"]), control="constant", targets_nats=())
        seed += REFIT_SEED
    else:
        objective["control"] = control
    return experiment.from_config(
        {
            **config,
            "model": {**config["model"], "inference": setting["inference"], "latent_shapes": shapes},
            "objective": objective,
            "training": {**config["training"], "seed": seed},
        }
    )


def _as_text(rows: list[dict[str, Any]]) -> str:
    """JSON with one row per line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


if __name__ == "__main__":
    # Models side by side take one core each: threads gain little in one small model.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    program.run(main)
