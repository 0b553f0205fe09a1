"""Ask a conditioned model, which was trained for all betas at once: at these betas, or at these rates.

    python -m experiments.ask --workdir=runs/digits_conditioned --betas=0.3,3
    python -m experiments.ask --workdir=runs/digits_conditioned --targets_nats=12,6 --out=answer.json
    python -m experiments.ask --workdir=runs/digits_conditioned --targets_bits=20 --target_shares=0.7,0.3
    python -m experiments.ask --workdir=runs/digits_conditioned --distortion_nats=15
    python -m experiments.ask --workdir=runs/digits_conditioned --best_for=classification --grid=DIR

One of these at a time. Betas that give rates are solved for on the validation split, in seconds; nothing is
trained. Prints betas, the rates of every split with their standard errors, the distortion, and what is out of
reach and why; writes reconstructions.png and samples.png into --pictures.
"""

import math
import pathlib
import time
from typing import Any, NamedTuple

from absl import flags

from experiments import pictures, program
from hvae_jax import conditioned, data, experiment, records
from hvae_jax.conditioned import Answer, Measure
from hvae_jax.errors import RunError
from hvae_jax.evaluation.metrics import Rates
from hvae_jax.experiment import Experiment
from hvae_jax.training import Params, checkpoints
from hvae_jax.values import shorten

QUESTIONS = ("betas", "targets_nats", "targets_bits", "distortion_nats", "best_for")
# What guidance calls them.
APPLICATIONS = {
    "reconstruction": "reconstruction",
    "classification": "representation",
    "representation": "representation",
    "generation": "generation",
    "detection": "detection",
}
PICTURES_FOLDER = "asked"


class Question(NamedTuple):
    """What is asked, in nats.

    Attributes:
      betas: to be asked at; or empty.
      rates: per layer, to be solved for; or empty.
      distortion: to be solved for; or None.
    """

    betas: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    distortion: float | None = None


