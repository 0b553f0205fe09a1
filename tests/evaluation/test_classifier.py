import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_grid import make_arrays

from hvae_jax import data, records
from hvae_jax.data import Dataset, Split
from hvae_jax.errors import RunError
from hvae_jax.evaluation import classifier
from hvae_jax.models.classifier import ConvNet, ResNet18, make_classifier

TRAINING = classifier.ClassifierTraining(
    num_epochs=6, batch_size=40, learning_rate=3e-3, weight_decay=1e-4, seed=0
)
PREPROCESS = data.make_preprocess("round")


def small_dataset() -> Dataset:
    arrays = make_arrays()
    train, test = (Split(arrays[f"{s}_images"][..., None], arrays[f"{s}_labels"]) for s in ("train", "test"))
    return Dataset("classes", Split(*(a[60:] for a in train)), Split(*(a[:60] for a in train)), test)


def load_or_train(folder, dataset, training=TRAINING):
    return classifier.load_or_train(
        folder, dataset, PREPROCESS, training, {"name": "classes"}, lambda _: None
    )


def test_the_residual_network_has_the_published_size_and_forgets_the_batch():
    network = make_classifier((32, 32, 3), num_classes=10)
    assert isinstance(network, ResNet18)
    x = jnp.zeros((2, 32, 32, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_173_962
    features, logits = jax.eval_shape(network.apply, params, x)  # type: ignore[misc]
    assert (features.shape, logits.shape) == ((2, 512), (2, 10))


@pytest.mark.parametrize("side", [8, 28])
def test_grey_images_get_a_small_network(side):
    network = make_classifier((side, side, 1), num_classes=7)
    assert isinstance(network, ConvNet)
    x = jnp.zeros((2, side, side, 1))
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    features, logits = jax.eval_shape(network.apply, params, x)  # type: ignore[misc]
    assert (features.shape, logits.shape) == ((2, 64), (2, 7))


def test_trained_once_then_loaded_and_other_settings_refused(tmp_path):
    dataset = small_dataset()
    first = load_or_train(tmp_path / "c", dataset)
    assert first.report["test_accuracy"] > 0.9
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    again = load_or_train(tmp_path / "c", dataset)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert records.read_json(tmp_path / "c" / "classifier.json") == first.report
    with pytest.raises(RunError, match="other data or settings"):
        load_or_train(tmp_path / "c", dataset, TRAINING.__class__(7, 40, 3e-3, 1e-4, 0))
    features, probs = first(first.params, jnp.zeros((2, 8, 8, 1)))
    assert features.shape == (2, 64)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)


def test_the_test_split_has_no_say_in_the_classifier(tmp_path):
    dataset = small_dataset()
    marked = dataset._replace(test=Split(255 - dataset.test.images, (dataset.test.labels + 1) % 3))
    first, second = load_or_train(tmp_path / "a", dataset), load_or_train(tmp_path / "b", marked)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.report["valid_accuracy"] == second.report["valid_accuracy"]
    assert first.report["test_accuracy"] != second.report["test_accuracy"]


def test_data_without_labels_is_refused(tmp_path):
    dataset = small_dataset()
    train = dataset.train._replace(labels=0 * dataset.train.labels)
    with pytest.raises(RunError, match="has no labels of two or more classes"):
        load_or_train(tmp_path, dataset._replace(train=train))
