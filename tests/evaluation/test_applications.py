import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import small_grid

from experiments import digits, evaluate_outputs
from hvae_jax import data, experiment, records
from hvae_jax.data import Split
from hvae_jax.data.stored import HostArray
from hvae_jax.errors import RunError
from hvae_jax.evaluation import (
    bound_checks,
    classifier,
    guidance,
    information,
    representation,
    results,
    tables,
)
from hvae_jax.evaluation.applications import ModelEvaluator
from hvae_jax.evaluation.sizes import Sizes
from hvae_jax.keys import make_key

SIZES = Sizes(num_draws=2, num_samples=300, num_splits=3, max_fit_images=120, max_scored_images=80)


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """What a run folder holds, and its parameters."""
    folder = tmp_path_factory.mktemp("runs")
    small_grid.make_run(folder / "run", small_grid.write_data(folder), (1.0, 1.0), seed=0)
    built = experiment.from_folder(folder / "run")
    return built, experiment.restore(built, folder / "run").eval_params


@pytest.fixture(scope="module")
def judge(restored, tmp_path_factory):
    built, _ = restored
    training = classifier.ClassifierTraining(5, 40, 3e-3, 1e-4, 0)
    folder = tmp_path_factory.mktemp("classifier")
    return classifier.load_or_train(
        folder, built.dataset, built.preprocess_fn, training, {}, report=lambda _: None
    )


def evaluate(restored, judge, dataset, sizes=SIZES):
    built, params = restored
    evaluator = ModelEvaluator(built.model, dataset, built.preprocess_fn, judge, sizes, is_discrete=True)
    return evaluator.evaluate(params, seed=0)


@pytest.fixture(scope="module")
def evaluation(restored, judge):
    return evaluate(restored, judge, restored[0].dataset)


def test_a_folder_gives_back_what_it_was_made_from(restored):
    built, params = restored
    assert built.model.config.latent_shapes == ((2, 2, 2), (3,))
    assert built.objective.betas == (1.0, 1.0)
    fresh = built.init_params(0)
    np.testing.assert_allclose(params["params"]["decoder"]["ConvTranspose_0"]["bias"],
        2.5 * fresh["params"]["decoder"]["ConvTranspose_0"]["bias"])  # fmt: skip


def test_metrics_are_numbers_that_hang_together(evaluation):
    metrics = json.loads(json.dumps(evaluation.metrics))
    assert metrics["left_out"] == {}
    assert all(isinstance(value, str) or math.isfinite(value) for value in tables.flatten(metrics).values())
    for split, num in (("valid", 60), ("test", 90)):
        rates = metrics["rates"][split]
        assert rates["num_images"] == metrics["information"][split]["num_images"] == num
        assert rates["negative_elbo_nats"] == pytest.approx(
            rates["distortion_nats"] + sum(rates["rates_nats"]), rel=1e-6
        )
        # Every image is there once: the entropy of so many different images.
        entropy = metrics["reconstruction"][split]["empirical_data_entropy_nats"]
        assert entropy == pytest.approx(math.log(num), abs=0.1)
        generated = metrics["generation"][split]["draws"]
        product = generated["diversity"] * generated["sharpness"]
        assert 1 <= generated["inception_score_classifier"] <= 3
        assert generated["inception_score_classifier"] == pytest.approx(product, rel=0.05)
    assert [len(layer["samples"]) for layer in metrics["representation"]["layers"]] == [5, 5]
    assert bound_checks.violations(metrics) == []


def test_reconstruction_from_all_layers_is_the_models_own(restored, evaluation):
    built, params = restored
    x = built.dataset.test.images[data.spread(built.dataset.test.labels, 10)] > 127
    expected = built.model.apply(params, x.astype(np.float32), method="reconstruct")
    found = evaluation.pictures["reconstructions"][0] / 255
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=0.5 / 255 + 1e-5)
    np.testing.assert_array_equal(evaluation.pictures["images"], 255 * x)


