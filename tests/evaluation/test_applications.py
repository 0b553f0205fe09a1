import dataclasses
import functools
import json
import math
import pathlib

import drawn
import jax
import numpy as np
import pytest
import small_grid
from small_metrics import there

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
    metrics,
    plain,
    representation,
    results,
    tables,
)
from hvae_jax.evaluation.applications import ModelEvaluator
from hvae_jax.evaluation.metrics import SampleScores
from hvae_jax.evaluation.settings import Settings
from hvae_jax.evaluation.sizes import Sizes

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
    training = classifier.ClassifierTraining("convnet", 16, 5, 40, 3e-3, 1e-4, 0)
    folder = tmp_path_factory.mktemp("classifier")
    return classifier.load_or_train(
        folder, built.dataset, built.preprocess_fn, training, {}, report=lambda _: None
    )


def evaluate(restored, judge, dataset, sizes=SIZES):
    built, params = restored
    evaluator = ModelEvaluator(built.model, dataset, built.preprocess_fn, judge, sizes, is_discrete=True)
    return evaluator.evaluate(params, seed=0)


@pytest.fixture(scope="module")
def drawing(restored, judge):
    built, _ = restored
    return ModelEvaluator(built.model, built.dataset, built.preprocess_fn, judge, SIZES, is_discrete=True)


@pytest.fixture(scope="module")
def evaluation(restored, drawing):
    return drawing.evaluate(restored[1], seed=0)


def test_a_folder_gives_back_what_it_was_made_from(restored):
    built, params = restored
    assert built.model.config.latent_shapes == ((2, 2, 2), (3,))
    assert built.objective.betas == (1.0, 1.0)
    fresh = built.init_params(0)
    np.testing.assert_allclose(params["params"]["decoder"]["ConvTranspose_0"]["bias"],
        2.5 * fresh["params"]["decoder"]["ConvTranspose_0"]["bias"])  # fmt: skip


def test_metrics_are_numbers_that_hang_together(evaluation):
    found = evaluation.metrics
    written = json.loads(json.dumps(plain.to_plain(found)))
    assert metrics.read(written, "metrics.json") == found
    assert found.left_out == {}
    assert all(isinstance(value, str) or math.isfinite(value) for value in plain.flatten(written).values())
    for split, num in (("valid", 60), ("test", 90)):
        rates = getattr(found.rates, split)
        assert rates.num_images == getattr(found.information, split).whole.num_images == num
        assert rates.negative_elbo_nats.value == pytest.approx(
            rates.distortion_nats.value + sum(rates.rates_nats.value), rel=1e-6
        )
        # Every image is there once: the entropy of so many different images.
        entropy = getattr(found.reconstruction, split).entropy.empirical_data_entropy_nats
        assert entropy == pytest.approx(math.log(num), abs=0.1)
        generated = getattr(found.generation, split).draws.judged
        assert 1 <= generated.inception_score_classifier.value <= 3
        product = generated.diversity * generated.sharpness
        assert generated.inception_score_classifier.value == pytest.approx(product, rel=0.05)
    assert [len(dict(layer.samples.kinds())) for layer in found.representation.layers] == [4, 4]
    assert bound_checks.violations(found) == []


def test_an_error_that_is_not_known_is_not_called_0(evaluation):
    """The validation accuracy of a probe that was tuned on it has no error."""
    valid, test = (
        plain.to_plain(split)
        for split in (evaluation.metrics.applications.valid, evaluation.metrics.applications.test)
    )
    assert valid["representation"].keys() == {"value"}
    errors = [
        score.get("standard_error")
        for score in (valid["reconstruction"], valid["generation"], *test.values())
    ]
    assert all(error > 0 for error in errors)


def test_reconstruction_from_all_layers_is_the_models_own(restored, evaluation):
    built, params = restored
    x = built.dataset.test.images[data.spread(built.dataset.test.labels, 10)] > 127
    reconstruct = jax.jit(functools.partial(built.model.apply, method="reconstruct"))
    expected = reconstruct(params, x.astype(np.float32))
    found = evaluation.pictures["reconstructions"][0] / 255
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=0.5 / 255 + 1e-5)
    np.testing.assert_array_equal(evaluation.pictures["images"], 255 * x)


