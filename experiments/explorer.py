"""Make a page to look at a grid with: sliders for the betas, and what the model does there.

    python -m experiments.grid --config=experiments/digits_grid.py --from_model=RUN --workdir=DIR
    python -m experiments.evaluate --workdir=DIR
    python -m experiments.explorer --workdir=DIR

Takes a grid of one conditioned model (--from_model) or of models that were trained each for its own betas; of
several seeds the first. Reconstructions of test images, samples, rates and distortion of all models go into
DIR/explorer.html, one file that needs no network; accuracy and scores too where experiments.evaluate has been
there. Nothing is trained. The page's address takes the places of the sliders: explorer.html#2,1.
"""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import explorer_models, program
from experiments.explorer_models import Renderer
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation.choices import Guidance
from hvae_jax.evaluation.metrics import Rates
from hvae_jax.evaluation.plain import from_plain
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.experiment import Experiment
from hvae_jax.figures import explorer
from hvae_jax.figures.explorer import MEGABYTE, Axis, Content, Mark, Point, Quantity, subscript
from hvae_jax.grid import folders
from hvae_jax.grid.members import GridConfig, Member
from hvae_jax.grid.table import DIVERGED
from hvae_jax.groups import Groups
from hvae_jax.training import checkpoints

PAGE_FILE = "explorer.html"
MAX_IMAGES, MAX_SAMPLES = 64, 1024
# Layers whose names fit into a sentence.
MAX_NAMED = 4
# Betas below this count as this where the nearest is looked for.
MIN_BETA = 1e-6