def test_neither_labels_nor_images_of_the_test_split_choose_anything(restored, judge, evaluation):
    """Another test split, marked in every pixel and label, changes no choice and no validation number."""
    dataset = restored[0].dataset
    marked = Split(255 - dataset.test.images, (dataset.test.labels + 1) % 3)
    other = evaluate(restored, judge, dataset._replace(test=marked)).metrics
    before, after = (tables.flatten(metrics) for metrics in (evaluation.metrics, other))
    chosen = [
        name
        for name in before
        if "valid" in name or ".chosen" in name or ".setting" in name or name == "representation.layers"
    ]
    assert len(chosen) > 50
    assert {name: before[name] for name in chosen} == {name: after[name] for name in chosen}
    changed = [name for name in before if before[name] != after[name]]
    assert {"representation.layers.1.means.knn.test_accuracy", "rates.test.distortion_nats"} <= set(changed)


def write(folder, found):
    """All that the program writes of one model, from its numbers: none of it may need what is not there."""
    folder.mkdir()
    config = digits.get_config().to_dict()
    config["model"]["latent_shapes"] = ((2, 2, 2), (3,))
    records.write_json(folder / "config.json", config)
    results.save(folder, found, {})
    models = [results.load(folder, is_grid=False)]
    bounds = evaluate_outputs.write(folder, models, guidance.make_guidance(models))
    assert bounds["violations"] == []
    names = {"evaluation.csv", "guidance.json", "guidance.md", "bounds.json", "report.html", "figures"}
    assert names <= {entry.name for entry in folder.iterdir()}
    assert tables.read_table(folder / "evaluation.csv")[0].rates().shape == (2,)
    return (folder / "guidance.md").read_text(), {file.stem for file in (folder / "figures").glob("*.png")}


def without_labels(dataset):
    return dataset._replace(**{n: Split(s.images, 0 * s.labels) for n, s in splits(dataset).items()})


def splits(dataset):
    return {"train": dataset.train, "valid": dataset.valid, "test": dataset.test}


def test_what_a_sorted_file_holds_is_scored_as_when_it_is_shuffled(restored, judge, evaluation):
    """Half of the test split is scored: of images sorted by class, the first half lacks a class."""
    sizes = dataclasses.replace(SIZES, max_scored_images=50)
    dataset, found = restored[0].dataset, {}
    for name, order in (
        ("sorted", np.argsort(dataset.test.labels, kind="stable")),
        ("shuffled", np.random.default_rng(1).permutation(90)),
    ):
        test = Split(*(rows[order] for rows in dataset.test))
        found[name] = evaluate(restored, judge, dataset._replace(test=test), sizes)
        info = found[name].metrics["information"]["test"]["scored"]
        # A draw of 50 from 30 of each of three classes.
        assert info["num_images"] == sum(info["label_histogram"]) == 50
        deviation = math.sqrt(50 * (1 / 3) * (2 / 3) * (90 - 50) / 89)
        assert np.abs(np.asarray(info["label_histogram"]) - 50 / 3).max() < 5 * deviation
        # Pictures show every class, by class, in turn.
        labels = test.labels[data.spread(test.labels, 10)]
        assert sorted(np.bincount(labels)) == [3, 3, 4]
        images = 255 * (test.images[data.spread(test.labels, 10)] > 127)
        np.testing.assert_array_equal(found[name].pictures["images"], images)
        # Points of latents are of all images here, 90 being fewer than there may be.
        np.testing.assert_array_equal(found[name].pictures["latent_labels"], test.labels)
    first, second = (found[name].metrics for name in ("sorted", "shuffled"))
    for a, b in zip(first["representation"]["layers"], second["representation"]["layers"], strict=True):
        for kind in representation.KINDS:
            scores = [layer["samples"][kind] for layer in (a, b)]
            difference = scores[0]["test_accuracy"] - scores[1]["test_accuracy"]
            error = math.hypot(*(score["test_accuracy_standard_error"] for score in scores))
            assert abs(difference) < 5 * error
    infos = [metrics["information"]["test"]["scored"] for metrics in (first, second)]
    for name in ("label_information_nats", "image_information_nats"):
        error = math.hypot(*(info[f"{name}_standard_error"] for info in infos))
        assert abs(infos[0][name] - infos[1][name]) < 5 * error
    bounds_found = [info["max_accuracy_by_information"] for info in infos]
    assert bounds_found[0] == pytest.approx(bounds_found[1], abs=0.15)
    # Only what is scored differs: the whole split is one population in any order.
    assert first["information"]["test"]["label_histogram"] == [30, 30, 30]


