import json
import math

import numpy as np
import pytest
import small_grid

from hvae_jax import experiment
from hvae_jax.data import Split
from hvae_jax.errors import RunError
from hvae_jax.evaluation import bound_checks, classifier, results
from hvae_jax.evaluation.applications import ModelEvaluator, Sizes

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


def evaluate(restored, judge, dataset):
    built, params = restored
    evaluator = ModelEvaluator(built.model, dataset, built.preprocess_fn, judge, SIZES, is_discrete=True)
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
    assert all(isinstance(value, str) or math.isfinite(value) for value in results.flatten(metrics).values())
    for split, num in (("valid", 60), ("test", 90)):
        rates = metrics["rates"][split]
        assert rates["num_images"] == metrics["information"][split]["num_images"] == num
        assert rates["negative_elbo_nats"] == pytest.approx(
            rates["distortion_nats"] + sum(rates["rates_nats"]), rel=1e-6
        )
        # Every image is there once: the entropy of so many different images.
        entropy = metrics["reconstruction"][split]["empirical_data_entropy_nats"]
        assert entropy == pytest.approx(math.log(num), abs=0.1)
        generated = metrics["generation"][split]
        product = generated["diversity"] * generated["sharpness"]
        assert 1 <= generated["inception_score_classifier"] <= 3
        assert generated["inception_score_classifier"] == pytest.approx(product, rel=0.05)
    assert [len(layer["samples"]) for layer in metrics["representation"]["layers"]] == [5, 5]
    assert bound_checks.violations(metrics) == []


def test_reconstruction_from_all_layers_is_the_models_own(restored, evaluation):
    built, params = restored
    x = built.dataset.test.images[:10] > 127
    expected = built.model.apply(params, x.astype(np.float32), method="reconstruct")
    found = evaluation.pictures["reconstructions"][0] / 255
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=0.5 / 255 + 1e-5)
    np.testing.assert_array_equal(evaluation.pictures["images"], 255 * x)


def test_neither_labels_nor_images_of_the_test_split_choose_anything(restored, judge, evaluation):
    """Another test split, marked in every pixel and label, changes no choice and no validation number."""
    dataset = restored[0].dataset
    marked = Split(255 - dataset.test.images, (dataset.test.labels + 1) % 3)
    other = evaluate(restored, judge, dataset._replace(test=marked)).metrics
    before, after = (results.flatten(metrics) for metrics in (evaluation.metrics, other))
    chosen = [
        name
        for name in before
        if "valid" in name or ".chosen" in name or ".setting" in name or name == "representation.layers"
    ]
    assert len(chosen) > 50
    assert {name: before[name] for name in chosen} == {name: after[name] for name in chosen}
    changed = [name for name in before if before[name] != after[name]]
    assert {"representation.layers.1.means.knn.test_accuracy", "rates.test.distortion_nats"} <= set(changed)


def test_without_a_validation_split_nothing_could_be_chosen(restored, judge):
    dataset = restored[0].dataset
    empty = Split(dataset.valid.images[:0], dataset.valid.labels[:0])
    with pytest.raises(RunError, match=r"config\.data\.num_valid=0"):
        evaluate(restored, judge, dataset._replace(valid=empty))
