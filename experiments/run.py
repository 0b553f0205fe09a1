"""Train one model, evaluate it at β = 1, draw it.

    python -m experiments.run --config=experiments/digits.py
    python -m experiments.run --config=experiments/cifar.py --config.objective.betas="(0.3,3.0)" --workdir=DIR

The folder then holds config.json, versions.json, data.json, rates.jsonl, checkpoints/, evaluation.json and
figures/. The same command resumes a run that was stopped, and evaluates one that is complete; with more
config.training.num_epochs it goes on. Ctrl-C and SIGTERM save a checkpoint first; a second Ctrl-C does not.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import textwrap
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments import program
from hvae_jax import experiment, going_on, records, training
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates, targets
from hvae_jax.evaluation.metrics import ImportanceBound, Rates, RunEvaluation, TargetReport
from hvae_jax.evaluation.plain import Estimate, to_plain
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.experiment import Experiment
from hvae_jax.files import claims
from hvae_jax.going_on import Start
from hvae_jax.keys import make_key
from hvae_jax.training import Params, TrainState, checkpoints, processes
from hvae_jax.training.split_evaluator import SplitEvaluator
from hvae_jax.training.stopping import STOP_SECONDS, StopSignals


def main(arguments: list[str]) -> None:
    """Reads the flags, trains, evaluates."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    # A signal ends what cannot be saved at once; while steps are done, there is time for a checkpoint.
    with StopSignals(program.stop_now, seconds=0.0) as signals, contextlib.ExitStack() as stack:
        _run(signals, stack)


def _run(signals: StopSignals, stack: contextlib.ExitStack) -> None:
    name, config = program.read_config()
    workdir = program.folder_flag(
        "workdir", f"runs/{name}" if flags.FLAGS.workdir is None else flags.FLAGS.workdir
    )
    init_from = (
        None if flags.FLAGS.init_from is None else program.folder_flag("init_from", flags.FLAGS.init_from)
    )
    if not math.isfinite(flags.FLAGS.start_timeout_s):
        raise RunError(f"--start_timeout_s={flags.FLAGS.start_timeout_s} must be a finite number of seconds")
    num_processes = processes.start(
        flags.FLAGS.coordinator,
        flags.FLAGS.num_processes,
        flags.FLAGS.process_id,
        flags.FLAGS.start_timeout_s,
    )
    batch_size = config["training"].get("batch_size")
    program.split_cpu_for_batch(
        batch_size // num_processes if isinstance(batch_size, int) else 1
    )  # what it is else, is said below
    built = experiment.from_config(config)
    described, is_main = built.dataset.describe(), processes.is_main()
    if is_main:
        program.show_notices(built.dataset)
    if num_processes > 1:
        splits = {f"the {s} split": str(split).encode() for s, split in described["splits"].items()}
        processes.check_same({"the config": json.dumps(config).encode(), **splits})
    start = open_folder(stack, workdir, built, config, described, init_from) if is_main else None
    tensorboard = None
    if flags.FLAGS.tensorboard and is_main:
        tensorboard = records.TensorBoard(workdir, built.training.log_every_steps)
        stack.callback(tensorboard.close)

    test = SplitEvaluator(built.dataset.test.images, built.preprocess_fn)
    validate = None
    if len(built.dataset.valid.images):
        valid = SplitEvaluator(built.dataset.valid.images, built.preprocess_fn)
        validate = functools.partial(
            valid.map_images, built.valid_terms_fn(), key=make_key(built.training.seed)
        )

    def stop_requested() -> bool:
        signals.seconds = STOP_SECONDS
        return signals.requested()

    with (
        Progress(built.num_steps, built.named_groups, is_shown=is_main) as progress,
        contextlib.closing(built.make_batches()) as batches,
    ):
        state = training.train(
            workdir,
            init_state(built, start),
            built.train_terms_fn,
            batches,
            preprocess_fn=built.preprocess_fn,
            control=built.make_control(),
            config=built.training,
            beta_range=built.beta_range,
            validate=validate,
            reports=[progress.report, *([tensorboard.report] if tensorboard else [])],
            stop_requested=stop_requested,
            monte_carlo_rates=built.model.config.monte_carlo_rates,
        )
    if signals.requested():  # too late for the loop, which has saved its last step
        program.stop_now()
    signals.seconds = 0.0
    params = built.at(state.eval_params)
    summary = evaluate(built, params, test)
    lines, report = [_describe(summary)], None
    if built.objective.control != "constant":
        report = evaluate_targets(built, state, summary)
        lines.append(targets.describe_targets(report))
    evaluation = RunEvaluation(step=int(state.step), test=summary, targets=report)
    if not is_main:
        return
    records.write_json(workdir / records.EVALUATION_FILE, to_plain(evaluation))
    # Only now: the first step need not wait for Matplotlib.
    from experiments import run_figures

    run_figures.draw(built, params, workdir, summary, report)
    print(*lines, f"Everything is in {workdir}", sep="\n")


