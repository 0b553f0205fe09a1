import copy
import json
import math
import pathlib

import numpy as np
import pytest

from hvae_jax.evaluation import bound_checks, guidance
from hvae_jax.evaluation.guidance import APPLICATIONS
from hvae_jax.evaluation.representation import KINDS
from hvae_jax.evaluation.results import Evaluated


def model(name, betas, seed, valid, test, error=0.3):
    """An evaluated model with the same value in every application."""
    applications = {
        split: {application: {"value": value, "standard_error": error} for application in APPLICATIONS}
        for split, value in (("valid", valid), ("test", test))
    }
    metrics = {
        "applications": applications,
        "rates": {"test": {"rates_nats": [5.0 / beta for beta in betas]}},
    }
    return Evaluated(name, pathlib.Path(name), betas, seed, metrics)


MODELS = [
    model("0", (0.1, 1.0), 0, valid=10.0, test=9.0),
    model("1", (0.1, 1.0), 1, valid=12.0, test=11.0),
    model("2", (1.0, 1.0), 0, valid=6.0, test=5.0),
    model("3", (1.0, 1.0), 1, valid=6.0, test=5.0),
    model("4", (0.1, 0.1), 0, valid=8.0, test=6.0),
    model("5", (0.1, 0.1), 1, valid=9.0, test=7.0),
    model("6", (3.0, 1.0), 0, valid=10.5, test=99.0),
]


def test_the_best_by_validation_is_reported_with_its_test_score_and_error():
    made = guidance.make_guidance(MODELS)["applications"]["generation"]
    best, equal = made["best"], made["equal_betas"]
    # Not (3, 1), although its test score is the highest: its validation score, 10.5, is not.
    assert (best["betas"], best["valid"], best["test"], best["seeds"]) == ([0.1, 1.0], 11.0, 10.0, [0, 1])
    # Two seeds at 9 and 11: a variance of 2, halved by the mean; and 0.3 within each model.
    assert best["test_standard_error"] == pytest.approx(math.sqrt(2 / 2 + 0.3**2))
    assert equal["betas"] == [0.1, 0.1]
    assert equal["difference"] == 3.5
    error = math.hypot(best["test_standard_error"], math.sqrt(0.5 / 2 + 0.3**2))
    assert equal["num_standard_errors"] == pytest.approx(3.5 / error)
    assert made["unit_betas"]["difference"] == 5.0
    assert made["baseline"] is None


def test_the_table_is_recomputed_from_the_json():
    baseline = [model("b", (0.5,), 0, valid=7.0, test=8.0), model("c", (2.0,), 0, valid=1.0, test=99.0)]
    made = guidance.make_guidance(MODELS, baseline)
    text = guidance.to_markdown(made)
    assert guidance.to_markdown(json.loads(json.dumps(made))) == text
    assert "| **best** | 0.1, 1 | 50.00, 5.00 | 2 | 11.00 | 10.00 ± 1.04 |  |" in text
    assert "| one layer (β-VAE) | 0.5 | 10.00 | 1 | 7.00 | 8.00 ± 0.30 | 2.000 ± 1.086 (1.8) |" in text
    assert "Independent betas won, by 2.9 standard errors" in text


def test_an_application_that_follows_one_rate_is_explained_by_it_alone():
    # Its value is a rising function of R_2, and R_1 is drawn apart from it.
    drawn = np.random.default_rng(0).uniform(0.1, 10.0, (400, 2))
    models = [
        model(str(i), (5.0 / rate_1, 5.0 / rate_2), 0, valid=0.0, test=math.tanh(rate_2 / 5))
        for i, (rate_1, rate_2) in enumerate(drawn)
    ]
    found = guidance.explained_by_rates(models, "representation")
    assert found["rate_2"] == {"share": pytest.approx(1.0), "rises": True}
    assert found["rate_1"]["share"] < 10 * math.log(400) / 400
    assert 0.2 < found["total_rate"]["share"] < 0.8
    # Falling as well as rising, and not only linearly.
    falling = [model(m.name, m.betas, 0, valid=0.0, test=math.exp(-m.rates().sum())) for m in models]
    found = guidance.explained_by_rates(falling, "representation")
    assert found["total_rate"] == {"share": pytest.approx(1.0), "rises": False}