def test_neither_labels_nor_images_of_the_test_split_choose_anything(restored, judge, evaluation):
    """Another test split, marked in every pixel and label, changes no choice and no validation number."""
    dataset = restored[0].dataset
    marked = Split(255 - dataset.test.images, (dataset.test.labels + 1) % 3)
    other = evaluate(restored, judge, dataset._replace(test=marked)).metrics
    before, after = (plain.to_row(found) for found in (evaluation.metrics, other))
    chosen = [
        name
        for name in before
        if "valid" in name or ".chosen" in name or ".setting" in name or name == "representation.layers"
    ]
    assert len(chosen) > 50
    assert {name: before[name] for name in chosen} == {name: after[name] for name in chosen}
    changed = [name for name in before if before[name] != after[name]]
    assert {"representation.layers.1.means.knn.test_accuracy", "rates.test.distortion_nats"} <= set(changed)


def write(folder, found, monkeypatch):
    """All that the program writes of one model, from its numbers: none of it may need what is not there."""
    folder.mkdir()
    kept = drawn.keep_figures(monkeypatch)
    config = digits.get_config().to_dict()
    config["model"]["latent_shapes"] = ((2, 2, 2), (3,))
    records.write_json(folder / "config.json", config)
    results.save(folder, found, Settings(None, SIZES, {}, None, "", 0, None))
    models = [results.load(folder, is_grid=False)]
    stale = folder / "figures" / "pictures_reconstruction.png"  # of an older version
    stale.parent.mkdir()
    stale.touch()
    bounds = evaluate_outputs.write(
        folder, models, guidance.make_guidance([model.scored for model in models])
    )
    assert bounds.violations == ()
    names = {"evaluation.csv", "guidance.json", "guidance.md", "bounds.json", "report.html", "figures"}
    assert names <= {entry.name for entry in folder.iterdir()}
    assert not stale.exists()
    assert len(tables.read_table(folder / "evaluation.csv")[0].rates_nats) == 2
    return (folder / "guidance.md").read_text(), {pathlib.Path(name).stem for name in kept}


def without_labels(dataset):
    return dataset._replace(**{n: Split(s.images, 0 * s.labels) for n, s in splits(dataset).items()})


def splits(dataset):
    return {"train": dataset.train, "valid": dataset.valid, "test": dataset.test}


@pytest.mark.long
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
        info = found[name].metrics.information.test.scored
        # A draw of 50 from 30 of each of three classes.
        assert info.num_images == sum(info.label.label_histogram) == 50
        deviation = math.sqrt(50 * (1 / 3) * (2 / 3) * (90 - 50) / 89)
        assert np.abs(np.asarray(info.label.label_histogram) - 50 / 3).max() < 5 * deviation
        # Pictures show every class, by class, in turn.
        labels = test.labels[data.spread(test.labels, 10)]
        assert sorted(np.bincount(labels)) == [3, 3, 4]
        images = 255 * (test.images[data.spread(test.labels, 10)] > 127)
        np.testing.assert_array_equal(found[name].pictures["images"], images)
        # Points of latents are of all images here, 90 being fewer than there may be.
        np.testing.assert_array_equal(found[name].pictures["latent_labels"], test.labels)
    first, second = (found[name].metrics for name in ("sorted", "shuffled"))
    infos = [of_order.information.test.scored for of_order in (first, second)]
    pairs = [
        tuple(info.label.label_information_nats for info in infos),
        tuple(info.image_information_nats for info in infos),
    ]
    for a, b in zip(first.representation.layers, second.representation.layers, strict=True):
        for (_, one), (_, other) in zip(a.samples.kinds(), b.samples.kinds(), strict=True):
            pairs.append((one.test_accuracy, other.test_accuracy))
    assert len(pairs) == 2 + 2 * len(representation.KINDS)
    for one, other in pairs:
        assert abs(one.value - other.value) < 5 * math.hypot(one.standard_error, other.standard_error)
    bounds_found = [info.label.max_accuracy_by_information for info in infos]
    assert bounds_found[0] == pytest.approx(bounds_found[1], abs=0.15)
    # Only what is scored differs: the whole split is one population in any order.
    assert first.information.test.whole.label.label_histogram == (30, 30, 30)