def open_folder(
    stack: contextlib.ExitStack,
    workdir: pathlib.Path,
    built: Experiment,
    config: dict[str, Any],
    described: dict[str, Any],
    init_from: pathlib.Path | None,
) -> Start | None:
    """Opens the run's folder for this process alone, after every check; what the run starts from.

    Raises:
      RunError: the folder is another run's or of other data, another process is at work in it, or it cannot
        be written. Then it is as it was.
    """
    asked: dict[str, Any] = {"may_change": ("evaluation", "training.num_epochs"), "may_replace": True}

    def check() -> Start | None:
        for name in (records.CHECKPOINTS_FOLDER, records.FIGURES_FOLDER):
            if (workdir / name).exists() and not (workdir / name).is_dir():
                raise RunError(f"{workdir / name} must be a folder, but it is a file; move it away")
        is_new = records.check_run(workdir, config, described, **asked)
        going_on.check_epochs(workdir, built, config)
        start = going_on.find_start(workdir, init_from)
        if start is not None and not going_on.has_begun(workdir):
            if is_new and init_from is None:  # another config: what was remembered was for the former
                return None
            going_on.init_state(built, start)
        return start

    check()
    stack.enter_context(claims.claim(workdir / records.RUN_LOCK, f"the run in {workdir}"))
    start = check()  # as it is now that no other process can change it
    records.open_run(workdir, config, described, **asked)
    if start is not None:
        records.write_json(workdir / records.INIT_FILE, start._asdict())
    done = checkpoints.latest_step(workdir)
    if not done:
        return start
    if done < built.num_steps:  # what is there is of a shorter run
        (workdir / records.EVALUATION_FILE).unlink(missing_ok=True)
    return None


def init_state(built: Experiment, start: Start | None) -> TrainState:
    """The state before the first step on every process, as process 0 starts."""
    fresh = built.init_state()
    if not processes.values_from_main(lambda: {"is_given": start is not None})["is_given"]:
        return fresh
    return processes.from_main(lambda: going_on.init_state(built, start) if start else fresh, fresh)


def evaluate(built: Experiment, params: Params, test: SplitEvaluator) -> Rates:
    """The whole test split at β = 1, and the importance-weighted bound."""
    key = make_key(built.training.seed)
    num_samples, num_importance = built.evaluation.num_samples, built.evaluation.num_importance_samples
    terms = test.map_images(rates.make_repeated_terms(built.terms_fn, num_samples), params, key)
    bound_fn = rates.make_importance_bound(built.log_weight_fn, num_importance)
    bound = test.map_images(bound_fn, params, jax.random.fold_in(key, 1))
    value, error = float(np.mean(bound, dtype=np.float64)), float(rates.standard_error(bound))
    estimated = ImportanceBound(
        num_samples=num_samples,
        negative_importance_weighted_bound_nats=Estimate(-value, error),
        num_importance_samples=num_importance,
    )
    monte_carlo = built.model.config.monte_carlo_rates
    summary = rates.summarize(terms, built.num_dims, built.named_groups, monte_carlo_rates=monte_carlo)
    return dataclasses.replace(summary, bound=estimated)


def evaluate_targets(built: Experiment, state: TrainState, test: Rates) -> TargetReport:
    """The targets beside the rates of every split, each over the whole split with fresh noise."""
    seed, num_passes = built.training.seed, built.evaluation.num_samples
    summaries = {}
    for split in ("train", "valid"):
        images = getattr(built.dataset, split).images
        if len(images):
            evaluator = SplitEvaluator(images, built.preprocess_fn)
            terms = targets.fresh_terms(evaluator, built.terms_fn, state.eval_params, seed, num_passes)
            summaries[split] = rates.summarize(terms, built.num_dims, built.named_groups)
    betas = built.beta_groups.collapse(np.asarray(state.beta_state.betas)).tolist()
    return targets.report_targets(
        built.objective, built.num_dims, betas, summaries["train"], summaries.get("valid"), test
    )


