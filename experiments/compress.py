"""Writes a split's images as a file of bits: each layer of a run's model takes its rate.

    python -m experiments.compress --workdir=runs/mnist --split=test --out=test.bits --report=test.json
    python -m experiments.decompress test.bits --workdir=runs/mnist --out=test.npz

Bits-back coding (`hvae_jax.codec`), lossless, for models of discrete pixels: a Bernoulli likelihood of
binarised images, or a logistic mixture. It prints the bits per image of every layer and of the pixels beside
rates, distortion and ELBO of the same images, and what PNG, WebP and xz take; --report keeps them, image by
image too. The file is read on the same kind of machine, with the same versions and the run's checkpoint of
now.

Of a conditioned model --betas says at which betas; `decompress` reads them from the file.

--top_first=K puts the layers from z_K up in front, so that `experiments.decompress --layers` finds them for
all images at once. It costs bits where the pixels have fewer than these layers borrow: see the manual.
"""

import math
import time

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import program
from hvae_jax import codec, data, experiment, files
from hvae_jax.codec import others, report
from hvae_jax.codec.pixels import make_pixels
from hvae_jax.codec.programs import check_layers
from hvae_jax.codec.stack import require_constriction
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates
from hvae_jax.experiment import Experiment
from hvae_jax.keys import make_key
from hvae_jax.training.split_evaluator import EVAL_BATCH, SplitEvaluator

SPLITS = ("test", "valid", "train")
# Posterior draws per image for the rates that bits are set beside.
NUM_DRAWS = 4


class Pace:
    """A progress bar, and images per second once programs are compiled."""

    def __init__(self, num_images: int) -> None:
        self._bar = tqdm(total=num_images, unit="image", disable=None)
        self._started = time.monotonic()
        self._first = self._last = (0, self._started)

    def __call__(self, num_done: int) -> None:
        """Moves the bar to as many images."""
        self._last = (num_done, time.monotonic())
        if not self._first[0]:
            self._first = self._last
        self._bar.update(num_done - self._bar.n)

    def end(self) -> tuple[float, float]:
        """Seconds in all, and images per second after the first batch."""
        self._bar.close()
        (num_first, first), (num_last, last) = self._first, self._last
        pace = (num_last - num_first) / (last - first) if num_last > num_first else math.nan
        return time.monotonic() - self._started, pace


def main(arguments: list[str]) -> None:
    """Reads the flags, encodes, compares, writes."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    require_constriction()
    workdir = program.folder_flag("workdir", flags.FLAGS.workdir)
    out = program.file_flag("out", flags.FLAGS.out, None)
    report_file = None
    if flags.FLAGS.report is not None:
        report_file = program.file_flag("report", flags.FLAGS.report, (".json",))
    num_images, top_first = flags.FLAGS.num_images, flags.FLAGS.top_first
    built = experiment.from_folder(workdir, data=flags.FLAGS.data)
    check_layers(built.model)
    pixels = make_pixels(built.model)
    betas = read_betas(built)
    if not 0 <= top_first <= built.model.num_layers:
        raise RunError(f"--top_first={top_first} must be in 0 … {built.model.num_layers}, the model's layers")
    if num_images < 0:
        raise RunError(f"--num_images={num_images} must be at least 1, or 0 for all")

    program.start_devices()
    state = experiment.restore(built, workdir)
    params = built.at(state.eval_params, betas)
    images = seen_images(built, flags.FLAGS.split, num_images)
    pixels.check(images)
    pace = Pace(len(images))
    content, bits = codec.encode_measured(built.model, params, images, top_first=top_first, report=pace)
    seconds, images_per_s = pace.end()

    evaluator = SplitEvaluator(images, data.make_preprocess("none"))
    terms_fn = rates.make_repeated_terms(built.terms_fn, NUM_DRAWS)
    terms = evaluator.map_images(terms_fn, params, make_key(0))
    made = report.make_report(bits, terms, built.source.image_shape, others.bits_of_others(images))
    made = {
        "data": built.dataset.title,
        "split": flags.FLAGS.split,
        "inference": built.model.config.inference,
        "betas": np.asarray(state.beta_state.betas if betas is None else betas, float).tolist(),
        "top_first": top_first,
        "encoded_images_per_s": images_per_s,
        **made,
    }
    program.make_parent(out)
    files.write_bytes(out, content)
    if report_file is not None:
        program.make_parent(report_file)
        files.write_json(report_file, made)
    print(report.to_text(made))
    print(f"{seconds:.1f} s with compiling, then {images_per_s:.0f} images/s")
    print(f"{out} has {len(content):,} bytes")


def read_betas(built: Experiment) -> tuple[float, ...] | None:
    """The betas that a conditioned model is told: those of --betas, or of its config; None of another model.

    Raises:
      RunError: not one for each layer, in the range that the model was trained for; or some for a model that
        is not conditioned.
    """
    text, found = ",".join(flags.FLAGS.betas), built.beta_range
    if found is None:
        if text:
            raise RunError(f"--betas={text} asks a conditioned model; this one is of its own betas alone")
        return None
    if not text:
        return built.objective.betas
    try:
        betas = tuple(map(float, flags.FLAGS.betas))
        is_inside = [
            low <= beta <= high for low, beta, high in zip(found.lows, betas, found.highs, strict=True)
        ]
    except ValueError:
        betas, is_inside = (), [False]
    if not all(is_inside):
        ranges = ", ".join(f"{low:g} … {high:g}" for low, high in zip(found.lows, found.highs, strict=True))
        raise RunError(f"--betas={text} must be a number for each layer, z_1 first, within {ranges}")
    return betas


def seen_images(built: Experiment, split: str, num_images: int) -> np.ndarray:
    """The first images of a split as the model sees them, uint8 `[N, H, W, C]`, 0 to 255.

    Args:
      built: from a run's folder.
      split: one of SPLITS.
      num_images: 0 for all.

    Raises:
      RunError: the split is empty, or has fewer.
    """
    stored = built.dataset.splits[split].images
    if not len(stored) or num_images > len(stored):
        raise RunError(f"--num_images={num_images}: the {split} split has {len(stored)} images")
    stored = stored[: num_images or len(stored)]
    preprocess, key, seen = jax.jit(built.preprocess_fn), make_key(0), []
    for start in range(0, len(stored), EVAL_BATCH):
        places = np.arange(start, min(start + EVAL_BATCH, len(stored)))
        x = preprocess(jax.vmap(jax.random.fold_in, (None, 0))(key, places), stored[places])
        seen.append(np.rint(255.0 * np.asarray(x)).astype(np.uint8))
    return np.concatenate(seen)


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_enum("split", "test", SPLITS, "Whose images.")
    flags.DEFINE_integer("num_images", 0, "Only the first ones; 0 for all.")
    flags.DEFINE_string("out", None, "File to write.", required=True)
    flags.DEFINE_string("report", None, "JSON to write with all numbers.")
    flags.DEFINE_integer("top_first", 0, "The lowest layer that lies in front; 0 for none.")
    flags.DEFINE_list(
        "betas", [], "Of a conditioned model, z_1 first: 0.3,3. Those of its config by default."
    )
    flags.DEFINE_string("data", None, "A config.data.name instead of the run's own, for data that moved.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
