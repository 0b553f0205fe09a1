"""Trains the classifier of a data set once, and keeps it with its test accuracy."""

import dataclasses
import math
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hvae_jax import records
from hvae_jax.data import Dataset, Split
from hvae_jax.errors import RunError
from hvae_jax.evaluation import parts, settings
from hvae_jax.files import claims
from hvae_jax.keys import fold_in, make_key
from hvae_jax.models.classifier import GROUP_SIZE, NETWORKS, ConvNet, ResNet18, usual_network
from hvae_jax.training import Params, PreprocessFn
from hvae_jax.training.batches import batch_indices
from hvae_jax.training.checkpoints import Checkpoints
from hvae_jax.training.split_evaluator import SplitEvaluator

CLASSIFIER_FILE, LOCK_FILE = "classifier.json", "classifier.lock"
# By which the folder of a classifier is known.
_PARTS = (CLASSIFIER_FILE, LOCK_FILE)
_OWN = {*_PARTS, f"{CLASSIFIER_FILE}.partial", "checkpoints", "checkpoints.partial"}
# That another evaluation, which trains the same classifier, is waited for.
WAIT_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True)
class ClassifierTraining:
    """Which classifier, and how it is trained: AdamW, the learning rate on a cosine to 0.

    Attributes:
      network: of `models.classifier.NETWORKS`.
      channels: of its first layer; the others have more in proportion.
      num_epochs: passes over the training split.
      batch_size: images per step.
      learning_rate: the first one.
      weight_decay: decoupled.
      seed: of parameters, order and what binarisation draws.
    """

    network: str
    channels: int
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

    @property
    def num_features(self) -> int:
        """F."""
        return self.network.num_features

    def __call__(self, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features `[B, F]` and p(y|x) `[B, M]` of images `[B, H, W, C]`, under `params`."""
        out: Any = self.network.apply(params, x)
        return out[0], jax.nn.softmax(out[1])


def choose_training(
    image_shape: tuple[int, int, int],
    num_images: int,
    network: str | None = None,
    channels: int | None = None,
    num_epochs: int | None = None,
) -> ClassifierTraining:
    """Enough for a small network to learn a small data set, and for a ResNet to learn 50,000 images.

    On two CPU cores: seconds for 8 × 8, two minutes for 28 × 28. The ResNet of 64 channels wants an
    accelerator: a day or more on a CPU.

    Args:
      image_shape: H, W, C.
      num_images: of the training split.
      network, channels, num_epochs: instead of what is usual for such images.

    Raises:
      RunError: channels that do not go into groups.
    """
    network = network or usual_network(image_shape)
    channels = channels or NETWORKS[network].channels
    if network == "resnet18":
        if channels % GROUP_SIZE:
            raise RunError(
                f"--classifier_channels={channels} must be a multiple of {GROUP_SIZE} for a resnet18, whose "
                "channels are normalised in groups of so many"
            )
        return ClassifierTraining(network, channels, num_epochs or 30, 128, 1e-3, 5e-4, seed=0)
    num_epochs = num_epochs or min(40, max(4, 200_000 // num_images))
    return ClassifierTraining(network, channels, num_epochs, 64, 2e-3, 1e-3, seed=0)


def folder_name(dataset_name: str, binarize: str) -> str:
    """What the classifier's folder is called: the data set's name in letters that any disk takes."""
    return re.sub(r"[^A-Za-z0-9]+", "_", f"{dataset_name} {binarize}").strip("_")


def check_folder(folder: pathlib.Path) -> None:
    """Refuses a folder that holds something else than classifiers, before anything is written to it.

    Raises:
      RunError: a file, or a folder of other things.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--classifiers={folder} must be a folder of classifiers, but it is a file")
    entries = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.exists() else []
    files = [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.exists() else []
    is_one = any((entry / name).exists() for entry in entries for name in _PARTS)
    if (entries or files) and not is_one:
        first = min(files + [entry.name for entry in entries])
        raise RunError(
            f"--classifiers={folder} holds {first} and no classifier; name a new folder, or that of an "
            "evaluation"
        )


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
    step. Reconstructions are means, so they are grey even where the data is binarised. The test split is
    read once, for the accuracy in classifier.json; nothing is chosen by it.

    One that was made from other data, with other settings or by another version of this package is trained
    anew, and so is one whose files are damaged; `report` is told why.

    Args:
      folder: holds classifier.json and checkpoints/.
      dataset: with labels of at least two classes.
      preprocess_fn: that of the models that will be judged.
      training: how.
      described: the data, for example `settings.data_fingerprints`.
      report: called with a line about progress now and then.

    Raises:
      RunError: no labels, a folder that is in use, or of something else.
    """
    classes = parts.find_classes(dataset)
    if not classes.can_be_told_apart:
        raise RunError(
            f"config.data.name={dataset.name!r} has no labels of two or more classes: there is no classifier "
            "to judge samples with, and no class to read from a latent"
        )
    network = NETWORKS[training.network](classes.num_trained, training.channels)
    wanted = {
        "data": described,
        "training": dataclasses.asdict(training),
        "version": settings.package_version(),
    }
    strange = sorted({entry.name for entry in folder.iterdir()} - _OWN) if folder.is_dir() else []
    if strange:
        raise RunError(f"{folder} holds {strange[0]}: it is no folder of a classifier; name another")
    with claims.claim(folder / LOCK_FILE, f"the classifier in {folder}", wait_seconds=WAIT_SECONDS):
        old = _open(folder, wanted, report)
        try:
            params = _train(network, dataset, classes, preprocess_fn, training, folder, report)
        except _Damaged as error:
            report(f"{error}; the classifier is trained again")
            old = _start_again(folder, wanted)
            params = _train(network, dataset, classes, preprocess_fn, training, folder, report)
        if "test_accuracy" not in old:
            old = {"settings": wanted, **_measure(network, params, dataset, classes, preprocess_fn)}
            records.write_json(folder / CLASSIFIER_FILE, old)
            report(f"classifier of {dataset.title}: test accuracy {old['test_accuracy']:.4f}")
    return Classifier(network, params, old)


class _Damaged(Exception):
    """A checkpoint that cannot be restored."""


def _open(folder: pathlib.Path, wanted: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """What classifier.json says, if it is of this classifier; else the folder is emptied for a new one."""
    file = folder / CLASSIFIER_FILE
    if not file.exists():
        return _start_again(folder, wanted)
    old: dict[str, Any] = {}
    try:
        old = records.read_json(file)
        why = settings.difference(old["settings"], wanted)
    except (RunError, KeyError, TypeError):
        why = f"{CLASSIFIER_FILE} is damaged"
    if why is None:
        return old
    report(f"the classifier in {folder} is trained again: {why}")
    return _start_again(folder, wanted)


def _start_again(folder: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Only checkpoints and classifier.json are ours to remove; classifier.json then says what is begun."""
    shutil.rmtree(folder / records.CHECKPOINTS_FOLDER, ignore_errors=True)
    records.write_json(folder / CLASSIFIER_FILE, {"settings": wanted})
    return {"settings": wanted}


def _train(
    network: ConvNet | ResNet18,
    dataset: Dataset,
    classes: parts.Classes,
    preprocess_fn: PreprocessFn,
    training: ClassifierTraining,
    folder: pathlib.Path,
    report: Callable[[str], None],
) -> Params:
    """The trained parameters, from the checkpoint in `folder` on."""
    split = Split(np.asarray(dataset.train.images), classes.number(dataset.train.labels))
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

    checkpoints = Checkpoints(folder / records.CHECKPOINTS_FOLDER, num_kept=1)
    done = checkpoints.latest_step() or 0
    try:
        state = checkpoints.restore(jax.eval_shape(init)) if done else jax.jit(init)()
    except RunError as error:
        checkpoints.close()
        raise _Damaged(str(error).partition(";")[0]) from error
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
    checkpoints.close()
    return jax.device_get(state[0])


def _measure(
    network: ConvNet | ResNet18,
    params: Params,
    dataset: Dataset,
    classes: parts.Classes,
    preprocess_fn: PreprocessFn,
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
                predicted = SplitEvaluator(split.images, fn).map_images(predict, params, make_key(0))
                found[f"{view}{name}_accuracy"] = float(np.mean(predicted == classes.number(split.labels)))
    return found
