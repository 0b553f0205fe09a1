"""Draw what each layer of a model decides: drawn anew, with those above set and those below at their means.

    python -m experiments.set_latents --workdir=runs/digits
    python -m experiments.set_latents --workdir=runs/digits_grid/models/0003 --num_bases=1 --num_draws=12

Writes figures/set_latents.png and .pdf into the run's folder. A row for each layer, the top layer first; of a
deep network of many layers a row for each side of its maps. Needs no data set.
"""

import math

import numpy as np
from absl import flags

from experiments import program
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import results, set_latents
from hvae_jax.experiment import Experiment
from hvae_jax.figures import set_latents as figures
from hvae_jax.keys import make_key

MAX_IMAGES = 64  # in a row


def main(arguments: list[str]) -> None:
    """Reads the flags, samples, draws."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    options = flags.FLAGS
    workdir = program.folder_flag("workdir", options.workdir)
    runs = results.find_runs(workdir)
    if runs.is_grid:
        raise RunError(
            f"--workdir={workdir} is a grid; name one of its models, for example {runs.folders[0]}"
        )
    if options.num_bases * options.num_draws > MAX_IMAGES:
        raise RunError(
            f"--num_bases={options.num_bases} times --num_draws={options.num_draws} are too many images in a "
            f"row; at most {MAX_IMAGES}"
        )
    for name, low, high in (("temperature", 0.0, math.inf), ("seed", 0, 2**32 - 1)):
        value = getattr(options, name)
        if not low <= value <= high or not math.isfinite(value):
            raise RunError(f"--{name}={value} must be a number of at least {low}, and finite")
    figures_folder = workdir / records.FIGURES_FOLDER
    if figures_folder.exists() and not figures_folder.is_dir():
        raise RunError(f"{figures_folder} must be a folder, but it is a file; move it away")
    program.start_devices()
    built = experiment.from_folder(workdir)
    state = experiment.restore(built, workdir)
    params = built.at(state.eval_params)
    rows = set_latents.pick_rows(built.model.config)
    pictures = set_latents.sample_rows(
        built.model, params, make_key(options.seed), rows, options.num_bases, options.num_draws,
        options.temperature,
    )  # fmt: skip
    if not np.isfinite(pictures).all():
        raise RunError(f"the model in {workdir} makes pictures that are not finite: it diverged")
    figures_folder.mkdir(exist_ok=True)
    labels = [describe_row(built, lowest, highest) for lowest, highest in rows]
    title = f"What each layer decides: {describe(built, np.asarray(state.beta_state.betas))}"
    figures.set_latents(pictures, labels, title, figures_folder / "set_latents")
    print(f"{figures_folder / 'set_latents'}.png and .pdf")


def describe(built: Experiment, betas: np.ndarray) -> str:
    """Data, networks and betas of a model, however many those are."""
    text = f"({', '.join(f'{beta:.3g}' for beta in betas)})"
    if len(betas) > set_latents.MAX_ROWS:
        low, high = betas.min(), betas.max()
        text = f"all {low:.3g}" if low == high else f"from {low:.3g} to {high:.3g}"
    inference = built.model.config.inference.replace("_", " ")
    return f"{built.source.title}, {inference}, betas {text}"


def describe_row(built: Experiment, lowest: int, highest: int) -> str:
    """Which layers, and of what size their maps are."""
    shapes = built.model.config.latent_shapes
    name = f"$z_{{{lowest}}}$" if lowest == highest else f"$z_{{{lowest}}}$ … $z_{{{highest}}}$"
    top = " (top)" if highest == len(shapes) > 1 else ""
    sizes = {shape[:2] for shape in shapes[lowest - 1 : highest] if len(shape) == 3}
    size = f", {'×'.join(map(str, sizes.pop()))}" if len(sizes) == 1 else ""
    return f"{name}{size}{top}"


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("workdir", None, "Folder of a run, or of one model of a grid.", required=True)
    flags.DEFINE_integer("num_bases", 3, "Samples whose layers are kept, side by side.", lower_bound=1)
    flags.DEFINE_integer("num_draws", 6, "Images in a row for each of them.", lower_bound=1)
    flags.DEFINE_float("temperature", 1.0, "Scales the prior's standard deviations.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
