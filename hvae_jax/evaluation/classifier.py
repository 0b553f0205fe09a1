"""Trains the classifier of a data set once, and keeps it with its test accuracy."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hvae_jax import records
from hvae_jax.batches import batch_indices
from hvae_jax.checkpoints import Checkpoints
from hvae_jax.data import Dataset, Split
from hvae_jax.errors import RunError
from hvae_jax.evaluation.rates import SplitEvaluator
from hvae_jax.keys import fold_in, make_key
from hvae_jax.models.classifier import ConvNet, ResNet18, make_classifier
from hvae_jax.training import Params, PreprocessFn

CLASSIFIER_FILE = "classifier.json"


@dataclasses.dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier is trained: AdamW, the learning rate on a cosine to 0.

    Attributes:
      num_epochs: passes over the training split.
      batch_size: images per step.
      learning_rate: the first one.
      weight_decay: decoupled.
      seed: of parameters, order and what binarisation draws.
    """

    num_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
      network: the Flax module.
      params: its parameters.
      report: what classifier.json holds, the test accuracy among it.
    """

    network: ConvNet | ResNet18
    params: Params
    report: dict[str, Any]

    def __call__(self, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features `[B, F]` and p(y|x) `[B, M]` of images `[B, H, W, C]`, under `params`."""
        out: Any = self.network.apply(params, x)
        return out[0], jax.nn.softmax(out[1])


