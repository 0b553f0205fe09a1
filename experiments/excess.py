"""What one conditioned model costs at each betas against models that were trained for those betas alone.

    python -m experiments.excess --runs=RUN,RUN --separate=GRID --out=FILE.json --figure=FILE.png

The excess of D + Σ β_l R_l on the test split, mean over the seeds of the conditioned runs, at every betas of
a grid that was trained (its folder or its grid.csv; models that differ in the seed alone are averaged); how
the rates answer to their own betas on both sides; and with --equal_rates the excess of D at equal rates, for
which the first run is asked for the rates of every separate model on the test split itself.
"""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import grid_from_model, program
from hvae_jax import conditioned, data, experiment, records
from hvae_jax.beta_range import BetaRange
from hvae_jax.conditioned import Means, Measure
from hvae_jax.errors import RunError
from hvae_jax.evaluation import excess
from hvae_jax.evaluation.excess import Point
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.experiment import Experiment
from hvae_jax.figures import excess as figures
from hvae_jax.grid import table as grid_table

SEARCH_IMAGES = 512

Betas = tuple[float, ...]


class Separate(NamedTuple):
    """Models trained for the same betas, which differ in their seeds: their means on the test split, nats."""

    means: Means
    objective: float
    num_models: int


def main(arguments: list[str]) -> None:
    """Reads the flags, measures every betas, prints, writes, draws."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    out = None if options.out is None else program.file_flag("out", options.out, (".json",))
    figure = None if options.figure is None else program.file_flag("figure", options.figure)
    folders = [program.folder_flag("runs", name) for name in options.runs]
    table = program.source_flag("separate", options.separate, records.GRID_FILE)
    separate = read_separate(table)
    program.split_cpu(program.num_cores())
    builts = [experiment.from_folder(folder, data=options.data) for folder in folders]
    grid_from_model.check_runs("runs", folders, builts)
    check(folders[0], builts[0].beta_range, separate)
    check_models(table.parent, builts[0])
    if figure and (num_layers := builts[0].model.num_layers) != 2:
        raise RunError(f"--figure={figure} is a map over two betas; leave it out for {num_layers} layers")
    params = [experiment.restore(b, f).eval_params for b, f in zip(builts, folders, strict=True)]
    images, num_samples = builts[0].dataset.test.images, options.num_samples
    if not len(images):
        raise RunError("config.data has no test split, on which models are compared")
    measures = [Measure(built, own, images, num_samples) for built, own in zip(builts, params, strict=True)]
    ask = make_ask(measures[0], builts[0], params[0]) if options.equal_rates else None
    points = [
        make_point(betas, separate[betas], measures, ask)
        for betas in tqdm(sorted(separate), unit="betas", disable=None)
    ]
    summary = excess.summarize(points)
    content = {
        "runs": [str(folder) for folder in folders],
        "separate": options.separate,
        "num_images": len(images),
        "summary": to_plain(summary),
        "answering": {
            "separate": to_plain(excess.answering({p.betas: p.separate_rates_nats for p in points})),
            "conditioned": [
                to_plain(excess.answering({p.betas: p.rates_nats[seed] for p in points}))
                for seed in range(len(folders))
            ],
        },
        "points": [to_plain(point) for point in points],
    }
    print(describe(summary, options.equal_rates))
    if out:
        program.make_parent(out)
        records.write_json(out, content)
    if figure:
        program.make_parent(figure)
        figures.excess_map(points, figure)


def read_separate(file: pathlib.Path) -> dict[Betas, Separate]:
    """Betas → the models that a grid trained for them; those that diverged are left out.

    Raises:
      RunError: no table of a grid of fixed betas.
    """
    found: dict[Betas, list[tuple[float, np.ndarray]]] = collections.defaultdict(list)
    for row in grid_table.read_csv(file):
        num_layers = sum(name.startswith("test_rate_") for name in row)
        try:
            betas = tuple(float(row[f"beta_{layer}"]) for layer in range(1, num_layers + 1))
            if row["status"] == grid_table.OK:
                rates = [float(row[f"test_rate_{layer}_nats"]) for layer in range(1, num_layers + 1)]
                found[betas].append((float(row["test_distortion_nats"]), np.asarray(rates)))
        except (KeyError, ValueError) as error:
            raise RunError(f"--separate: {file} is no table of models with a beta for every layer") from error
    if not found:
        raise RunError(f"--separate: {file} has no model that was trained to its end")
    separate = {}
    for betas, models in found.items():
        means = Means(
            float(np.mean([distortion for distortion, _ in models])),
            np.mean([rates for _, rates in models], axis=0),
        )
        objective = excess.objective(betas, means.distortion, means.rates)
        separate[betas] = Separate(means, objective, len(models))
    return separate


def check(folder: pathlib.Path, beta_range: BetaRange | None, separate: Mapping[Betas, Separate]) -> None:
    """Raises RunError unless the conditioned run is trained for all of these betas."""
    assert beta_range is not None
    lows, highs = beta_range.lows, beta_range.highs
    for betas in separate:
        if len(betas) != len(lows) or not all(
            low <= beta <= high for low, beta, high in zip(lows, betas, highs, strict=True)
        ):
            raise RunError(
                f"--separate has a model at the betas {betas}, and {folder} is trained for betas from {lows} "
                f"to {highs}"
            )


def check_models(folder: pathlib.Path, built: Experiment) -> None:
    """Raises RunError where the models beside a table were not trained, or on other data.

    A table alone does not say what it is of.

    Args:
      folder: of the table.
      built: the conditioned run.
    """
    for run in sorted(folder.glob(f"{records.MODELS_FOLDER}/*/{records.CONFIG_FILE}"))[:1]:
        if (run.parent / records.FROM_MODEL_FILE).exists():
            raise RunError(
                f"--separate: {folder} is a grid of a conditioned model, which was not trained for each"
            )
        records.check_data(run.parent, built.dataset.describe())
        model, own = records.read_json(run)["model"], built.model.config
        for name in ("latent_shapes", "likelihood"):
            theirs, ours = (json.dumps(value) for value in (model[name], getattr(own, name)))
            if theirs != ours:
                raise RunError(f"--separate: {folder} has config.model.{name}={theirs}, the runs {ours}")


def make_point(betas: Betas, separate: Separate, measures: Sequence[Measure], ask: Any) -> Point:
    """One vector of betas on both sides."""
    means = [measure(betas) for measure in measures]
    objectives = [excess.objective(betas, *of_seed) for of_seed in means]
    return Point(
        betas=betas,
        separate_objective_nats=separate.objective,
        num_separate=separate.num_models,
        separate_rates_nats=tuple(separate.means.rates.tolist()),
        objective_nats=tuple(objectives),
        rates_nats=tuple(tuple(of_seed.rates.tolist()) for of_seed in means),
        excess_nats=float(np.mean(objectives)) - separate.objective,
        distortion_excess_nats=ask(separate.means) if ask else None,
    )


def make_ask(measure: Measure, built: experiment.Experiment, params: Any) -> Any:
    """means of separate models → how much higher D is at their rates; None where they are out of reach."""
    found = built.beta_range
    assert found is not None
    images = built.dataset.test.images
    search = Measure(built, params, images[data.subset(len(images), SEARCH_IMAGES)])
    surveyed = conditioned.survey(search, found.lows, found.highs)

    def ask(separate: Means) -> float | None:
        if separate.rates.min() < excess.MIN_ASKED_NATS:
            return None
        answer = conditioned.solve(
            measure, separate.rates.tolist(), found.lows, found.highs, search=search, surveyed=surveyed
        )
        return None if answer.out_of_reach else answer.means.distortion - separate.distortion

    return ask


def describe(summary: excess.Summary, is_asked: bool) -> str:
    """What is printed; `is_asked`: whether D at equal rates was wanted."""
    worst = ", ".join(f"{beta:g}" for beta in summary.worst_betas)
    text = (
        f"D + Σ β R is lower than separately trained at {summary.num_lower} of {summary.num_points} betas "
        f"(seeds alone: {', '.join(map(str, summary.num_lower_of_seeds))}); excess: mean "
        f"{summary.mean_nats:+.2f} nats ({100 * summary.mean_relative:+.1f} %), median "
        f"{summary.median_nats:+.2f}, best {summary.best_nats:+.2f}, worst {summary.worst_nats:+.2f} at "
        f"({worst})"
    )
    if summary.median_distortion_nats is not None:
        text += (
            f"; D at equal rates, at {summary.num_distortions} betas: median "
            f"{summary.median_distortion_nats:+.2f} nats, worst {summary.worst_distortion_nats:+.2f}"
        )
    elif is_asked:
        text += "; none of the separate models' rates are within reach of the first run"
    return text


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_list("runs", None, "Folders of conditioned runs of different seeds.", required=True)
    flags.DEFINE_string("separate", None, "Folder, or grid.csv, of a grid that was trained.", required=True)
    flags.DEFINE_bool("equal_rates", False, "Ask the first run for the rates of the separate models, too.")
    flags.DEFINE_integer("num_samples", 1, "Posterior draws for each image.", lower_bound=1)
    flags.DEFINE_string("data", None, "Another place of the runs' data.")
    flags.DEFINE_string("out", None, "JSON to write.")
    flags.DEFINE_string("figure", None, "PNG to write, for models with two layers.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