class Progress:
    """A bar with the distortion and every layer's rate; off a terminal, a line per validation pass.

    Where `grouped` puts layers together, the rates are those of the groups.
    """

    def __init__(self, num_steps: int, grouped: NamedGroups, is_shown: bool = True) -> None:
        is_off, self._grouped = None if is_shown else True, grouped
        self._bar = tqdm(total=num_steps, unit="step", disable=is_off, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def report(self, row: dict[str, Any]) -> None:
        """Shows one row of the rate log."""
        terms = {"D": row["distortion_nats"]}
        terms.update(self._rates(row["rates_nats"]))
        if row["split"] == "train":
            self._bar.n = row["step"]
            self._bar.set_postfix({name: f"{value:.2f}" for name, value in terms.items()})
        elif self._bar.disable:
            text = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
            print(f"step {row['step']}/{self._bar.total}  {row['split']}  {text} nats", flush=True)

    def _rates(self, of_layers: list[float]) -> dict[str, float]:
        groups, names = self._grouped
        if groups.are_layers:
            return {f"R_{layer}": rate for layer, rate in enumerate(of_layers, start=1)}
        sums = groups.sum(np.asarray(of_layers)).tolist()
        return {f"R of {name}": rate for name, rate in zip(names, sums, strict=True)}


def _describe(summary: Rates) -> str:
    rows = [("−ELBO", summary.negative_elbo_nats), ("distortion D", summary.distortion_nats)]
    if summary.groups is None:
        for layer, rate in enumerate(zip(*summary.rates_nats, strict=True), start=1):
            how = " (MC)" if layer in (summary.monte_carlo_rates or ()) else ""
            rows.append((f"rate R_{layer}{how}", Estimate(*rate)))
    lines = [f"  {name:<14}{value:10.4f} ± {error:.4f}" for name, (value, error) in rows]
    for group in summary.groups or ():
        value, error = group.rate_nats
        low, high = group.lowest_layer, group.highest_layer
        layers = ", ".join(f"{rate:.3f}" for rate in summary.rates_nats.value[low - 1 : high])
        lines.append(f"  {f'rate of {group.name}':<14}{value:10.4f} ± {error:.4f}")
        if high > low:
            lines += textwrap.wrap(
                f"R_{low} … R_{high}: {layers}", 100, initial_indent=" " * 16, subsequent_indent=" " * 16
            )
    if bound := summary.bound:
        value = -bound.negative_importance_weighted_bound_nats.value
        lines.append(f"  log p(x) ≥ {value:.4f} ({bound.num_importance_samples} importance samples)")
    return "\n".join(
        [
            f"Test split, {summary.num_images} images, β = 1, nats per image:",
            *lines,
            *(
                ["  (MC: Monte Carlo rate, log q(z) − log p(z) at the draws)"]
                * bool(summary.monte_carlo_rates)
            ),
            f"  {summary.bits_per_dim:.4f} bits per dimension",
        ]
    )


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    config_flags.DEFINE_config_file("config", None, "One of experiments/*.py.", lock_config=True)
    flags.DEFINE_string("workdir", None, "The run's folder; runs/NAME_OF_CONFIG by default.")
    flags.DEFINE_boolean("tensorboard", False, "Also write TensorBoard events into the folder.")
    flags.DEFINE_string(
        "coordinator", None, "Of one run over several processes: HOST:PORT of process 0, or auto."
    )
    flags.DEFINE_integer("num_processes", None, "How many; with --coordinator=HOST:PORT.")
    flags.DEFINE_integer("process_id", None, "Which this is, from 0; with --coordinator=HOST:PORT.")
    flags.DEFINE_float("start_timeout_s", 120.0, "For all processes to arrive.", lower_bound=1.0)
    flags.DEFINE_string(
        "init_from", None, "Folder of a run: start from its newest parameters, for other betas or data."
    )
    flags.mark_flag_as_required("config")


if __name__ == "__main__":
    define_flags()
    program.run(main)