def test_models_that_score_the_same_are_explained_by_nothing():
    found = guidance.explained_by_rates(MODELS[2:4], "generation")
    assert {entry["share"] for entry in found.values()} == {None}
    text = guidance.to_markdown(guidance.make_guidance(MODELS[2:4]))
    assert "explains: the total rate nothing (rising), R_1 nothing (rising), R_2 nothing (rising)." in text


def test_a_model_of_the_baseline_is_another_though_it_has_the_same_name():
    models = [model("0000", (0.1, 0.1), 0, valid=5.0, test=5.0), model("0001", (1.0, 0.1), 0, 3.0, 3.0)]
    rival = guidance.make_guidance(models, [model("0000", (0.1,), 0, valid=2.0, test=2.0)])
    rival = rival["applications"]["generation"]["baseline"]
    assert (rival["is_best"], rival["difference"]) == (False, 3.0)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ([(0.1, 1.0, 5.0, 5.1), (1.0, 1.0, 4.0, 5.0)], "No clear difference"),
        ([(0.1, 1.0, 5.0, 2.0), (1.0, 1.0, 4.0, 5.0)], "lost on the test split, by 7.1 standard errors"),
        ([(0.1, 1.0, 5.0, 9.0), (1.0, 1.0, 4.0, 5.0)], "Independent betas won, by 9.4"),
        ([(0.1, 1.0, 3.0, 9.0), (1.0, 1.0, 4.0, 5.0)], "did not win"),
        ([(0.1, 1.0, 3.0, 9.0), (1.0, 2.0, 4.0, 5.0)], "No model has equal betas"),
    ],
)
def test_the_statement_follows_the_numbers(chosen, sentence):
    models = [
        model(str(n), betas, 0, valid, test) for n, (*betas, valid, test) in enumerate(map(list, chosen))
    ]
    models = [m._replace(betas=tuple(m.betas)) for m in models]
    assert sentence in guidance.to_markdown(guidance.make_guidance(models))


def metrics(label_information, top_rate, accuracy, lower_accuracy=0.1):
    def layer(number, value):
        scores = {kind: {"test_accuracy": value, "test_accuracy_standard_error": 0.01} for kind in KINDS}
        return {"layer": number, "samples": scores}

    return {
        "information": {
            "test": {
                "label_histogram": [50, 50, 50, 50],
                "label_information_nats": label_information,
                "label_information_nats_standard_error": 0.01,
                "top_rate_nats": top_rate,
                "max_accuracy_by_rates": [0.6, 0.9],
            }
        },
        "representation": {"layers": [layer(1, lower_accuracy), layer(2, accuracy)]},
        "reconstruction": {"test": {"min_distortion_nats": 4.0}},
        "rates": {"test": {"distortion_nats": 5.0, "distortion_nats_standard_error": 0.1}},
    }


def test_each_bound_is_seen_to_be_broken():
    assert bound_checks.violations(metrics(0.5, 0.6, 0.5)) == []
    (information,) = bound_checks.violations(metrics(0.7, 0.6, 0.5))
    assert "0.7000 ± 0.0100 nats is above R_L = 0.6000" in information
    found = bound_checks.violations(metrics(0.3, 0.6, 0.75))
    assert len(found) == len(KINDS)
    assert "samples of z_2" in found[0]
    found = bound_checks.violations(metrics(0.5, 0.6, 0.5, lower_accuracy=0.7))
    assert "f⁻¹(R_1 + … + R_L) = 0.6" in found[0]
    broken = copy.deepcopy(metrics(0.5, 0.6, 0.5))
    broken["reconstruction"]["test"]["min_distortion_nats"] = 6.0
    assert "D = 5.0000" in bound_checks.violations(broken)[0]


def test_sampling_error_is_no_violation_but_is_counted_without_it():
    within = metrics(0.64, 0.6, 0.5)
    assert bound_checks.violations(within) == []
    assert len(bound_checks.violations(within, num_standard_errors=0.0)) == 1
