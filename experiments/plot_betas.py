"""Draw how each layer's test rate answers to one layer's beta, from finished runs that differ in it.

    python -m experiments.plot_betas --out=FILE.png --results=FILE.json RUN_FOLDER RUN_FOLDER ...

One panel for each layer whose beta differs from 1 in some run; a run at all ones joins every panel. The
results are what the folders hold of the test split, one entry for each choice of betas and seed.
"""

import collections
import pathlib
from typing import Any

import numpy as np
from absl import flags

from experiments import program
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.figures import runs as figures

_OUT = flags.DEFINE_string("out", None, "Picture to write.", required=True)
_RESULTS = flags.DEFINE_string("results", None, "JSON to write the numbers to.")


def main(folders: list[str]) -> None:
    """Reads config.json and evaluation.json of every folder, draws, and prints what it drew."""
    out = program.file_flag("out", _OUT.value)
    results = None if _RESULTS.value is None else program.file_flag("results", _RESULTS.value, (".json", ""))
    found: dict[int, dict[float, list[float]]] = collections.defaultdict(dict)
    even: list[float] | None = None
    rows = [read_row(pathlib.Path(folder)) for folder in folders]
    for folder, row in zip(folders, rows, strict=True):
        betas, rates = row["betas"], row["test"]["rates_nats"]
        layers = [layer for layer, beta in enumerate(betas, start=1) if beta != 1.0]
        if len(layers) > 1:
            raise RunError(f"{folder} has betas {betas}; at most one may differ from 1")
        if layers:
            found[layers[0]][betas[layers[0] - 1]] = rates
        else:
            even = rates
    if not found:
        raise RunError("give the folders of finished runs, at least one with a beta that is not 1")
    panels = {}
    for layer, points in found.items():
        if even is not None:
            points[1.0] = even
        betas = sorted(points)
        panels[layer] = betas, np.asarray([points[beta] for beta in betas])
        for beta in betas:
            print(f"beta_{layer} = {beta:<5g} rates {'  '.join(f'{rate:.3f}' for rate in points[beta])} nats")
    program.make_parent(out)
    figures.rates_against_beta(panels, out)
    if results:
        program.make_parent(results)
        distinct = {(*row["betas"], row["seed"]): row for row in rows}
        records.write_json(results, {"rows": [distinct[key] for key in sorted(distinct)]})


def read_row(folder: pathlib.Path) -> dict[str, Any]:
    """What a run's folder says of its betas and of the test split.

    Raises:
      RunError: the run is not complete.
    """
    config = records.read_json(folder / records.CONFIG_FILE)
    return {
        "betas": config["objective"]["betas"],
        "seed": config["training"]["seed"],
        "test": records.read_json(folder / records.EVALUATION_FILE)["test"],
    }


if __name__ == "__main__":
    program.run(main)