def main(arguments: list[str]) -> None:
    """Reads the flags, runs the models, writes the page."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    options = flags.FLAGS
    workdir = program.folder_flag("workdir", options.workdir)
    folders.read(workdir)  # before a place for the page is looked for in it
    out = program.file_flag("out", options.out or workdir / PAGE_FILE, (".html",))
    if not 0 < options.max_megabytes < math.inf:
        raise RunError(f"--max_megabytes={options.max_megabytes} must be a positive number")
    program.start_devices()
    page = make(
        workdir, options.num_images, options.num_samples, MEGABYTE * options.max_megabytes, options.data
    )
    program.make_parent(out)
    records.write_text(out, page)
    print(f"{out}: {len(page.encode()) / MEGABYTE:.2f} MB")


def make(
    folder: pathlib.Path,
    num_images: int = 8,
    num_samples: int = 16,
    max_bytes: float = 15 * MEGABYTE,
    data: str | None = None,
) -> str:
    """The page of the grid in a folder.

    Args:
      folder: of the grid.
      num_images: test images that are reconstructed.
      num_samples: of each model.
      max_bytes: of the page.
      data: a `config.data.name` instead of the grid's own, for data that moved.

    Raises:
      RunError: no grid there, one without a complete model, or a page that is too large.
    """
    grid, members = folders.read(folder)
    places = _places(folder, grid, members)
    first = next((place for place in places if place.rates is not None), None)
    if first is None:
        raise RunError(f"--workdir={folder} is a grid without a finished model; train it first")
    groups = first.member.groups
    built = experiment.from_folder(first.member.folder(folder), data=data)
    renderer = Renderer(built, num_images, num_samples)
    points, pixels, num_evaluated, num_bytes = [], None, 0, 0
    for done, place in enumerate(tqdm(places, unit="model", disable=None), start=1):
        run = place.member.folder(folder)
        if place.rates is None:
            points.append(Point(place.sliders, run.name, place.betas, {}, None, place.missing))
            continue
        metrics = explorer_models.read_metrics(run)
        if metrics is not None:
            num_evaluated += 1
            pixels = metrics.generation.test.pixels
        numbers = explorer_models.of_model(place.rates, metrics)
        images = renderer(run, place.member.betas)
        sheet = None if images is None else explorer.data_uri(images, len(renderer.test_images))
        missing = "" if sheet else "No pictures: the pixels that this model makes are not finite."
        points.append(Point(place.sliders, run.name, place.betas, numbers, sheet, missing))
        num_bytes += len(sheet or "")
        if num_bytes > max_bytes:  # said without waiting for the others
            explorer.check_size(num_bytes * len(places) / done, max_bytes, num_images, num_samples)
    beta_names = _beta_names(groups, built.named_groups)
    axes = _axes(grid, places, beta_names)
    quantities = explorer_models.quantities(built.named_groups, pixels)
    content = Content(
        title=_title(built, len(points), grid.has_targets),
        lead=_lead(built, first.member.seed, beta_names, [q.name for q in quantities if q.is_rate][:-1]),
        notes=_notes(num_evaluated, sum(place.rates is not None for place in places)),
        heading=f"Choose {'the betas' if grid.betas else 'what is asked for' if grid.values else 'a point'}",
        axes=axes,
        beta_names=beta_names,
        quantities=quantities,
        plane=_plane(quantities, axes),
        points=points,
        start=_nearest(points, (1.0,) * len(beta_names)),
        marks=_marks(folder, points, groups),
        test_images=renderer.test_images,
        rows=renderer.rows,
        num_samples=num_samples,
    )
    return explorer.to_html(content, max_bytes)


class _Place(NamedTuple):
    """A point of the grid, and what became of its model of the first seed.

    Attributes:
      sliders: the place of each.
      betas: per layer or group; those found where rates were asked for.
      rates: of the test split; None where there is no model.
      missing: why there is none.
    """

    sliders: tuple[int, ...]
    member: Member
    betas: tuple[float, ...]
    rates: Rates | None
    missing: str


def _places(folder: pathlib.Path, grid: GridConfig, members: Sequence[Member]) -> list[_Place]:
    """All points: those of a product in its order, those of a list by their total rate."""
    members = members[:: len(grid.seeds)]  # the seeds of a point are neighbours
    indices = list(itertools.product(*map(range, grid.shape[:-1])))
    places = []
    for index, member in zip(indices, members, strict=True):
        found = folders.read_evaluation(folder, member)
        betas = found.targets.betas if found and found.targets else member.betas
        rates = found.test if found and checkpoints.latest_step(member.folder(folder)) is not None else None
        diverged = found is not None and found.status == DIVERGED
        missing = f"No model here: it {'diverged' if diverged else 'is not trained yet'}."
        places.append(_Place(index, member, betas, rates, missing))
    if not grid.values:
        places.sort(key=lambda place: place.rates.total_rate_nats.value if place.rates else math.inf)
        places = [place._replace(sliders=(number,)) for number, place in enumerate(places)]
    return places


def _axes(grid: GridConfig, places: Sequence[_Place], beta_names: Sequence[str]) -> list[Axis]:
    """A slider for each beta, or target, of a product; one over the points of a list."""
    if not grid.values:
        labels = tuple(f"{number} of {len(places)}" for number in range(1, len(places) + 1))
        return [Axis("point", "from the smallest total rate to the largest", labels)]
    names = beta_names
    about = [f"price of a nat in {_describe_layers(name)}" for name in beta_names]
    if grid.has_targets and len(grid.values) == len(beta_names):
        names = [name.replace("β", "R") for name in beta_names]
        about = ["the rate that was asked for, nats"] * len(names)
    elif grid.has_targets:
        names, about = ["target"], ["what was asked for, nats"]
    return [
        Axis(name, what, tuple(f"{value:.3g}" for value in values))
        for name, what, values in zip(names, about, grid.values, strict=True)
    ]


def _beta_names(groups: Groups, named: NamedGroups) -> list[str]:
    if groups.are_layers:
        return [subscript("β", layer) for layer in range(1, len(groups) + 1)]
    return [f"β of {name.replace('x', '×')}" for name in named.names]


def _describe_layers(beta_name: str) -> str:
    """What has this beta."""
    return f"the {beta_name[5:]} layers" if beta_name.startswith("β of ") else beta_name.replace("β", "z")


def _title(built: Experiment, num_points: int, has_targets: bool) -> str:
    model = built.model.config.inference.replace("_", " ")
    if built.model.config.is_conditioned:
        return f"{built.source.title}: one {model} model, asked at {num_points} choices of betas"
    what = "target" if has_targets else "betas"
    return f"{built.source.title}: {num_points} {model} models, each trained for its own {what}"


def _lead(built: Experiment, seed: int, betas: Sequence[str], rates: Sequence[str]) -> list[str]:
    """What this is, for those who have not seen such a model before."""
    num = built.model.num_layers
    shapes = ["×".join(map(str, shape)) for shape in built.model.config.latent_shapes]
    few = num <= MAX_NAMED
    layers = ", ".join(f"{subscript('z', n)} {shape}" for n, shape in enumerate(shapes, start=1))
    cost = "D + Σ β R"
    if len(betas) == len(rates) <= MAX_NAMED and all(map(str.isalnum, (*betas, *rates))):
        cost = "D" + "".join(f" + {beta} {rate}" for beta, rate in zip(betas, rates, strict=True))
    how = (
        "The betas are an input of the networks: one training, every trade-off."
        if built.model.config.is_conditioned
        else "Each choice of betas is a training of its own."
    )
    return [
        f"A hierarchical VAE with {num} layer{'s' * (num > 1)} of latents{f' ({layers})' if few else ''}. A "
        "layer's rate R is how much of an image it keeps; the distortion D is what is lost. Training "
        f"minimises {cost}: a beta is what a nat costs in its layer, and β = 1 everywhere is the ELBO.",
        f"{how} Seed {seed}.",
    ]


def _notes(num_evaluated: int, num_models: int) -> list[str]:
    notes = [
        "Reconstructions and samples are means of pixels. Reconstructions take the posterior means of the "
        "layers that they are made from.",
        "The address of this page keeps the places of the sliders, from 0: a link to it opens them.",
    ]
    if num_evaluated:
        scored = "" if num_evaluated == num_models else f" of {num_evaluated} of {num_models} models"
        notes.append(
            f"PSNR, accuracy and scores{scored} are of experiments.evaluate, by classifiers that were "
            "trained on this data set: they compare models of this page with each other, and nothing else. "
            "What is best for an application is chosen on the validation split."
        )
    if num_evaluated < num_models:
        notes.append(
            "PSNR, accuracy and scores are shown once the grid is evaluated: python -m experiments.evaluate "
            "--workdir=DIR, then python -m experiments.explorer --workdir=DIR again."
        )
    return notes


def _plane(quantities: Sequence[Quantity], axes: Sequence[Axis]) -> tuple[str, str]:
    """The first and the last of the rates whose betas move; of a single rate, it and the distortion."""
    *rates, _ = (quantity.name for quantity in quantities if quantity.is_rate)
    if len(axes) == len(rates):
        moved = [rate for rate, axis in zip(rates, axes, strict=True) if len(axis.labels) > 1]
        rates = moved if len(moved) > 1 else rates
    return (rates[0], rates[-1] if len(rates) > 1 else explorer_models.DISTORTION)


def _marks(folder: pathlib.Path, points: Sequence[Point], groups: Groups) -> list[Mark]:
    """β = 1, and what guidance of an evaluated grid calls the best."""
    ones = (1.0,) * len(groups)
    marks = [Mark("β = 1", _nearest(points, ones))]
    if not np.allclose(points[marks[0].point].betas, ones):
        marks = []
    file = folder / "guidance.json"
    if file.exists():
        found = from_plain(Guidance, records.read_json(file), file)
        for application, entry in found.applications.items():
            if len(entry.best.betas) == groups.num_layers:
                betas = groups.collapse(np.asarray(entry.best.betas))
                place = _nearest(points, betas)
                # The best may be of another grid that was evaluated with this one.
                if np.allclose(points[place].betas, betas, rtol=1e-3):
                    marks.append(Mark(f"best for {application}", place))
    return marks


def _nearest(points: Sequence[Point], betas: Sequence[float] | np.ndarray) -> int:
    """The point with a model whose betas are nearest, by their logarithms."""
    there = [number for number, point in enumerate(points) if point.numbers]
    logs = np.log(np.maximum([points[number].betas for number in there], MIN_BETA))
    misses = np.square(logs - np.log(np.maximum(betas, MIN_BETA))).sum(axis=1)
    return there[int(np.argmin(misses))]


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("workdir", None, "Folder of a grid.", required=True)
    flags.DEFINE_string("out", None, "HTML file to write; WORKDIR/explorer.html by default.")
    flags.DEFINE_integer(
        "num_images", 8, "Test images that are reconstructed.", lower_bound=1, upper_bound=MAX_IMAGES
    )
    flags.DEFINE_integer("num_samples", 16, "Of each model.", lower_bound=0, upper_bound=MAX_SAMPLES)
    flags.DEFINE_float("max_megabytes", 15.0, "That the page may have.")
    flags.DEFINE_string("data", None, "A config.data.name instead of the grid's own, for data that moved.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