def main(arguments: list[str]) -> None:
    """Reads the flags, solves, reports, draws."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    workdir = program.folder_flag("workdir", flags.FLAGS.workdir)
    out = None if flags.FLAGS.out is None else program.file_flag("out", flags.FLAGS.out, (".json",))
    target = program.folder_flag("pictures", flags.FLAGS.pictures or str(workdir / PICTURES_FOLDER))
    program.split_cpu(program.num_cores())
    built = experiment.from_folder(workdir, data=flags.FLAGS.data)
    found = built.beta_range
    if found is None:
        raise RunError(
            f"--workdir={workdir} holds a model of the betas {built.objective.betas} alone; ask one that was "
            "trained with config.model.conditioning, as experiments/digits_conditioned.py is"
        )
    question = read_question(workdir, built.model.num_layers)
    for layer, (low, beta, high) in enumerate(zip(found.lows, question.betas, found.highs, strict=False), 1):
        if not low <= beta <= high:
            raise RunError(
                f"beta_{layer}={beta:g} is outside of {low:g} … {high:g}, which {workdir} is trained for"
            )
    params = experiment.restore(built, workdir).eval_params
    content = ask(built, params, question)
    report = {"workdir": str(workdir), **content}
    if out is not None:
        program.make_parent(out)
        records.write_json(out, report)
    print(describe(report))
    betas = ", ".join(f"{beta:.3g}" for beta in report["betas"])
    target.mkdir(parents=True, exist_ok=True)
    title = f"{built.dataset.title}, one model for all betas, at ({betas})"
    pictures.draw(built, built.at(params, report["betas"]), title, target)
    print(f"Pictures are in {target}")


def ask(built: Experiment, params: Params, question: Question) -> dict[str, Any]:
    """The answer as JSON has it: `betas`, rates of every split, what is out of reach, `seconds` it took."""
    found = built.beta_range
    assert found is not None
    splits, most = built.dataset, flags.FLAGS.max_images
    solved_on = "valid" if len(splits.valid.images) else "train"
    images = {name: getattr(splits, name).images for name in ("train", "valid", "test")}
    measures = {
        name: Measure(built, params, rows[data.subset(len(rows), most)], flags.FLAGS.num_samples)
        for name, rows in images.items()
        if len(rows)
    }
    answer, seconds = None, 0.0
    if not question.betas:
        rows = images[solved_on]
        search = None
        if len(rows) > flags.FLAGS.search_images:
            few = rows[data.subset(len(rows), flags.FLAGS.search_images)]
            search = Measure(built, params, few)
        for compiled in filter(None, (search, measures[solved_on])):
            compiled(found.marked[0])
        start = time.perf_counter()
        ranges: dict[str, Any] = {"lows": found.lows, "highs": found.highs, "search": search}
        if question.distortion is None:
            answer = conditioned.solve(measures[solved_on], question.rates, **ranges)
        else:
            answer = conditioned.solve_distortion(measures[solved_on], question.distortion, **ranges)
        seconds = time.perf_counter() - start
    betas = answer.betas if answer else question.betas
    summaries = {name: measure.summary(betas) for name, measure in measures.items()}
    return _content(question, betas, answer, solved_on, summaries, seconds)


def read_question(workdir: pathlib.Path, num_layers: int) -> Question:
    """What the flags ask of a run.

    Raises:
      RunError: not one question, or not one number per layer.
    """
    given = [name for name in QUESTIONS if flags.FLAGS[name].value not in (None, [])]
    if len(given) != 1:
        raise RunError(
            f"give one of --{', --'.join(QUESTIONS)}" + (f", not {' and '.join(given)}" if given else "")
        )
    name = given[0]
    if flags.FLAGS.target_shares and not name.startswith("targets"):
        raise RunError("--target_shares splits a total rate: give it with --targets_nats or --targets_bits")
    if name == "best_for":
        return Question(betas=_best(workdir, flags.FLAGS.best_for, num_layers))
    if name == "distortion_nats":
        return Question(distortion=_numbers(name, [flags.FLAGS.distortion_nats])[0])
    given_values: list[Any] = flags.FLAGS[name].value or []
    values = _numbers(name, given_values)
    if flags.FLAGS.target_shares:
        shares = _numbers("target_shares", flags.FLAGS.target_shares)
        if len(values) != 1:
            raise RunError(
                f"--target_shares splits a total rate: give one number to --{name}, not {len(values)}"
            )
        if len(shares) != num_layers or min(shares) <= 0:
            raise RunError(
                f"--target_shares={','.join(flags.FLAGS.target_shares)} must be {num_layers} positive "
                "numbers, one per layer, z_1 first"
            )
        values = tuple(values[0] * share / sum(shares) for share in shares)
    if len(values) != num_layers or min(values) <= 0:
        advice = "" if name == "betas" else ", or the total with --target_shares"
        raise RunError(
            f"--{name}={','.join(map(str, given_values))} must be {num_layers} positive numbers, "
            f"one per layer, z_1 first{advice}"
        )
    if name == "betas":
        return Question(betas=values)
    return Question(
        rates=tuple(value * (math.log(2.0) if name == "targets_bits" else 1.0) for value in values)
    )


def describe(report: dict[str, Any]) -> str:
    """The answer in words."""
    lines = [f"betas {', '.join(f'{beta:.4g}' for beta in report['betas'])}"]
    if report["num_passes"]:
        lines[0] += (
            f", found in {report['seconds']:.1f} s and {report['num_passes']} passes, on the "
            f"{report['solved_on']} split"
        )
    for split in ("train", "valid", "test"):
        if f"{split}_rates_nats" not in report:
            continue
        both = zip(report[f"{split}_rates_nats"], report[f"{split}_rate_standard_errors_nats"], strict=True)
        terms = [f"D {report[f'{split}_distortion_nats']:.3f}"]
        terms += [f"R_{layer} {rate:.3f} ± {error:.3f}" for layer, (rate, error) in enumerate(both, start=1)]
        lines.append(f"  {split:<6}{'  '.join(terms)} nats, {report[f'{split}_num_images']} images")
    lines += [f"out of reach: {reason}" for reason in report["out_of_reach"]]
    return "\n".join(lines)


def _content(
    question: Question,
    betas: tuple[float, ...],
    answer: Answer | None,
    solved_on: str,
    summaries: dict[str, Rates],
    seconds: float,
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "betas": list(betas),
        "targets_nats": list(question.rates) or None,
        "target_distortion_nats": question.distortion,
        "out_of_reach": list(answer.out_of_reach) if answer else [],
        "solved_on": solved_on if answer else None,
        "num_passes": answer.num_passes if answer else 0,
        "seconds": round(seconds, 3),
    }
    for split, found in summaries.items():
        content |= {
            f"{split}_num_images": found.num_images,
            f"{split}_distortion_nats": found.distortion_nats.value,
            f"{split}_distortion_standard_error_nats": found.distortion_nats.standard_error,
            f"{split}_rates_nats": list(found.rates_nats.value),
            f"{split}_rate_standard_errors_nats": list(found.rates_nats.standard_error),
        }
    return content


def _best(workdir: pathlib.Path, application: str, num_layers: int) -> tuple[float, ...]:
    """The betas that guidance of an evaluated grid of the model names for an application."""
    if flags.FLAGS.grid is None:
        raise RunError(
            f"--best_for={application} needs --grid=DIR, a grid of this model that was evaluated: "
            "experiments.grid --from_model makes one, experiments.evaluate evaluates it"
        )
    folder = program.folder_flag("grid", flags.FLAGS.grid)
    if not (folder / "guidance.json").exists():
        raise RunError(f"--grid={folder} has no guidance.json: run experiments.evaluate --workdir={folder}")
    content = records.read_json(folder / "guidance.json")
    try:
        betas = tuple(map(float, content["applications"][APPLICATIONS[application]]["best"]["betas"]))
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / 'guidance.json'} names no best betas for {application}") from error
    if len(betas) != num_layers:
        raise RunError(f"--grid={folder} is of {len(betas)} layers, the model has {num_layers}")
    models = [records.read_json(file) for file in folder.glob(f"models/*/{records.FROM_MODEL_FILE}")]
    if checkpoints.checksum(workdir) not in {model["checksum"] for model in models}:
        raise RunError(f"--grid={folder} is not a grid of {workdir}: experiments.grid --from_model makes one")
    return betas


def _numbers(name: str, values: list[Any]) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, values))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise RunError(f"--{name}={shorten(','.join(map(str, values)))} must be finite numbers, as 12,6")
    return numbers


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("workdir", None, "Folder of a conditioned run.", required=True)
    flags.DEFINE_list("betas", [], "Betas to ask at, z_1 first: 0.3,3.")
    flags.DEFINE_list("targets_nats", [], "Rates to solve for, z_1 first: 12,6; or a total, with shares.")
    flags.DEFINE_list("targets_bits", [], "The same in bits.")
    flags.DEFINE_list("target_shares", [], "How a total rate is split over the layers: 0.7,0.3.")
    flags.DEFINE_float("distortion_nats", None, "Distortion to solve for, with equal betas.")
    flags.DEFINE_enum("best_for", None, sorted(APPLICATIONS), "The best betas of an evaluated grid, --grid.")
    flags.DEFINE_string("grid", None, "Folder of a grid of the model that was evaluated.")
    flags.DEFINE_string("out", None, "JSON file to write the answer to.")
    flags.DEFINE_string("pictures", None, "Folder for pictures; WORKDIR/asked by default.")
    flags.DEFINE_string("data", None, "A config.data.name instead of the run's own, for data that moved.")
    flags.DEFINE_integer("num_samples", 1, "Posterior draws per image.", lower_bound=1)
    flags.DEFINE_integer("max_images", 10_000, "Of each split, drawn by a fixed seed.", lower_bound=1)
    flags.DEFINE_integer("search_images", 512, "For all but the last steps of a search.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    program.run(main)