def test_scored_information_is_that_of_the_scored_images_alone(restored, drawing, evaluation):
    info = evaluation.metrics.information.test
    built, params = restored
    found = drawing.measure([params], 0)[0]["test"]
    places = data.subset(90, 80)
    samples, labels = np.moveaxis(found.top.samples[places], 1, 0), built.dataset.test.labels[places]
    expected = information.estimate(found.top.mean[places], found.top.std[places], samples, labels)
    label = info.scored.label
    assert label.label_information_nats == (expected.label, expected.label_standard_error)
    assert label.label_histogram == tuple(np.bincount(labels))
    assert info.scored.top_rate_nats == pytest.approx(found.terms.rates[places, -1].mean(dtype=np.float64))
    assert info.whole.label.label_information_nats.value != expected.label


def test_samples_of_discrete_pixels_are_draws_and_of_others_means(restored, judge, drawing, evaluation):
    assert set(np.unique(evaluation.pictures["samples"])) == {0, 255}
    assert evaluation.metrics.generation.test.pixels == "draws"
    assert evaluation.metrics.generation.test.means is None
    built, params = restored
    evaluator = ModelEvaluator(built.model, built.dataset, built.preprocess_fn, judge, SIZES, False)
    ((images, (_, probs)),) = evaluator.draw([params], 0, "test")
    assert evaluator.pixels == "means"
    assert len(np.unique(images)) > 100
    # A draw's mean is the mean: over 300 images, within five standard errors of each pixel's.
    draws = drawing.draw([params], 0, "test")[0].images
    error = np.sqrt((images * (1 - images)).sum(axis=0)) / len(images)
    assert (np.abs(draws.mean(axis=0) - images.mean(axis=0)) < 5 * error + 1e-6).all()
    assert probs.shape == (300, 3)


def test_streamed_data_and_huge_labels_give_the_same_numbers(restored, judge, evaluation):
    dataset, ids = restored[0].dataset, np.asarray([5, 70_000, 1_000_000], np.int32)
    other = dataset._replace(
        **{n: Split(HostArray(s.images), HostArray(ids[s.labels])) for n, s in splits(dataset).items()}
    )
    found = evaluate(restored, judge, other)
    assert found.metrics == evaluation.metrics
    np.testing.assert_array_equal(found.pictures["latent_labels"], ids[evaluation.pictures["latent_labels"]])
    jax.tree.map(
        np.testing.assert_array_equal, *({**e.pictures, "latent_labels": 0} for e in (found, evaluation))
    )


@pytest.mark.long
def test_without_labels_the_rest_is_evaluated_and_what_lacks_is_named(
    restored, evaluation, tmp_path, monkeypatch
):
    dataset = restored[0].dataset
    whole_evaluation = evaluate(restored, None, without_labels(dataset))
    found = whole_evaluation.metrics
    assert found.rates == evaluation.metrics.rates
    whole, judged = (m.reconstruction.test.from_layer[0] for m in (found, evaluation.metrics))
    assert judged.judged is not None
    assert whole == dataclasses.replace(judged, judged=None)
    info, labelled = found.information.test.whole, evaluation.metrics.information.test.whole
    assert info.image_information_nats == labelled.image_information_nats
    assert info.label is None
    draws = found.generation.test.draws
    assert there(there(draws).memorisation).median_distance_to_training > 0
    assert draws == SampleScores(num_samples=300, memorisation=there(draws).memorisation)
    assert [name for name, _ in found.applications.test.items()] == ["reconstruction"]
    assert found.left_out["applications.representation"].startswith("the training split has no labels")
    assert {kind: e.num_checked for kind, e in bound_checks.worth([found]).items()} == {"distortion": 1}
    text, figures = write(tmp_path / "run", whole_evaluation, monkeypatch)
    assert "- generation: the training split has no labels of two or more classes" in text
    assert figures == {"distortion_by_rate", "pictures_model", "latents_model"}


