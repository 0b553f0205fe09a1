"""One model's worth for reconstruction, for representation learning and for generation.

Every number exists for the validation split, from which models are chosen, and for the test split,
which is read once for the report. Samples are drawn twice, with different keys, for the same reason. What
the data do not allow, for want of labels, of a validation split or of images, is left out and named.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.data import Dataset
from hvae_jax.evaluation import (
    active_units,
    generation,
    information,
    measuring,
    parts,
    rates,
    reconstruction,
    representation,
)
from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.evaluation.encoding import Encoder
from hvae_jax.evaluation.measuring import Measured
from hvae_jax.evaluation.metrics import (
    Application,
    Generation,
    Metrics,
    PerApplication,
    PerSplit,
    Pixels,
    Rates,
    ReconstructionScores,
    Representation,
    SampleScores,
    Score,
    Split,
)
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.evaluation.sizes import NUM_PICTURES, Sizes
from hvae_jax.keys import make_key
from hvae_jax.models.hvae import HVAE
from hvae_jax.training import Params, PreprocessFn
from hvae_jax.training.split_evaluator import SplitEvaluator

SPLITS: tuple[Split, ...] = get_args(Split)
SAMPLE_BATCH = 250
T = TypeVar("T")
NO_LABELS = "the training split has no labels of two or more classes"
NO_VALID = (
    "config.data.num_valid=0: models and classifiers are chosen by the validation split, and the test split "
    "must not take its place"
)


class Evaluation(NamedTuple):
    """What `ModelEvaluator` finds.

    Attributes:
      metrics: for metrics.json.
      pictures: arrays for pictures.npz.
    """

    metrics: Metrics
    pictures: dict[str, np.ndarray]


class ModelEvaluator:
    """Evaluates models that share data, network and classifier; everything compiles once for all of them."""

    def __init__(
        self,
        model: HVAE,
        dataset: Dataset,
        preprocess_fn: PreprocessFn,
        classifier: Classifier | None,
        sizes: Sizes,
        is_discrete: bool,
        grouped: NamedGroups | None = None,
    ) -> None:
        """Puts the images on the devices, unless they are streamed.

        Args:
          model: the network, without parameters.
          dataset: without labels or a validation split there is less to evaluate.
          preprocess_fn: that of the models.
          classifier: judges reconstructions and samples; None where there are no classes.
          sizes: how much to do.
          is_discrete: whether the likelihood is a probability of discrete pixels. Then samples are drawn
            from p(x|z), since E[x|z] is no image of that kind, and the images at hand, as a population of
            their own, have an entropy that bounds D + R from below. Else samples are E[x|z].
          grouped: layers whose rates are also summed, see `rates.summarize`.

        Raises:
          RunError: sizes that do not fit into memory.
        """
        self._model, self._classifier, self._sizes = model, classifier, sizes
        self._is_discrete, self._grouped = is_discrete, grouped
        self._from_layers, self._top_layers = measuring.read_layers(model)
        self._classes = parts.find_classes(dataset)
        self._parts = parts.make_parts(dataset, self._classes, sizes)
        self._splits: list[Split] = [split for split in SPLITS if split in self._parts]
        sizes.check_memory(
            num_images=sum(len(part.images) for part in self._parts.values()),
            num_dims=math.prod(dataset.image_shape),
            num_latents=measuring.num_read_latents(model),
            num_features=0 if classifier is None else classifier.num_features,
        )
        # One array for all, so that there is one program; the test split comes last, since the draws of an
        # image follow from its place.
        joined = parts.join(self._parts, parts.is_streamed(dataset))
        self._split = SplitEvaluator(joined, preprocess_fn)
        train = SplitEvaluator(parts.training_images(dataset), preprocess_fn)
        # As the models see them, for the memorisation check.
        self._train_pixels: Any = train.map_images(lambda _, x, __: x, (), make_key(0))
        self._measure_fn = measuring.make_measure_fn(model, classifier, sizes.num_draws)
        self._sample_fn = jax.jit(self._sample)
        self._encoder = Encoder(model, preprocess_fn, has_samples=False)

    @property
    def pixels(self) -> Pixels:
        """What samples are made of: "draws" from p(x|z), or "means" E[x|z], clipped to [0, 1]."""
        return "draws" if self._is_discrete else "means"

    def evaluate(self, params: Params, seed: int) -> Evaluation:
        """All applications, validation and test; the draws depend on `seed`."""
        key = make_key(seed)
        measured = self.measure(params, jax.random.fold_in(key, 0))
        num_dims, has_classes = math.prod(self._model.image_shape), self._classes.can_be_told_apart
        left_out, reason = self._left_out(), self._why_no_probes()
        monte_carlo_rates = self._model.config.monte_carlo_rates
        read, coordinates = representation.represent(
            measured, self._parts, has_probes=reason is None, top_layers=self._top_layers
        )
        _name_lacking_probes(read, reason, left_out)
        samples: dict[Split, np.ndarray] = {}

        def generate(split: Split) -> SampleScores:
            split_key = jax.random.fold_in(key, 1 + SPLITS.index(split))
            samples[split], scores = self._generate(params, split_key, measured[split], split)
            _name_lacking_scores(scores, f"generation.{split}.{self.pixels}", split, left_out)
            return scores

        is_every_layer = len(self._from_layers) == self._model.num_layers
        from_layers = None if is_every_layer else self._from_layers
        reconstructed = {
            split: reconstruction.score(measured[split], self._parts[split], self._is_discrete, from_layers)
            for split in self._splits
        }
        generated = {split: generate(split) for split in self._splits}

        def summarize(split: Split) -> Rates:
            found = rates.summarize(
                measured[split].terms, num_dims, self._grouped, monte_carlo_rates=monte_carlo_rates
            )
            # Its key stands behind those of the splits' samples.
            unit_key = jax.random.fold_in(key, 1 + len(SPLITS))
            counted = active_units.count(self._encoder.batches(self._parts[split].images, params, unit_key))
            return dataclasses.replace(found, active_units=counted.active, num_units=counted.units)

        metrics = Metrics(
            rates=self._per_split(summarize),
            reconstruction=self._per_split(reconstructed.__getitem__),
            representation=read,
            information=self._per_split(
                lambda split: information.inform(
                    measured[split], self._parts[split], has_classes, bool(monte_carlo_rates)
                )
            ),
            generation=self._per_split(lambda split: Generation(**{self.pixels: generated[split]})),
            applications=self._per_split(
                lambda split: _summary(reconstructed[split].from_layer[0], read, generated[split], split)
            ),
            left_out=left_out,
        )
        return Evaluation(metrics, self._pictures(measured["test"], coordinates, samples["test"]))

    def measure(self, params: Params, key: jax.Array) -> dict[str, Measured]:
        """What every section is made from, for "train" (what probes are fitted on), "valid" and "test"."""
        both = params, self._classifier.params if self._classifier else ()
        return measuring.measure(self._measure_fn, self._split, both, key, self._parts)

    def _per_split(self, make: Callable[[Split], T]) -> PerSplit[T]:
        found = {split: make(split) for split in self._splits}
        return PerSplit(valid=found.get("valid"), test=found["test"])

    def _left_out(self) -> dict[str, str]:
        """What the data do not allow, whatever the model."""
        out = {}
        if not self._classes.can_be_told_apart:
            for name in ("representation", "generation"):
                out[f"applications.{name}"] = NO_LABELS
            for name in ("reconstruction.*.from_layer.*.classifier", "information.*.label"):
                out[name] = NO_LABELS
        if "valid" not in self._splits:
            for name in get_args(Application):
                out[f"applications.{name}"] = NO_VALID
        return out

    def _why_no_probes(self) -> str | None:
        if not self._classes.can_be_told_apart:
            return NO_LABELS
        if "valid" not in self._splits:
            return NO_VALID
        if len(np.unique(self._parts["train"].labels)) < 2:
            return "the training images that probes are fitted on are of one class"
        if len(self._parts["test"].scored) < 2:
            return "the test split has fewer than 2 images"
        return None

    def _sample(self, params: Params, judge_params: Params, key: jax.Array) -> tuple[Any, ...]:
        apply: Any = self._model.apply
        method = "draw" if self._is_discrete else "sample"

        def one_batch(key: jax.Array) -> tuple[jax.Array, ...]:
            images = jnp.clip(apply(params, key, SAMPLE_BATCH, method=method), 0.0, 1.0)
            return images, *(self._classifier(judge_params, images) if self._classifier else ())

        num_batches = -(-self._sizes.num_samples // SAMPLE_BATCH)
        out = jax.lax.map(one_batch, jax.random.split(key, num_batches))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: self._sizes.num_samples], out)

    def _generate(
        self, params: Params, key: jax.Array, real: Measured, split: Split
    ) -> tuple[np.ndarray, SampleScores]:
        """Samples and their scores, beside images of a split as the models see them."""
        judge_params = self._classifier.params if self._classifier else ()
        samples, *judged = jax.tree.map(np.asarray, self._sample_fn(params, judge_params, key))
        memorisation = None
        if split == "test":
            memorisation = generation.compare_with_training(samples, real.x, self._train_pixels)
        features = real.judged.features if real.judged else None
        return samples, generation.score(len(samples), judged, features, self._sizes, memorisation)

    def _pictures(
        self, test: Measured, coordinates: list[np.ndarray], samples: np.ndarray
    ) -> dict[str, np.ndarray]:
        part, samples = self._parts["test"], samples[:NUM_PICTURES]
        index, _ = generation.nearest(samples, self._train_pixels)
        return {
            "latent_labels": self._classes.ids[part.labels[part.points]],
            **{f"latent_coordinates_{n}": c.astype(np.float32) for n, c in enumerate(coordinates, start=1)},
            "samples": _as_bytes(samples),
            "neighbors": _as_bytes(self._train_pixels[index]),
            "images": _as_bytes(test.x[part.shown]),
            "reconstructions": _as_bytes(np.stack([images[part.shown] for images in test.reconstructions])),
        }


def _name_lacking_probes(read: Representation, reason: str | None, left_out: dict[str, str]) -> None:
    if reason:
        left_out["representation.layers.*.samples"] = left_out["representation.layers.*.means"] = reason
        left_out.setdefault("applications.representation", reason)
    elif any(layer.samples and layer.samples.knn is None for layer in read.layers):
        left_out["representation.layers.*.*.knn"] = "too few training images for it"


def _name_lacking_scores(scores: SampleScores, place: str, split: Split, left_out: dict[str, str]) -> None:
    if scores.judged is None:
        left_out[place] = NO_LABELS
        return
    few = f"the {split} split has fewer than {{}} images"
    if scores.frechet_distance_classifier is None:
        left_out[f"{place}.frechet_distance_classifier"] = few.format(generation.MIN_FRECHET)
    if scores.precision_recall is None:
        for name in ("precision", "recall"):
            left_out[f"{place}.{name}_classifier"] = few.format(generation.MIN_PRECISION)


def _summary(
    whole: ReconstructionScores, read: Representation, generated: SampleScores, split: Split
) -> PerApplication[Score]:
    """The one number that stands for each application, and its standard error where there is one."""
    accuracy, score = None, None
    if probes := read.layers[-1].samples:
        # On the validation split it is a maximum over settings, whose error is not estimated.
        best, is_test = probes.best, split == "test"
        accuracy = Score(*best.test_accuracy) if is_test else Score(best.valid_accuracy)
    if generated.judged:
        score = Score(*generated.judged.inception_score_classifier)
    return PerApplication(reconstruction=Score(*whole.psnr_db), representation=accuracy, generation=score)


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """Values clipped to [0, 1], then rounded to 0 … 255."""
    return np.round(np.clip(images, 0.0, 1.0) * 255).astype(np.uint8)
