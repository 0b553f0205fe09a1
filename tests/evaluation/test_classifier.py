import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_grid import make_arrays

from hvae_jax import data, records
from hvae_jax.data import Dataset, Split
from hvae_jax.errors import RunError
from hvae_jax.evaluation import classifier, settings
from hvae_jax.models.classifier import ConvNet, ResNet18, usual_network

TRAINING = classifier.ClassifierTraining(
    network="convnet", channels=16, num_epochs=6, batch_size=40, learning_rate=3e-3, weight_decay=1e-4, seed=0
)
PREPROCESS = data.make_preprocess("round")


def small_dataset() -> Dataset:
    arrays = make_arrays()
    train, test = (Split(arrays[f"{s}_images"][..., None], arrays[f"{s}_labels"]) for s in ("train", "test"))
    return Dataset("classes", Split(*(a[60:] for a in train)), Split(*(a[:60] for a in train)), test)


def load_or_train(folder, dataset, training=TRAINING, described=None, report=lambda _: None):
    described = described or settings.data_fingerprints(dataset.describe())
    return classifier.load_or_train(folder, dataset, PREPROCESS, training, described, report)


def shapes(network, *image_shape):
    """(number of parameters, shape of features, shape of logits) for a batch of 2."""
    x = jnp.zeros((2, *image_shape))
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    features, logits = jax.eval_shape(network.apply, params, x)  # type: ignore[misc]
    return sum(leaf.size for leaf in jax.tree.leaves(params)), features.shape, logits.shape


def test_the_residual_network_has_the_published_size():
    assert shapes(ResNet18(10), 32, 32, 3) == (11_173_962, (2, 512), (2, 10))
    count, *of_images = shapes(ResNet18(10, channels=16), 32, 32, 3)
    assert of_images == [(2, 128), (2, 10)]
    assert count < 11_173_962 / 15


@pytest.mark.parametrize(
    ("image_shape", "asked", "chosen"),
    [
        ((28, 28, 1), (None, None, None), ("convnet", 16, 4)),
        ((32, 32, 3), (None, None, None), ("resnet18", 64, 30)),
        ((32, 32, 3), (None, 16, 5), ("resnet18", 16, 5)),
        ((32, 32, 3), ("convnet", 32, None), ("convnet", 32, 4)),
    ],
)
def test_the_classifier_is_the_usual_one_unless_another_is_asked_for(image_shape, asked, chosen):
    training = classifier.choose_training(image_shape, 50_000, *asked)
    assert (training.network, training.channels, training.num_epochs) == chosen


def test_channels_that_do_not_go_into_groups_are_refused():
    with pytest.raises(RunError, match=r"--classifier_channels=24 must be a multiple of 16"):
        classifier.choose_training((32, 32, 3), 50_000, channels=24)


@pytest.mark.parametrize("side", [8, 28])
def test_grey_images_get_a_small_network(side):
    assert usual_network((side, side, 1)) == "convnet"
    assert shapes(ConvNet(7), side, side, 1)[1:] == ((2, 64), (2, 7))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a classifier, and the classifier."""
    folder = tmp_path_factory.mktemp("classifiers") / "c"
    return folder, load_or_train(folder, small_dataset())


def test_trained_once_then_loaded(trained, tmp_path):
    folder, first = trained
    assert first.report["test_accuracy"] > 0.9
    shutil.copytree(folder, tmp_path / "c")

    def times():
        files = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"]
        return {file: file.stat().st_mtime_ns for file in files}

    before = times()
    again = load_or_train(tmp_path / "c", small_dataset())
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    assert times() == before
    assert records.read_json(tmp_path / "c" / "classifier.json") == first.report
    features, probs = first(first.params, jnp.zeros((2, 8, 8, 1)))
    assert features.shape == (2, 64)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)


def test_the_test_split_has_no_say_in_the_classifier(trained, tmp_path):
    dataset = small_dataset()
    marked = dataset._replace(test=Split(255 - dataset.test.images, (dataset.test.labels + 1) % 3))
    first, second = trained[1], load_or_train(tmp_path / "b", marked)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.report["valid_accuracy"] == second.report["valid_accuracy"]
    assert first.report["test_accuracy"] != second.report["test_accuracy"]


def test_data_without_labels_is_refused(tmp_path):
    dataset = small_dataset()
    train = dataset.train._replace(labels=0 * dataset.train.labels)
    with pytest.raises(RunError, match="has no labels of two or more classes"):
        load_or_train(tmp_path, dataset._replace(train=train))


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: cut(folder / "classifier.json"), "trained again: classifier.json is damaged"),
        (lambda folder: (folder / "classifier.json").unlink(), ""),
        (lambda folder: records.write_json(folder / "classifier.json", [1]), "classifier.json is damaged"),
        (
            lambda folder: [cut(file) for file in (folder / "checkpoints").rglob("*") if file.is_file()],
            "the classifier is trained again",
        ),
    ],
)
def test_a_damaged_classifier_is_trained_again(trained, tmp_path, spoil, words):
    folder, first = trained
    shutil.copytree(folder, tmp_path / "c")
    spoil(tmp_path / "c")
    lines: list[str] = []
    again = load_or_train(tmp_path / "c", small_dataset(), report=lines.append)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    assert again.report == first.report
    assert any(words in line for line in lines)


@pytest.mark.long
def test_another_classifier_than_the_one_there_is_trained_and_said(trained, tmp_path):
    """Other images under the same name, another version: none is reused in silence."""
    dataset = small_dataset()
    shutil.copytree(trained[0], tmp_path / "c")
    inverted = dataset._replace(train=Split(255 - dataset.train.images, dataset.train.labels))
    lines: list[str] = []
    found = load_or_train(tmp_path / "c", inverted, report=lines.append)
    assert "is trained again: data: splits: train: fingerprint was " in lines[0]
    fresh = load_or_train(tmp_path / "fresh", inverted)
    jax.tree.map(np.testing.assert_array_equal, found.params, fresh.params)

    file = tmp_path / "c" / "classifier.json"
    old = records.read_json(file)
    records.write_json(file, {**old, "settings": {**old["settings"], "version": "0.0.9"}})
    lines.clear()
    load_or_train(tmp_path / "c", inverted, report=lines.append)
    assert f"is trained again: version was 0.0.9, is {old['settings']['version']}" in lines[0]


def test_labels_may_be_huge_and_sparse(trained, tmp_path):
    dataset = small_dataset()
    ids = np.asarray([7, 400_000, 1_000_000], np.int32)
    train, valid, test = (Split(s.images, ids[s.labels]) for s in dataset.splits.values())
    renamed = Dataset(dataset.name, train, valid, test)
    found = load_or_train(tmp_path / "c", renamed)
    jax.tree.map(np.testing.assert_array_equal, found.params, trained[1].params)
    assert found.report["test_accuracy"] == trained[1].report["test_accuracy"]


def test_a_folder_of_other_things_is_refused_and_kept(tmp_path):
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds config\.json: it is no folder of a classifier"):
        load_or_train(run, small_dataset())
    with pytest.raises(RunError, match="holds mine and no classifier"):
        classifier.check_folder(run.parent)
    with pytest.raises(RunError, match="but it is a file"):
        classifier.check_folder(run / "config.json")
    assert sorted(entry.name for entry in run.iterdir()) == ["checkpoints", "config.json"]
    classifier.check_folder(tmp_path / "absent")