def default_training(image_shape: tuple[int, int, int], num_images: int) -> ClassifierTraining:
    """Enough for a small network to learn a small data set, and for a ResNet to learn 50,000 images.

    On two CPU cores: seconds for 8 × 8, two minutes for 28 × 28. The ResNet wants an accelerator.
    """
    if image_shape[-1] == 3:
        return ClassifierTraining(
            num_epochs=30, batch_size=128, learning_rate=1e-3, weight_decay=5e-4, seed=0
        )
    num_epochs = min(40, max(4, 200_000 // num_images))
    return ClassifierTraining(num_epochs, batch_size=64, learning_rate=2e-3, weight_decay=1e-3, seed=0)


def folder_name(dataset_name: str, binarize: str) -> str:
    """What the classifier's folder is called: the data set's name in letters that any disk takes."""
    return re.sub(r"[^A-Za-z0-9]+", "_", f"{dataset_name} {binarize}").strip("_")


def load_or_train(
    folder: pathlib.Path,
    dataset: Dataset,
    preprocess_fn: PreprocessFn,
    training: ClassifierTraining,
    described: dict[str, Any],
    report: Callable[[str], None],
) -> Classifier:
    """The classifier kept in `folder`, trained there first if need be; an interrupted training goes on.

    It learns every image twice over: as the models see it and in its grey values, drawn by lot at each
    step. Reconstructions and samples are means, so they are grey even where the data is binarised. The
    test split is read once, for the accuracy in classifier.json; nothing is chosen by it.

    Args:
      folder: holds classifier.json and checkpoints/.
      dataset: with labels of at least two classes.
      preprocess_fn: that of the models that will be judged.
      training: how.
      described: the data's part of the config; a folder made for other data is refused.
      report: called with a line about progress now and then.

    Raises:
      RunError: no labels, or a folder that holds the classifier of other data or another training.
    """
    if dataset.num_classes < 2:
        raise RunError(
            f"config.data.name={dataset.name!r} has no labels of two or more classes: there is no classifier "
            "to judge samples with, and no class to read from a latent"
        )
    network = make_classifier(dataset.image_shape, dataset.num_classes)
    settings = {
        "data": described,
        "training": dataclasses.asdict(training),
        "network": type(network).__name__,
    }
    file = folder / CLASSIFIER_FILE
    old = records.read_json(file) if file.exists() else {"settings": settings}
    if old["settings"] != settings:
        raise RunError(f"{folder} holds the classifier of other data or settings; delete it or name another")
    folder.mkdir(parents=True, exist_ok=True)
    if "test_accuracy" not in old:
        records.write_json(file, {"settings": settings})

    checkpoints = Checkpoints(folder / records.CHECKPOINTS_FOLDER, num_kept=1)
    params = _train(network, dataset.train, preprocess_fn, training, checkpoints, report)
    checkpoints.close()
    if "test_accuracy" not in old:
        old = {"settings": settings, **_measure(network, params, dataset, preprocess_fn)}
        records.write_json(file, old)
        report(f"classifier of {dataset.name}: test accuracy {old['test_accuracy']:.4f}")
    return Classifier(network, params, old)


def _train(
    network: ConvNet | ResNet18,
    split: Split,
    preprocess_fn: PreprocessFn,
    training: ClassifierTraining,
    checkpoints: Checkpoints,
    report: Callable[[str], None],
) -> Params:
    num_images, size = len(split.images), min(training.batch_size, len(split.images))
    steps_per_epoch = math.ceil(num_images / size)
    num_steps = steps_per_epoch * training.num_epochs
    schedule = optax.cosine_decay_schedule(training.learning_rate, num_steps)
    tx = optax.adamw(schedule, weight_decay=training.weight_decay)
    key = make_key(training.seed)

    def init() -> tuple[Params, optax.OptState]:
        params = network.init(key, jnp.zeros((1, *split.images.shape[1:])))
        return params, tx.init(params)

    def loss_fn(params: Params, images: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
        as_seen = preprocess_fn(fold_in(keys, 0), images)
        is_grey = jax.vmap(jax.random.bernoulli)(fold_in(keys, 1))[:, None, None, None]
        x = jnp.where(is_grey, jnp.asarray(images, jnp.float32) / 255, as_seen)
        out: Any = network.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(out[1], labels).mean()

    @jax.jit
    def epoch(state: Any, images: jax.Array, labels: jax.Array, indices: jax.Array, start: jax.Array) -> Any:
        def step(state: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            params, opt_state = state
            index, number = batch
            keys = jax.random.split(jax.random.fold_in(key, number), size)
            loss, grads = jax.value_and_grad(loss_fn)(params, images[index], labels[index], keys)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, state, (indices, start + jnp.arange(steps_per_epoch)))

    done = checkpoints.latest_step() or 0
    state = checkpoints.restore(jax.eval_shape(init)) if done else jax.jit(init)()
    for number in range(done, training.num_epochs):
        start = number * steps_per_epoch
        indices = batch_indices(training.seed, num_images, size, start, steps_per_epoch)
        state, losses = epoch(state, split.images, split.labels, indices, start)
        loss = float(losses.mean())
        if not math.isfinite(loss):
            raise RunError(f"the classifier's loss is not finite in epoch {number + 1}; look at the data")
        if number + 1 == training.num_epochs or (number + 1) % 10 == 0:
            checkpoints.save(number + 1, state)
            report(f"classifier: epoch {number + 1}/{training.num_epochs}, training loss {loss:.4f}")
    checkpoints.wait()
    return jax.device_get(state[0])


def _measure(
    network: ConvNet | ResNet18, params: Params, dataset: Dataset, preprocess_fn: PreprocessFn
) -> dict[str, float]:
    """Accuracy on the validation and test split, as the models see the images and in grey values."""

    def predict(params: Params, x: jax.Array, _: jax.Array) -> jax.Array:
        out: Any = network.apply(params, x)
        return out[1].argmax(axis=1)

    views = {"": preprocess_fn, "grey_": lambda _, images: jnp.asarray(images, jnp.float32) / 255}
    found = {}
    for name, split in (("valid", dataset.valid), ("test", dataset.test)):
        for view, fn in views.items():
            if len(split.images):
                labels = SplitEvaluator(split.images, fn).map_images(predict, params, make_key(0))
                found[f"{view}{name}_accuracy"] = float(np.mean(labels == split.labels))
    return found
