"""One model's worth for reconstruction, for representation learning and for generation.

Every number exists for the validation split, from which models are chosen, and for the test split,
which is read once for the report. Samples are drawn twice, with different keys, for the same reason.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import bounds
from hvae_jax.data import Dataset
from hvae_jax.errors import RunError
from hvae_jax.evaluation import generation, information, rates, reconstruction, representation
from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.keys import fold_in, make_key
from hvae_jax.models.hvae import HVAE
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import Params, PreprocessFn

SPLITS = ("valid", "test")
SAMPLE_BATCH = 250
# What pictures.npz keeps of a model.
NUM_PICTURES, NUM_POINTS = 10, 1000


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is drawn, fitted and scored.

    Attributes:
      num_draws: posterior draws per image: the probes' error bars, the information, the rates.
      num_samples: generated images per split.
      num_splits: parts of them for the score's error bar.
      max_fit_images: training images that the probes are fitted on, drawn once by a fixed seed.
      max_scored_images: images of a split that probes, SSIM, and precision and recall read, the first ones.
    """

    num_draws: int
    num_samples: int
    num_splits: int
    max_fit_images: int
    max_scored_images: int

    def __post_init__(self) -> None:
        least = {"num_draws": 1, "num_splits": 2, "num_samples": 2 * self.num_splits}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < least.get(field.name, 50):
                raise RunError(f"--{field.name}={value} must be at least {least.get(field.name, 50)}")


class Evaluation(NamedTuple):
    """What `ModelEvaluator` finds.

    Attributes:
      metrics: plain nested values for metrics.json.
      pictures: arrays for pictures.npz.
    """

    metrics: dict[str, Any]
    pictures: dict[str, np.ndarray]