@pytest.mark.long
def test_without_a_validation_split_nothing_is_chosen(restored, judge, evaluation, tmp_path, monkeypatch):
    dataset = restored[0].dataset
    empty = Split(dataset.valid.images[:0], dataset.valid.labels[:0])
    whole_evaluation = evaluate(restored, judge, dataset._replace(valid=empty))
    found = whole_evaluation.metrics
    for section in (
        found.rates,
        found.reconstruction,
        found.information,
        found.generation,
        found.applications,
    ):
        assert section.valid is None
    # Places in the one array of images, and so the draws, are others than with a validation split.
    elbo, other = (of.rates.test.negative_elbo_nats for of in (found, evaluation.metrics))
    assert elbo.value == pytest.approx(other.value, abs=5 * math.hypot(elbo[1], other[1]))
    assert found.representation.layers[0].samples is None
    for application in guidance.APPLICATIONS:
        assert found.left_out[f"applications.{application}"].startswith("config.data.num_valid=0")
    text, figures = write(tmp_path / "run", whole_evaluation, monkeypatch)
    assert "- reconstruction: config.data.num_valid=0" in text
    assert figures == {"distortion_by_rate", "pictures_model", "latents_model"}


@pytest.mark.long
def test_a_handful_of_images_is_evaluated_as_far_as_they_go(restored, judge, tmp_path, monkeypatch):
    dataset = restored[0].dataset
    few = dataset._replace(
        train=Split(*(rows[:4] for rows in dataset.train)),
        valid=Split(*(rows[:3] for rows in dataset.valid)),
        test=Split(*(rows[:3] for rows in dataset.test)),
    )
    whole_evaluation = evaluate(restored, judge, few)
    found = whole_evaluation.metrics
    flat = plain.to_row(dataclasses.replace(found, left_out={}))
    assert all(isinstance(value, str) or math.isfinite(value) for value in flat.values())
    kinds = dict(there(found.representation.layers[-1].samples).kinds())
    assert kinds.keys() == {"logistic_regression", "linear_svm", "rbf_svm"}
    assert found.left_out == {
        "representation.layers.*.*.knn": "too few training images for it",
        **{
            f"generation.{split}.draws.{name}_classifier": f"the {split} split has fewer than 4 images"
            for split in ("valid", "test")
            for name in ("precision", "recall")
        },
    }
    assert dict(found.applications.test.items()).keys() == guidance.APPLICATIONS.keys()
    text, figures = write(tmp_path / "run", whole_evaluation, monkeypatch)
    assert "There is one choice of betas here" in text
    assert {"accuracy_by_information", "pictures_model", "latents_model"} <= figures


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
    most = {"num_dims": 64, "num_latents": 5500, "num_features": 64, "available": 2**30}
    SIZES.check_memory(**most)
    with pytest.raises(RunError, match=r"--num_samples=1000000000 needs about 715\.3 GiB of memory"):
        dataclasses.replace(SIZES, num_samples=10**9).check_memory(**most)
    with pytest.raises(RunError, match=r"--num_draws=1000000 needs .* this machine has 1\.0 GiB; ask for at"):
        dataclasses.replace(SIZES, num_draws=10**6).check_memory(**most)


@pytest.mark.long
def test_models_side_by_side_are_evaluated_as_each_alone(restored, judge, evaluation):
    built, params = restored
    other = jax.tree.map(lambda a: 0.9 * a, params)
    packed = ModelEvaluator(
        built.model, built.dataset, built.preprocess_fn, judge, SIZES, is_discrete=True, capacity=2
    )
    found = packed.evaluate_all([params, other], seed=0)
    (alone,) = packed.evaluate_all([other], seed=0)  # a last group may be smaller
    for one, expected in ((found[0], evaluation), (found[1], alone)):
        # To a float's rounding: a stack and one model are two programs. Terms of SSIM, of size 1,
        # may cancel.
        numbers, others = (plain.flatten(plain.to_plain(of.metrics)) for of in (one, expected))
        assert numbers == {
            name: pytest.approx(other, rel=1e-6, abs=1e-7 if ".ssim" in name else None)
            if isinstance(other, float)
            else other
            for name, other in others.items()
        }
        for name, pictures in expected.pictures.items():
            np.testing.assert_allclose(one.pictures[name], pictures, rtol=1e-5, atol=1e-5)
    assert found[1].metrics == alone.metrics
    assert found[0].metrics.rates != found[1].metrics.rates