def test_scored_information_is_that_of_the_scored_images_alone(restored, judge, evaluation):
    info = evaluation.metrics["information"]["test"]
    built, params = restored
    evaluator = ModelEvaluator(built.model, built.dataset, built.preprocess_fn, judge, SIZES, True)
    found = evaluator._measure(params, jax.random.fold_in(make_key(0), 0))["test"]
    places = data.subset(90, 80)
    samples, labels = found["samples"][-1][:, places], built.dataset.test.labels[places]
    expected = information.estimate(found["means"][-1][places], found["top_std"][places], samples, labels)
    assert info["scored"]["label_information_nats"] == expected.label
    assert info["scored"]["label_histogram"] == np.bincount(labels).tolist()
    assert info["scored"]["top_rate_nats"] == pytest.approx(
        found["terms"].rates[places, -1].mean(dtype=np.float64)
    )
    assert info["label_information_nats"] != expected.label


def test_samples_of_discrete_pixels_are_draws_and_of_others_means(restored, judge, evaluation):
    assert set(np.unique(evaluation.pictures["samples"])) == {0, 255}
    assert evaluation.metrics["generation"]["test"].keys() == {"draws"}
    built, params = restored
    evaluator = ModelEvaluator(built.model, built.dataset, built.preprocess_fn, judge, SIZES, False)
    images, _, probs = evaluator._sample_fn(params, judge.params, jax.random.key(0))
    assert evaluator.pixels == "means"
    assert len(np.unique(images)) > 100
    # A draw's mean is the mean: over 300 images, within five standard errors of each pixel's.
    drawing = ModelEvaluator(built.model, built.dataset, built.preprocess_fn, judge, SIZES, True)
    draws = np.asarray(drawing._sample_fn(params, judge.params, jax.random.key(0))[0])
    images = np.asarray(images)
    error = np.sqrt((images * (1 - images)).sum(axis=0)) / len(images)
    assert (np.abs(draws.mean(axis=0) - images.mean(axis=0)) < 5 * error + 1e-6).all()
    assert probs.shape == (300, 3)


def test_streamed_data_give_the_same_numbers(restored, judge, evaluation):
    dataset = restored[0].dataset
    streamed = dataset._replace(
        **{name: Split(HostArray(s.images), HostArray(s.labels)) for name, s in splits(dataset).items()}
    )
    found = evaluate(restored, judge, streamed)
    assert found.metrics == evaluation.metrics
    jax.tree.map(np.testing.assert_array_equal, found.pictures, evaluation.pictures)


def test_huge_labels_are_numbered(restored, judge, evaluation):
    dataset, ids = restored[0].dataset, np.asarray([5, 70_000, 1_000_000], np.int32)
    renamed = dataset._replace(**{n: Split(s.images, ids[s.labels]) for n, s in splits(dataset).items()})
    found = evaluate(restored, judge, renamed)
    assert found.metrics == evaluation.metrics
    assert set(found.pictures["latent_labels"]) == set(ids)


def test_without_labels_the_rest_is_evaluated_and_what_lacks_is_named(restored, evaluation, tmp_path):
    dataset = restored[0].dataset
    whole_evaluation = evaluate(restored, None, without_labels(dataset))
    found = whole_evaluation.metrics
    assert json.loads(json.dumps(found)) == found
    assert found["rates"] == evaluation.metrics["rates"]
    whole, judged = (m["reconstruction"]["test"]["from_layer"][0] for m in (found, evaluation.metrics))
    assert whole == {name: judged[name] for name in whole}
    assert whole.keys() == {"psnr_db", "psnr_db_standard_error", "ssim", "ssim_standard_error"}
    info = found["information"]["test"]
    assert (
        info["image_information_nats"] == evaluation.metrics["information"]["test"]["image_information_nats"]
    )
    assert "label_information_nats" not in info
    draws = found["generation"]["test"]["draws"]
    assert draws["median_distance_to_training"] > 0
    assert "inception_score_classifier" not in draws
    assert found["applications"]["test"].keys() == {"reconstruction"}
    assert found["left_out"]["applications.representation"].startswith("the training split has no labels")
    assert {kind: e["num_checked"] for kind, e in bound_checks.worth([found]).items()} == {"distortion": 1}
    text, figures = write(tmp_path / "run", whole_evaluation)
    assert "- generation: the training split has no labels of two or more classes" in text
    assert figures == {"distortion_by_rate", "pictures_reconstruction", "latents_reconstruction"}


