"""What it costs to tell networks their betas: parameters, and the time of a training step.

    python -m experiments.benchmark.conditioning --out=rows.json

The 28×28 reference, its ladder and a small deep network with `config.model.conditioning` none, scale_shift
and gates. Steps are timed in turn, in CPU seconds and on the wall; a ratio is the median of the ratios to
"none" of the same turn. Every image has betas of its own in a conditioned step, as in training.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from experiments import digits_deep, mnist, program
from experiments.benchmark.depth import compile_step, report
from hvae_jax.errors import RunError
from hvae_jax.models.config import CONDITIONING

BETA_RANGE = (0.08, 12.6)


def main(arguments: list[str]) -> None:
    """Reads the flags, measures, prints a line for every network."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    out = None if options.out is None else program.file_flag("out", options.out, (".json", ""))
    jax.config.update("jax_platforms", "cpu")
    report([row for name in NETWORKS for row in measure(name, options.repeats)], out)


def _reference() -> tuple[dict[str, Any], tuple[int, int, int]]:
    return mnist.get_config().to_dict(), (28, 28, 1)


def _ladder() -> tuple[dict[str, Any], tuple[int, int, int]]:
    config, shape = _reference()
    config["model"]["inference"] = "ladder"
    return config, shape


def _deep() -> tuple[dict[str, Any], tuple[int, int, int]]:
    return digits_deep.get_config().to_dict(), (8, 8, 1)


NETWORKS = {"28×28 reference": _reference, "28×28 ladder": _ladder, "digits, deep": _deep}


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each conditioning of one network."""
    rows: list[dict[str, Any]] = []
    steps: list[Callable[[], None]] = []
    for kind in CONDITIONING:
        config, image_shape = NETWORKS[name]()
        config["model"]["conditioning"] = kind
        if kind != "none":
            config["objective"]["beta_range"] = BETA_RANGE
        row, step = compile_step(config, image_shape)
        rows.append({"network": name, "conditioning": kind, "num_parameters": row["num_parameters"]})
        steps.append(step)
        step()
    cpu: list[list[float]] = [[] for _ in steps]
    wall: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for place, step in enumerate(steps):
            start = time.process_time(), time.perf_counter()
            step()
            cpu[place].append(time.process_time() - start[0])
            wall[place].append(time.perf_counter() - start[1])
    for row, own_cpu, own_wall in zip(rows, cpu, wall, strict=True):
        row["step_ms"] = 1e3 * statistics.median(own_wall)
        for label, own, first in (("cpu", own_cpu, cpu[0]), ("wall", own_wall, wall[0])):
            row[f"{label}_ratio"] = statistics.median(a / b for a, b in zip(own, first, strict=True))
        row["parameter_ratio"] = row["num_parameters"] / rows[0]["num_parameters"]
    return rows


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_integer("repeats", 15, "Turns.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
