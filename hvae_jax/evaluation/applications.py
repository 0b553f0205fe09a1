"""One model's worth for reconstruction, for representation learning and for generation.

Every number exists for the validation split, from which models are chosen, and for the test split,
which is read once for the report. Samples are drawn twice, with different keys, for the same reason. What
the data do not allow, for want of labels, of a validation split or of images, is left out and named.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
from threadpoolctl import threadpool_limits

from hvae_jax.cores import num_cores
from hvae_jax.data import Dataset
from hvae_jax.data.pixels import to_bytes
from hvae_jax.evaluation import (
    active_units,
    generation,
    information,
    measuring,
    neighbours,
    parts,
    probes,
    rates,
    reconstruction,
    representation,
    samples,
)
from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.evaluation.encoding import Codes, Encoder
from hvae_jax.evaluation.measuring import Measured, Read, Real
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
from hvae_jax.evaluation.runner import Runner
from hvae_jax.evaluation.samples import Drawn
from hvae_jax.evaluation.sizes import NUM_PICTURES, Sizes
from hvae_jax.keys import make_key
from hvae_jax.models.config import CATEGORICAL
from hvae_jax.models.hvae import HVAE
from hvae_jax.training import Params, PreprocessFn

SPLITS: tuple[Split, ...] = get_args(Split)
# Which of its passes, and samples of the first split: each has draws of its own.
MEASURE, DRAW, READ = 0, 1, 3
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
        capacity: int = 1,
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
          capacity: models that are evaluated side by side; 1 spreads one over all devices.

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
            num_dims=math.prod(dataset.image_shape),
            num_latents=measuring.num_kept_latents(model, self._parts),
            num_features=0 if classifier is None else classifier.num_features,
        )
        # Both splits in one array, so that there is one program; the test split comes last, since the draws
        # of an image follow from its place. What latents are read of is another array: fewer images of these,
        # and those that probes are fitted on.
        self._by_split: dict[Split, parts.Part] = {split: self._parts[split] for split in self._splits}
        judge_params, streamed = () if classifier is None else classifier.params, parts.is_streamed(dataset)
        whole = parts.join((part.images for part in self._by_split.values()), streamed)
        if not streamed:
            self._by_split = parts.share(self._by_split, whole)
            self._parts |= self._by_split
        read = parts.join((part.images[part.read] for part in self._parts.values()), streamed)
        self._runner = Runner(whole, preprocess_fn, judge_params, capacity)
        self._reader = Runner(read, preprocess_fn, judge_params, capacity)
        self._near = neighbours.of_split(parts.training_images(dataset), preprocess_fn)
        self._look_fn = measuring.make_look_fn(classifier)
        num_draws = measuring.enough_draws(len(whole), sizes.num_draws)
        self._measure_fn = measuring.make_measure_fn(model, num_draws, sizes.num_draws)
        self._read_fn = measuring.make_read_fn(model, classifier, sizes.num_draws)
        self._sample_fn = samples.make_sample_fn(model, classifier, sizes.num_samples, is_discrete)
        self._encoder = Encoder(model, preprocess_fn, has_samples=False)
        self._real: dict[int, tuple[dict[Split, Real], np.ndarray]] = {}

    @property
    def capacity(self) -> int:
        """Models at a time."""
        return self._runner.capacity

    @property
    def pixels(self) -> Pixels:
        """What samples are made of: "draws" from p(x|z), or "means" E[x|z], clipped to [0, 1]."""
        return "draws" if self._is_discrete else "means"

    def evaluate(self, params: Params, seed: int) -> Evaluation:
        """All applications, validation and test; the draws depend on `seed`."""
        return self.evaluate_all([params], seed)[0]

    def evaluate_all(self, models: Sequence[Params], seed: int) -> list[Evaluation]:
        """The same of several models, at most `capacity`: each as if it were alone."""
        self._look(seed, models[0])
        measured, reads = self.measure(models, seed), self.read(models, seed)
        drawn: list[dict[Split, Drawn]] = [{} for _ in models]
        for split in self._splits:
            for of_model, found in zip(drawn, self.draw(models, seed, split), strict=True):
                of_model[split] = found
        # Scoring is NumPy and scikit-learn on one core each; a second thread of the BLAS costs twice what it
        # brings on matrices this small.
        with threadpool_limits(1), probes.unwarned(), ThreadPoolExecutor(num_cores()) as pool:
            begun = [
                self._score(*found, seed, pool) for found in zip(models, measured, reads, drawn, strict=True)
            ]
            return [finish() for finish in begun]

    def measure(self, models: Sequence[Params], seed: int) -> list[dict[Split, Measured]]:
        """What is found of every image of both splits."""
        rows = measuring.rows_of(self._by_split, lambda part: part.shown)
        found = self._runner.map_images(self._measure_fn, models, seed, MEASURE, rows)
        return [measuring.split_measured(one, self._by_split) for one in found]

    def read(self, models: Sequence[Params], seed: int) -> list[dict[str, Read]]:
        """Latents, of the splits' and of "train", which probes are fitted on."""
        found = self._reader.map_images(self._read_fn, models, seed, READ)
        return [measuring.split_read(one, self._parts) for one in found]

    def draw(self, models: Sequence[Params], seed: int, split: Split) -> list[Drawn]:
        """Samples of each model, with draws of their own for each split."""
        found = self._runner.call(self._sample_fn, models, seed, DRAW + SPLITS.index(split))
        return [samples.cut(one, self._sizes.num_samples) for one in found]

    def _look(self, seed: int, params: Params) -> None:
        """At the images, once for all models."""
        if seed in self._real:
            return
        # Any model's parameters do: they are not looked at.
        rows = measuring.rows_of(self._by_split, lambda part: part.read)
        ((found, x),) = self._runner.map_images(self._look_fn, [params], seed, MEASURE, rows)
        real = measuring.split_real((found, x), self._by_split)
        test = self._parts["test"]
        _, distances = self._near.nearest(real["test"].x[test.among_read(test.compared)])
        self._real = {seed: (real, distances)}

    def _score(
        self,
        params: Params,
        measured: dict[Split, Measured],
        reads: dict[str, Read],
        drawn: dict[Split, Drawn],
        seed: int,
        pool: Executor,
    ) -> Callable[[], Evaluation]:
        """Begins to score a model; returns what waits for the end."""
        num_dims, has_classes = math.prod(self._model.image_shape), self._classes.can_be_told_apart
        left_out, reason = self._left_out(), self._why_no_probes()
        monte_carlo_rates = self._model.config.monte_carlo_rates
        is_every_layer = len(self._from_layers) == self._model.num_layers
        from_layers = None if is_every_layer else self._from_layers
        real, distances = self._real[seed]

        finish_reading = representation.represent(reads, self._parts, reason is None, self._top_layers, pool)
        informed: dict[Split, Future[Any]] = {
            split: pool.submit(
                information.inform,
                measured[split],
                self._parts[split],
                has_classes,
                bool(monte_carlo_rates),
            )
            for split in self._splits
        }
        # Submitted before what waits for it.
        near = pool.submit(self._near.nearest, drawn["test"].images[: max(NUM_PICTURES, len(distances))])
        generated: dict[Split, Future[SampleScores]] = {
            split: pool.submit(
                self._score_samples, drawn[split], real[split], (near, distances) if split == "test" else None
            )
            for split in self._splits
        }
        units = {
            split: pool.submit(active_units.count, self._codes(params, reads[split], split))
            for split in self._splits
        }

        def summarize(split: Split) -> Rates:
            found = rates.summarize(
                measured[split].terms, num_dims, self._grouped, monte_carlo_rates=monte_carlo_rates
            )
            active, num_units = units[split].result()
            return dataclasses.replace(found, active_units=active, num_units=num_units)

        def finish() -> Evaluation:
            read, coordinates = finish_reading()
            _name_lacking_probes(read, reason, left_out)
            reconstructed = {
                split: reconstruction.score(
                    measured[split],
                    reads[split],
                    self._parts[split],
                    real[split].entropy if self._is_discrete else None,
                    from_layers,
                )
                for split in self._splits
            }
            for split in self._splits:
                place = f"generation.{split}.{self.pixels}"
                _name_lacking_scores(generated[split].result(), place, split, left_out)
            metrics = Metrics(
                rates=self._per_split(summarize),
                reconstruction=self._per_split(reconstructed.__getitem__),
                representation=read,
                information=self._per_split(lambda split: informed[split].result()),
                generation=self._per_split(
                    lambda split: Generation(**{self.pixels: generated[split].result()})
                ),
                applications=self._per_split(
                    lambda split: _summary(
                        reconstructed[split].from_layer[0], read, generated[split].result(), split
                    )
                ),
                left_out=left_out,
            )
            pictures = self._pictures(
                measured["test"], real["test"], coordinates, drawn["test"], near.result()[0][:NUM_PICTURES]
            )
            return Evaluation(metrics, pictures)

        return finish

    def _codes(self, params: Params, read: Read, split: Split) -> Iterable[list[Codes]]:
        """Posterior means of every layer: of the images that are read, or of a deep network of all."""
        if len(self._top_layers) < self._model.num_layers:
            # No sample depends on this key: means are not drawn.
            return self._encoder.batches(self._parts[split].images, params, make_key(0))
        kinds = self._model.config.kinds
        names = ["probs" if kind == CATEGORICAL else "means" for kind in kinds]
        return [[{name: means} for name, means in zip(names, read.means, strict=True)]]

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

    def _score_samples(
        self, drawn: Drawn, real: Real, compared: tuple[Future[Any], np.ndarray] | None
    ) -> SampleScores:
        """Scores of samples beside the images of a split as the models see them.

        Args:
          drawn: the samples.
          real: the images.
          compared: what finds the training images that are nearest to samples, and how near they are to
            images of the split; None leaves that out.
        """
        memorisation = None
        if compared is not None:
            near, distances = compared
            memorisation = generation.compare_with_training(near.result()[1], distances, len(self._near))
        num_samples = self._sizes.num_samples
        return generation.score(num_samples, drawn.judged, real.features, self._sizes, memorisation)

    def _pictures(
        self,
        test: Measured,
        real: Real,
        coordinates: list[np.ndarray],
        drawn: Drawn,
        neighbors: np.ndarray,
    ) -> dict[str, np.ndarray]:
        part, shown = self._parts["test"], self._parts["test"].among_read(self._parts["test"].shown)
        return {
            "latent_labels": self._classes.ids[part.labels[part.points]],
            **{f"latent_coordinates_{n}": c.astype(np.float32) for n, c in enumerate(coordinates, start=1)},
            "samples": to_bytes(drawn.images[:NUM_PICTURES]),
            "neighbors": self._near.as_bytes(neighbors),
            "images": to_bytes(real.x[shown]),
            "reconstructions": np.stack(test.pictures),
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
    if of_samples := read.layers[-1].samples:
        # On the validation split it is a maximum over settings, whose error is not estimated.
        best, is_test = of_samples.best, split == "test"
        accuracy = Score(*best.test_accuracy) if is_test else Score(best.valid_accuracy)
    if generated.judged:
        score = Score(*generated.judged.inception_score_classifier)
    return PerApplication(reconstruction=Score(*whole.psnr_db), representation=accuracy, generation=score)