def test_without_a_validation_split_nothing_is_chosen(restored, judge, evaluation, tmp_path):
    dataset = restored[0].dataset
    empty = Split(dataset.valid.images[:0], dataset.valid.labels[:0])
    whole_evaluation = evaluate(restored, judge, dataset._replace(valid=empty))
    found = whole_evaluation.metrics
    for group in ("rates", "reconstruction", "information", "generation", "applications"):
        assert found[group].keys() == {"test"}
    # Places in the one array of images, and so the draws, are others than with a validation split.
    assert found["rates"]["test"]["negative_elbo_nats"] == pytest.approx(
        evaluation.metrics["rates"]["test"]["negative_elbo_nats"], rel=0.2
    )
    assert "samples" not in found["representation"]["layers"][0]
    for application in guidance.APPLICATIONS:
        assert found["left_out"][f"applications.{application}"].startswith("config.data.num_valid=0")
    text, figures = write(tmp_path / "run", whole_evaluation)
    assert "- reconstruction: config.data.num_valid=0" in text
    assert figures == {"distortion_by_rate", "pictures_model", "latents_model"}


def test_a_handful_of_images_is_evaluated_as_far_as_they_go(restored, judge, tmp_path):
    dataset = restored[0].dataset
    few = dataset._replace(
        train=Split(*(rows[:4] for rows in dataset.train)),
        valid=Split(*(rows[:3] for rows in dataset.valid)),
        test=Split(*(rows[:3] for rows in dataset.test)),
    )
    whole_evaluation = evaluate(restored, judge, few)
    found = whole_evaluation.metrics
    flat = tables.flatten({name: value for name, value in found.items() if name != "left_out"})
    assert all(isinstance(value, str) or math.isfinite(value) for value in flat.values())
    layer = found["representation"]["layers"][-1]
    assert {"logistic_regression", "linear_svm", "rbf_svm"} <= layer["samples"].keys()
    assert "knn" not in layer["samples"]
    assert found["left_out"] == {
        "representation.layers.*.*.knn": "too few training images for it",
        **{
            f"generation.{split}.draws.{name}_classifier": f"the {split} split has fewer than 4 images"
            for split in ("valid", "test")
            for name in ("precision", "recall")
        },
    }
    assert found["applications"]["test"].keys() == guidance.APPLICATIONS.keys()
    text, figures = write(tmp_path / "run", whole_evaluation)
    assert "There is one choice of betas here" in text
    assert {"accuracy_by_information", "pictures_generation", "latents_representation"} <= figures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_draws": True}, "--num_draws=True must be an integer"),
        ({"num_draws": 0}, "--num_draws=0 must be at least 1"),
        ({"num_samples": -5}, "--num_samples=-5 must be at least 6"),
        ({"max_scored_images": -1}, "--max_scored_images=-1 must be at least 50"),
    ],
)
def test_sizes_that_make_no_sense_are_one_line(change, words):
    with pytest.raises(RunError) as caught:
        dataclasses.replace(SIZES, **change)
    assert str(caught.value) == words


def test_sizes_beyond_the_memory_are_refused_before_any_work():
    most = {"num_images": 500, "num_dims": 64, "num_latents": 11, "num_features": 64, "available": 2**30}
    SIZES.check_memory(**most)
    with pytest.raises(RunError, match=r"--num_samples=1000000000 needs about 1,430\.6 GiB of memory"):
        dataclasses.replace(SIZES, num_samples=10**9).check_memory(**most)
    with pytest.raises(RunError, match=r"--num_draws=1000000 needs .* this machine has 1\.0 GiB; ask for at"):
        dataclasses.replace(SIZES, num_draws=10**6).check_memory(**most)
