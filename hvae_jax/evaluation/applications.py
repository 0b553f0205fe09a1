"""One model's worth for reconstruction, for representation learning and for generation.

Every number exists for the validation split, from which models are chosen, and for the test split,
which is read once for the report. Samples are drawn twice, with different keys, for the same reason. What
the data do not allow, for want of labels, of a validation split or of images, is left out and named.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import bounds, data
from hvae_jax.data import Dataset
from hvae_jax.evaluation import generation, information, parts, rates, reconstruction, representation
from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.evaluation.sizes import NUM_PICTURES, NUM_POINTS, Sizes
from hvae_jax.keys import fold_in, make_key
from hvae_jax.models.hvae import HVAE
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import Params, PreprocessFn
from hvae_jax.training.split_evaluator import SplitEvaluator

SPLITS = ("valid", "test")
SAMPLE_BATCH = 250
NO_LABELS = "the training split has no labels of two or more classes"
NO_VALID = (
    "config.data.num_valid=0: models and classifiers are chosen by the validation split, and the test split "
    "must not take its place"
)


class Evaluation(NamedTuple):
    """What `ModelEvaluator` finds.

    Attributes:
      metrics: plain nested values for metrics.json. `left_out` names what could not be evaluated: place of a
        metric or a group of them → why.
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
        classifier: Classifier | None,
        sizes: Sizes,
        is_discrete: bool,
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

        Raises:
          RunError: sizes that do not fit into memory.
        """
        self._model, self._classifier, self._sizes = model, classifier, sizes
        self._is_discrete = is_discrete
        self._classes = parts.find_classes(dataset)
        self._parts = parts.make_parts(dataset, self._classes, sizes)
        self._splits = [split for split in SPLITS if split in self._parts]
        sizes.check_memory(
            num_images=sum(len(part.images) for part in self._parts.values()),
            num_dims=math.prod(dataset.image_shape),
            num_latents=sum(map(math.prod, model.config.latent_shapes)),
            num_features=0 if classifier is None else classifier.num_features,
        )
        # One array for all, so that there is one program; the test split comes last, since the draws of an
        # image follow from its place.
        joined = parts.join(self._parts, parts.is_streamed(dataset))
        self._split = SplitEvaluator(joined, preprocess_fn)
        train = SplitEvaluator(parts.training_images(dataset), preprocess_fn)
        # As the models see them, for the memorisation check.
        self._train_pixels: Any = train.map_images(lambda _, x, __: x, (), make_key(0))
        self._measure_fn = self._make_measure_fn()
        self._sample_fn = jax.jit(self._sample)

    @property
    def pixels(self) -> str:
        """What samples are made of: "draws" from p(x|z), or "means" E[x|z], clipped to [0, 1]."""
        return "draws" if self._is_discrete else "means"

    def evaluate(self, params: Params, seed: int) -> Evaluation:
        """All applications, validation and test; the draws depend on `seed`."""
        key = make_key(seed)
        measured = self._measure(params, jax.random.fold_in(key, 0))
        num_dims = math.prod(self._model.image_shape)
        left_out = self._left_out()
        layers, pictures = self._represent(measured, left_out)
        metrics: dict[str, Any] = {
            "rates": {s: rates.summarize(measured[s]["terms"], num_dims) for s in self._splits},
            "reconstruction": {s: self._reconstruct(measured[s], self._parts[s]) for s in self._splits},
            "representation": {"layers": layers},
            "information": {s: self._inform(measured[s], self._parts[s]) for s in self._splits},
            "generation": {},
        }
        for split in self._splits:
            split_key = jax.random.fold_in(key, 1 + SPLITS.index(split))
            samples, scores = self._generate(params, split_key, measured[split], split, left_out)
            if split == "test":
                scores |= self._compare_with_training(samples, measured[split]["x"])
                pictures |= self._neighbors(samples[:NUM_PICTURES])
            metrics["generation"][split] = {self.pixels: scores}
        test, shown = measured["test"], self._parts["test"].shown
        pictures["images"] = _as_bytes(test["x"][shown])
        pictures["reconstructions"] = _as_bytes(
            np.stack([images[shown] for images in test["reconstructions"]])
        )
        metrics["applications"] = {split: _summary(metrics, split, self.pixels) for split in self._splits}
        metrics["left_out"] = left_out
        return Evaluation(metrics, pictures)

    def _left_out(self) -> dict[str, str]:
        """What the data do not allow, whatever the model."""
        out = {}
        if not self._classes.can_be_told_apart:
            for name in ("representation", "generation"):
                out[f"applications.{name}"] = NO_LABELS
            for name in ("reconstruction.*.from_layer.*.classifier", "information.*.label"):
                out[name] = NO_LABELS
        if "valid" not in self._splits:
            for name in ("reconstruction", "representation", "generation"):
                out[f"applications.{name}"] = NO_VALID
        return out

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
            judged = {}
            if classifier is not None:
                judged["features"] = classifier(judge_params, x)[0]
                judged["probs"] = [classifier(judge_params, picture)[1] for picture in pictures]
            return {
                **judged,
                "x": x,
                "terms": jax.tree.map(lambda t: t.mean(axis=0), terms),
                "samples": [jnp.moveaxis(sample, 0, 1) for sample in samples],
                "means": [code.mean for code in codes],
                "top_std": codes[-1].std,
                "reconstructions": pictures,
            }

        return measure

    def _measure(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """What `measure` gives, by part; draws lead: samples `[S, N, ...]`."""
        judge_params = self._classifier.params if self._classifier else ()
        found = self._split.map_images(self._measure_fn, (params, judge_params), key)
        ends = np.cumsum([len(part.images) for part in self._parts.values()])
        out = {}
        for name, start, end in zip(self._parts, [0, *ends], ends, strict=False):
            part = jax.tree.map(lambda a, s=start, e=end: a[s:e], found)
            part["samples"] = [np.moveaxis(sample, 1, 0) for sample in part["samples"]]
            out[name] = part
        return out

    def _reconstruct(self, found: Mapping[str, Any], part: parts.Part) -> dict[str, Any]:
        x, layers = found["x"], []
        for index, picture in enumerate(found["reconstructions"]):
            values = {
                "psnr_db": reconstruction.psnr(x, picture),
                "ssim": reconstruction.ssim(x[part.scored], picture[part.scored]),
            }
            if "probs" in found:
                probs = found["probs"][index]
                values["classifier_accuracy"] = (probs.argmax(axis=1) == part.labels).astype(np.float64)
                values["prediction_entropy_nats"] = bounds.prediction_entropy(probs)
            layers.append(_with_errors(values))
        out: dict[str, Any] = {"from_layer": layers, "num_images_ssim": len(part.scored)}
        if self._is_discrete:
            _, counts = np.unique(x.reshape(len(x), -1), axis=0, return_counts=True)
            entropy = bounds.label_entropy(counts)
            total_rate = found["terms"].rates.sum(axis=1, dtype=np.float64).mean()
            out["empirical_data_entropy_nats"] = entropy
            out["min_distortion_nats"] = float(bounds.min_distortion(entropy, total_rate))
        return out

    def _represent(
        self, measured: Mapping[str, Any], left_out: dict[str, str]
    ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        points, labels = self._parts["test"].points, self._parts["test"].labels
        pictures = {"latent_labels": self._classes.ids[labels[points]]}
        reason = self._why_no_probes()
        if reason:
            left_out["representation.layers.*.samples"] = left_out["representation.layers.*.means"] = reason
            left_out.setdefault("applications.representation", reason)
        layers: list[dict[str, Any]] = []
        for index in range(self._model.num_layers):
            layer: dict[str, Any] = {"layer": index + 1}
            if not reason:
                for what in ("samples", "means"):
                    layer[what] = self._probe(measured, what, index)
                for kind in representation.KINDS.keys() - layer["samples"].keys():
                    left_out[f"representation.layers.*.*.{kind}"] = "too few training images for it"
            means = measured["test"]["means"][index][points]
            coordinates, share = representation.principal_components(means)
            pictures[f"latent_coordinates_{index + 1}"] = coordinates.astype(np.float32)
            layer["principal_component_shares"] = share.tolist()
            layers.append(layer)
        return layers, pictures

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

    def _probe(self, measured: Mapping[str, Any], what: str, index: int) -> dict[str, Any]:
        """Accuracies of all kinds of classifiers that read one layer, from "samples" or "means"."""
        latents, labels = {}, {}
        for name, part in self._parts.items():
            places = np.arange(len(part.labels)) if name == "train" else part.scored
            found = measured[name][what][index]
            latents[name] = (found if what == "samples" else found[None])[:, places]
            labels[name] = part.labels[places]
        probes = representation.fit(latents["train"], labels["train"], latents["valid"], labels["valid"])
        out: dict[str, Any] = {"chosen": representation.choose(probes)}
        for kind, probe in probes.items():
            score = representation.score(probe, latents["test"], labels["test"])
            out[kind] = {
                "setting": dict([probe.setting]),
                "valid_accuracy": probe.valid_accuracy,
                "test_accuracy": score.accuracy,
                "test_accuracy_standard_error": score.standard_error,
            }
        return out

    def _inform(self, found: Mapping[str, Any], part: parts.Part) -> dict[str, Any]:
        """Information and bounds of the whole split, and of the images that probes are scored on.

        Each is a population of its own, with its own mixtures and labels: accuracies belong to the second.
        """
        whole = self._inform_about(found, part.labels, np.arange(len(part.labels)))
        is_whole = len(part.scored) == len(part.labels)
        return {
            **whole,
            "scored": dict(whole) if is_whole else self._inform_about(found, part.labels, part.scored),
        }

    def _inform_about(
        self, found: Mapping[str, Any], labels: np.ndarray, places: np.ndarray
    ) -> dict[str, Any]:
        labels = labels[places]
        estimate = information.estimate(
            found["means"][-1][places], found["top_std"][places], found["samples"][-1][:, places], labels
        )
        layer_rates = found["terms"].rates[places].mean(axis=0, dtype=np.float64)
        out = {
            "num_images": len(labels),
            "image_information_nats": estimate.image,
            "image_information_nats_standard_error": estimate.image_standard_error,
            "top_rate_nats": float(layer_rates[-1]),
        }
        if not self._classes.can_be_told_apart:
            return out
        histogram = np.bincount(labels)
        # Σ_{k ≥ l} R_k bounds what z_l and the layers above it can tell of the label.
        upward = np.cumsum(layer_rates[::-1])[::-1]
        return {
            **out,
            "label_histogram": histogram.tolist(),
            "label_entropy_nats": bounds.label_entropy(histogram),
            "label_information_nats": estimate.label,
            "label_information_nats_standard_error": estimate.label_standard_error,
            "max_accuracy_by_information": float(bounds.max_accuracy(estimate.label, histogram)),
            "max_accuracy_by_rates": bounds.max_accuracy(upward, histogram).tolist(),
        }

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
        self, params: Params, key: jax.Array, real: Mapping[str, Any], split: str, left_out: dict[str, str]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Samples and their scores, beside images of a split as the models see them."""
        judge_params = self._classifier.params if self._classifier else ()
        samples, *judged = jax.tree.map(np.asarray, self._sample_fn(params, judge_params, key))
        scores: dict[str, Any] = {"num_samples": len(samples)}
        place = f"generation.{split}.{self.pixels}"
        if not judged:
            left_out[place] = NO_LABELS
            return samples, scores
        features, probs = judged
        score = generation.classifier_score(probs, self._sizes.num_splits)
        scores |= {
            "inception_score_classifier": score.score,
            "inception_score_classifier_standard_error": score.standard_error,
            "diversity": score.diversity,
            "sharpness": score.sharpness,
        }
        num_real = len(real["features"])
        if num_real >= generation.MIN_FRECHET:
            scores["frechet_distance_classifier"] = generation.frechet_distance(features, real["features"])
        else:
            left_out[f"{place}.frechet_distance_classifier"] = (
                f"the {split} split has fewer than {generation.MIN_FRECHET} images"
            )
        if num_real >= generation.MIN_PRECISION:
            size = min(len(features), num_real, self._sizes.max_scored_images)
            chosen = real["features"][data.subset(num_real, size)]
            precision, recall = generation.precision_recall(chosen, features[:size])
            scores |= {
                "precision_classifier": precision, "recall_classifier": recall, "num_precision_recall": size
            }  # fmt: skip
        else:
            for name in ("precision", "recall"):
                left_out[f"{place}.{name}_classifier"] = (
                    f"the {split} split has fewer than {generation.MIN_PRECISION} images"
                )
        return samples, scores

    def _compare_with_training(self, samples: np.ndarray, test: np.ndarray) -> dict[str, Any]:
        """How near samples come to training images, beside how near test images come to them."""
        size = min(len(samples), len(test), NUM_POINTS)
        _, of_samples = generation.nearest(samples[:size], self._train_pixels)
        _, of_test = generation.nearest(test[data.subset(len(test), size)], self._train_pixels)
        return {
            "num_training_images": len(self._train_pixels),
            "median_distance_to_training": float(np.median(of_samples)),
            "median_distance_to_training_of_test_images": float(np.median(of_test)),
        }

    def _neighbors(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        index, _ = generation.nearest(samples, self._train_pixels)
        return {"samples": _as_bytes(samples), "neighbors": _as_bytes(self._train_pixels[index])}


def _summary(metrics: Mapping[str, Any], split: str, pixels: str) -> dict[str, dict[str, float]]:
    """The one number that stands for each application, and its standard error where there is one."""
    whole = metrics["reconstruction"][split]["from_layer"][0]
    out = {"reconstruction": {"value": whole["psnr_db"], "standard_error": whole["psnr_db_standard_error"]}}
    samples = metrics["representation"]["layers"][-1].get("samples")
    if samples:
        probe = samples[samples["chosen"]]
        out["representation"] = {
            "value": probe[f"{split}_accuracy"],
            "standard_error": probe.get(f"{split}_accuracy_standard_error", 0.0),
        }
    score, name = metrics["generation"][split][pixels], "inception_score_classifier"
    if name in score:
        out["generation"] = {"value": score[name], "standard_error": score[f"{name}_standard_error"]}
    return out


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
