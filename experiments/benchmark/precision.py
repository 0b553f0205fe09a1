"""Rates of trained models, computed in float32 and in bfloat16 from the same parameters and draws.

    python -m experiments.benchmark.precision --workdirs=runs/fashion,runs/fashion_bfloat16 --out=rows.json

A row a run: distortion and rates of the whole test split at its newest checkpoint, computed both ways, and
how far they are apart. Rows of runs that differ in `config.model.compute_dtype` alone show what it does to
training.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import flags

from experiments import program
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.keys import make_key
from hvae_jax.models.config import COMPUTE_DTYPES
from hvae_jax.training.split_evaluator import SplitEvaluator


def main(arguments: list[str]) -> None:
    """Reads the flags, evaluates, prints."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    rows = [compare(pathlib.Path(folder), options.num_samples) for folder in options.workdirs]
    for row in rows:
        print(f"trained in {row['trained_in']} to step {row['step']}:")
        for dtype in COMPUTE_DTYPES:
            terms = ", ".join(f"{value:.3f}" for value in row[dtype]["rates_nats"])
            print(f"  computed in {dtype}: D {row[dtype]['distortion_nats']:.3f}, rates {terms} nats")
        print(f"  largest difference of a rate: {100 * max(row['relative_rate_differences']):.3f} %")
    if options.out:
        records.write_json(pathlib.Path(options.out), rows)


def compare(folder: pathlib.Path, num_samples: int) -> dict[str, Any]:
    """One row, see the module."""
    config = records.read_json(folder / records.CONFIG_FILE)
    row: dict[str, Any] = {"trained_in": config["model"]["compute_dtype"], "num_samples": num_samples}
    row["seed"] = config["training"]["seed"]
    built = experiment.from_folder(folder)
    state = experiment.restore(built, folder)
    row["step"] = int(state.step)
    evaluator = SplitEvaluator(built.dataset.test.images, built.preprocess_fn)
    for dtype in COMPUTE_DTYPES:
        model = built.model.clone(config=dataclasses.replace(built.model.config, compute_dtype=dtype))
        repeated = rates.make_repeated_terms(model.apply, num_samples)
        terms = evaluator.map_images(repeated, state.eval_params, make_key(0))
        row[dtype] = to_plain(rates.summarize(terms, built.num_dims))
    a, b = (np.asarray(row[dtype]["rates_nats"]) for dtype in COMPUTE_DTYPES)
    row["relative_rate_differences"] = (np.abs(b - a) / a).tolist()
    return row


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_list("workdirs", None, "Folders of runs.", required=True)
    flags.DEFINE_integer("num_samples", 2, "Posterior draws an image.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
