"""Draw how each layer's test rate answers to one layer's beta, from finished runs that differ in it.

    python -m experiments.plot_betas --out=FILE.png --results=FILE.json RUN_FOLDER RUN_FOLDER ...

One panel for each layer whose beta differs from 1 in some run; a run at all ones joins every panel. Runs
that differ in the seed alone are drawn as dots about their mean; runs of other data, models or training
are refused. The results are what the folders hold of the test split, one entry for each choice of betas
and seed.
"""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import program
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.figures import runs as figures


def main(folders: list[str]) -> None:
    """Reads config.json and evaluation.json of every folder, draws, and prints what it drew."""
    options = flags.FLAGS
    out = program.file_flag("out", options.out)
    results = (
        None if options.results is None else program.file_flag("results", options.results, (".json", ""))
    )
    rows = read_rows(folders)
    panels = make_panels(rows)
    for layer, points in panels.items():
        for beta, rates in points.items():
            text = "  ".join(f"{rate:.3f}" for rate in rates.mean(axis=0))
            seeds = f", means over {len(rates)} seeds" if len(rates) > 1 else ""
            print(f"beta_{layer} = {beta:<5g} rates {text} nats{seeds}")
    program.make_parent(out)
    figures.rates_against_beta(panels, out)
    if results:
        program.make_parent(results)
        records.write_json(results, {"rows": [row._asdict() for row in rows]})


class Row(NamedTuple):
    """A run, as the results name it: `test` is what its evaluation.json says of the test split."""

    betas: list[float]
    seed: int
    test: dict[str, Any]

    @property
    def rates_nats(self) -> list[float]:
        """R_1 … R_L."""
        return self.test["rates_nats"]


def read_rows(folders: Sequence[str]) -> list[Row]:
    """Betas, seed and test rates of every folder, each choice of betas and seed once, in order.

    Raises:
      RunError: no finished run, or runs that differ in more than betas and seed.
    """
    distinct: dict[tuple[float, ...], Row] = {}
    first: tuple[str, dict[str, Any]] | None = None
    for folder in folders:
        config, row = read_row(program.folder_flag("RUN_FOLDER", folder))
        first = first or (folder, config)
        names = _differences(config, first[1])
        if names:
            raise RunError(
                f"{folder} and {first[0]} differ in config.{names[0]}, not in betas and seeds alone; draw "
                "each of them with its like"
            )
        distinct[(*row.betas, row.seed)] = row
    return [distinct[key] for key in sorted(distinct)]


def read_row(folder: pathlib.Path) -> tuple[dict[str, Any], Row]:
    """A run's config, and what its folder says of its betas and of the test split.

    Raises:
      RunError: no run, one that is not complete, or one that solves for its betas.
    """
    config = records.read_json(folder / records.CONFIG_FILE)
    try:
        betas = [float(beta) for beta in config["objective"]["betas"]]
        seed, control = int(config["training"]["seed"]), config["objective"].get("control", "constant")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder / records.CONFIG_FILE} is not the config of a run") from error
    if control != "constant":
        raise RunError(f"{folder} solves for its betas (config.objective.control={control!r}); leave it out")
    if groups := config["objective"].get("beta_groups"):
        raise RunError(
            f"{folder} has a beta per group of layers (config.objective.beta_groups={groups!r}); leave it "
            "out: experiments.grid draws such betas"
        )
    file = folder / records.EVALUATION_FILE
    if not file.exists():
        raise RunError(f"{file} does not exist: the run is not finished; the command that began it goes on")
    try:
        test = records.read_json(file)["test"]
        rates = np.asarray(test["rates_nats"], float)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} has no rates of the test split; delete it and run again") from error
    if rates.shape != (len(betas),):
        raise RunError(f"{file} has {rates.size} test rates, but the run has {len(betas)} layers; restore it")
    return config, Row(betas, seed, test)


def _differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Fields in which two configs differ, but for betas, seeds and what changes no training."""
    names = []
    for group in sorted(config.keys() & other.keys()):
        fields, others = config[group], other[group]
        # A field that one of them does not have was added after it was made.
        for name in sorted(fields.keys() & others.keys()):
            differs = fields[name] != others[name]
            if name == "betas":
                differs = len(fields[name]) != len(others[name])
            elif name.endswith("seed") or f"{group}.{name}" in records.NOT_TRAINING or group == "evaluation":
                differs = False
            names += [f"{group}.{name}"] * differs
    return names


def make_panels(rows: Sequence[Row]) -> dict[int, dict[float, np.ndarray]]:
    """Layer → its beta → the test rates `[S, L]` of the runs with it, one for each seed.

    Raises:
      RunError: betas that have no place in such a figure, or too few.
    """
    found: dict[int, dict[float, list[list[float]]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    even: list[list[float]] = []
    for row in rows:
        betas, rates = row.betas, row.rates_nats
        layers = [layer for layer, beta in enumerate(betas, start=1) if beta != 1.0]
        if len(layers) > 1:
            raise RunError(f"the run with betas {betas}: at most one may differ from 1")
        if not layers:
            even.append(rates)
            continue
        beta = betas[layers[0] - 1]
        if beta <= 0.0:
            raise RunError(f"the run with betas {betas}: the axis of betas is logarithmic; leave it out")
        found[layers[0]][beta].append(rates)
    if not found:
        raise RunError("give the folders of finished runs, at least one with a beta that is not 1")
    panels = {}
    for layer, points in sorted(found.items()):
        if even:
            points[1.0] = even
        panels[layer] = {beta: np.asarray(points[beta]) for beta in sorted(points)}
    return panels


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("out", None, "Picture to write.", required=True)
    flags.DEFINE_string("results", None, "JSON to write the numbers to.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