class ModelEvaluator:
    """Evaluates models that share data, network and classifier; everything compiles once for all of them."""

    def __init__(
        self,
        model: HVAE,
        dataset: Dataset,
        preprocess_fn: PreprocessFn,
        classifier: Classifier,
        sizes: Sizes,
        is_discrete: bool,
    ) -> None:
        """Puts the images on the devices.

        Args:
          model: the network, without parameters.
          dataset: with a validation split.
          preprocess_fn: that of the models.
          classifier: judges reconstructions and samples.
          sizes: how much to do.
          is_discrete: whether the likelihood is a probability of discrete pixels, so that the images at
            hand, as a population of their own, have an entropy that bounds D + R from below.

        Raises:
          RunError: no validation split.
        """
        if not len(dataset.valid.images):
            raise RunError(
                "config.data.num_valid=0: models and classifiers are chosen by the validation split, so "
                "evaluation needs one; the test split must not take its place"
            )
        self._model, self._classifier, self._sizes = model, classifier, sizes
        self._is_discrete = is_discrete
        order = np.random.default_rng(0).permutation(len(dataset.train.images))
        fit = np.sort(order[: sizes.max_fit_images])
        parts = {
            "train": (dataset.train.images[fit], dataset.train.labels[fit]),
            "valid": dataset.valid,
            "test": dataset.test,
        }
        self._labels = {name: labels for name, (_, labels) in parts.items()}
        # One array for all three, so that there is one program; the test split comes last, since the
        # draws of an image follow from its place.
        self._split = rates.SplitEvaluator(np.concatenate([p[0] for p in parts.values()]), preprocess_fn)
        train = rates.SplitEvaluator(dataset.train.images, preprocess_fn)
        # As the models see them, for the memorisation check.
        self._train_pixels: Any = train.map_images(lambda _, x, __: x, (), make_key(0))
        self._measure_fn = self._make_measure_fn()
        self._sample_fn = jax.jit(self._sample)

    def evaluate(self, params: Params, seed: int) -> Evaluation:
        """All applications, validation and test; the draws depend on `seed`."""
        key = make_key(seed)
        measured = self._measure(params, jax.random.fold_in(key, 0))
        num_dims = math.prod(self._model.image_shape)
        layers, pictures = self._represent(measured)
        metrics: dict[str, Any] = {
            "rates": {s: rates.summarize(measured[s]["terms"], num_dims) for s in SPLITS},
            "reconstruction": {s: self._reconstruct(measured[s], self._labels[s]) for s in SPLITS},
            "representation": {"layers": layers},
            "information": {s: self._inform(measured[s], self._labels[s]) for s in SPLITS},
            "generation": {},
        }
        for number, split in enumerate(SPLITS, start=1):
            metrics["generation"][split], samples = self._generate(
                params, jax.random.fold_in(key, number), measured[split]
            )
            if split == "test":
                metrics["generation"][split] |= self._compare_with_training(samples, measured[split]["x"])
                pictures |= self._neighbors(samples[:NUM_PICTURES])
        test = measured["test"]
        pictures["images"] = _as_bytes(test["x"][:NUM_PICTURES])
        pictures["reconstructions"] = _as_bytes(
            np.stack([images[:NUM_PICTURES] for images in test["reconstructions"]])
        )
        metrics["applications"] = {split: _summary(metrics, split) for split in SPLITS}
        return Evaluation(metrics, pictures)

    def _make_measure_fn(self) -> Any:
        model, classifier = self._model, self._classifier
        apply: Any = model.apply

        def measure(both: tuple[Params, Params], x: jax.Array, keys: jax.Array) -> dict[str, Any]:
            params, judge_params = both

            def draw(number: Any) -> tuple[LayerwiseTerms, list[jax.Array]]:
                draw_keys = fold_in(keys, number)
                codes = apply(params, x, draw_keys, method="encode")
                return apply(params, x, draw_keys), [code.sample for code in codes]

            terms, samples = jax.lax.map(draw, jnp.arange(self._sizes.num_draws))
            codes = apply(params, x, keys, 0.0, method="encode")
            pictures = [
                jnp.clip(apply(params, x, layer, method="reconstruct"), 0.0, 1.0)
                for layer in range(1, model.num_layers + 1)
            ]
            return {
                "x": x,
                "features": classifier(judge_params, x)[0],
                "terms": jax.tree.map(lambda t: t.mean(axis=0), terms),
                "samples": [jnp.moveaxis(sample, 0, 1) for sample in samples],
                "means": [code.mean for code in codes],
                "top_std": codes[-1].std,
                "reconstructions": pictures,
                "probs": [classifier(judge_params, picture)[1] for picture in pictures],
            }

        return measure

    def _measure(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """What `measure` gives, by split; draws lead: samples `[S, N, ...]`."""
        found = self._split.map_images(self._measure_fn, (params, self._classifier.params), key)
        ends = np.cumsum([len(labels) for labels in self._labels.values()])
        out = {}
        for name, start, end in zip(self._labels, [0, *ends], ends, strict=False):
            part = jax.tree.map(lambda a, s=start, e=end: a[s:e], found)
            part["samples"] = [np.moveaxis(sample, 1, 0) for sample in part["samples"]]
            out[name] = part
        return out

    def _reconstruct(self, found: Mapping[str, Any], labels: np.ndarray) -> dict[str, Any]:
        x, most = found["x"], self._sizes.max_scored_images
        layers = []
        for picture, probs in zip(found["reconstructions"], found["probs"], strict=True):
            layers.append(
                _with_errors(
                    {
                        "psnr_db": reconstruction.psnr(x, picture),
                        "ssim": reconstruction.ssim(x[:most], picture[:most]),
                        "classifier_accuracy": (probs.argmax(axis=1) == labels).astype(np.float64),
                        "prediction_entropy_nats": bounds.prediction_entropy(probs),
                    }
                )
            )
        out: dict[str, Any] = {"from_layer": layers}
        if self._is_discrete:
            _, counts = np.unique(x.reshape(len(x), -1), axis=0, return_counts=True)
            entropy = bounds.label_entropy(counts)
            total_rate = found["terms"].rates.sum(axis=1, dtype=np.float64).mean()
            out["empirical_data_entropy_nats"] = entropy
            out["min_distortion_nats"] = float(bounds.min_distortion(entropy, total_rate))
        return out

    def _represent(self, measured: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        most = self._sizes.max_scored_images
        labels = {name: values[: None if name == "train" else most] for name, values in self._labels.items()}
        layers: list[dict[str, Any]] = []
        pictures = {"latent_labels": labels["test"][:NUM_POINTS]}
        for index in range(self._model.num_layers):
            layer: dict[str, Any] = {"layer": index + 1}
            for what in ("samples", "means"):
                latents = {
                    name: part[what][index] if what == "samples" else part[what][index][None]
                    for name, part in measured.items()
                }
                latents = {name: values[:, : len(labels[name])] for name, values in latents.items()}
                probes = representation.fit(
                    latents["train"], labels["train"], latents["valid"], labels["valid"]
                )
                layer[what] = {"chosen": representation.choose(probes)}
                for kind, probe in probes.items():
                    score = representation.score(probe, latents["test"], labels["test"])
                    layer[what][kind] = {
                        "setting": dict([probe.setting]),
                        "valid_accuracy": probe.valid_accuracy,
                        "test_accuracy": score.accuracy,
                        "test_accuracy_standard_error": score.standard_error,
                    }
                points = latents["test"][0][:NUM_POINTS]
                if what == "means":
                    coordinates, share = representation.principal_components(points)
                    pictures[f"latent_coordinates_{index + 1}"] = coordinates.astype(np.float32)
                    layer["principal_component_shares"] = share.tolist()
            layers.append(layer)
        return layers, pictures

    def _inform(self, found: Mapping[str, Any], labels: np.ndarray) -> dict[str, Any]:
        estimate = information.estimate(found["means"][-1], found["top_std"], found["samples"][-1], labels)
        layer_rates = found["terms"].rates.mean(axis=0, dtype=np.float64)
        histogram = np.bincount(labels)
        # Σ_{k ≥ l} R_k bounds what z_l and the layers above it can tell of the label.
        upward = np.cumsum(layer_rates[::-1])[::-1]
        return {
            "num_images": len(labels),
            "label_histogram": histogram.tolist(),
            "label_entropy_nats": bounds.label_entropy(histogram),
            "label_information_nats": estimate.label,
            "label_information_nats_standard_error": estimate.label_standard_error,
            "image_information_nats": estimate.image,
            "image_information_nats_standard_error": estimate.image_standard_error,
            "top_rate_nats": float(layer_rates[-1]),
            "max_accuracy_by_information": float(bounds.max_accuracy(estimate.label, histogram)),
            "max_accuracy_by_rates": bounds.max_accuracy(upward, histogram).tolist(),
        }

    def _sample(self, params: Params, judge_params: Params, key: jax.Array) -> tuple[Any, ...]:
        apply: Any = self._model.apply

        def one_batch(key: jax.Array) -> tuple[jax.Array, ...]:
            images = jnp.clip(apply(params, key, SAMPLE_BATCH, method="sample"), 0.0, 1.0)
            return images, *self._classifier(judge_params, images)

        num_batches = -(-self._sizes.num_samples // SAMPLE_BATCH)
        out = jax.lax.map(one_batch, jax.random.split(key, num_batches))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: self._sizes.num_samples], out)

    def _generate(
        self, params: Params, key: jax.Array, real: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray]:
        found = self._sample_fn(params, self._classifier.params, key)
        samples, features, probs = jax.tree.map(np.asarray, found)
        score = generation.classifier_score(probs, self._sizes.num_splits)
        size = min(len(features), len(real["features"]), self._sizes.max_scored_images)
        precision, recall = generation.precision_recall(real["features"][:size], features[:size])
        return {
            "num_samples": len(samples),
            "inception_score_classifier": score.score,
            "inception_score_classifier_standard_error": score.standard_error,
            "diversity": score.diversity,
            "sharpness": score.sharpness,
            "frechet_distance_classifier": generation.frechet_distance(features, real["features"]),
            "precision_classifier": precision,
            "recall_classifier": recall,
            "num_precision_recall": size,
        }, samples

    def _compare_with_training(self, samples: np.ndarray, test: np.ndarray) -> dict[str, float]:
        """How near samples come to training images, beside how near test images come to them."""
        size = min(len(samples), len(test), NUM_POINTS)
        _, of_samples = generation.nearest(samples[:size], self._train_pixels)
        _, of_test = generation.nearest(test[:size], self._train_pixels)
        return {
            "median_distance_to_training": float(np.median(of_samples)),
            "median_distance_to_training_of_test_images": float(np.median(of_test)),
        }

    def _neighbors(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        index, _ = generation.nearest(samples, self._train_pixels)
        return {"samples": _as_bytes(samples), "neighbors": _as_bytes(self._train_pixels[index])}


def _summary(metrics: Mapping[str, Any], split: str) -> dict[str, dict[str, float]]:
    """The one number that stands for each application, and its standard error where there is one."""
    whole = metrics["reconstruction"][split]["from_layer"][0]
    samples = metrics["representation"]["layers"][-1]["samples"]
    probe, score = samples[samples["chosen"]], metrics["generation"][split]
    name = "inception_score_classifier"
    return {
        "reconstruction": {"value": whole["psnr_db"], "standard_error": whole["psnr_db_standard_error"]},
        "representation": {
            "value": probe[f"{split}_accuracy"],
            "standard_error": probe.get(f"{split}_accuracy_standard_error", 0.0),
        },
        "generation": {"value": score[name], "standard_error": score[f"{name}_standard_error"]},
    }


def _with_errors(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each name's mean, and its standard error over the images beside it."""
    out: dict[str, float] = {}
    for name, entries in values.items():
        out[name] = float(np.mean(entries, dtype=np.float64))
        out[f"{name}_standard_error"] = float(rates.standard_error(np.asarray(entries, np.float64)))
    return out


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """Values clipped to [0, 1], then rounded to 0 … 255."""
    return np.round(np.clip(images, 0.0, 1.0) * 255).astype(np.uint8)
