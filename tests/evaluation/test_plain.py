"""Sections as files hold them: of this version, of 0.1.0, damaged, and of a version that is to come."""

import json
import pathlib

import pytest
from small_metrics import make_metrics

from hvae_jax.errors import RunError
from hvae_jax.evaluation import metrics, plain
from hvae_jax.evaluation.metrics import Rates, Reached, RunEvaluation, TargetReport
from hvae_jax.evaluation.plain import Estimate, Estimates

TESTS = pathlib.Path(__file__).parents[1]


def test_an_evaluation_of_0_1_0_is_read_and_written_as_it_was():
    text = (TESTS / "run_0_1_0" / "evaluation.json").read_text()
    found = plain.from_plain(RunEvaluation, json.loads(text), "evaluation.json")
    assert json.dumps(plain.to_plain(found), indent=2) + "\n" == text
    assert (found.step, found.status, found.targets, found.valid) == (8, None, None, None)
    assert found.test
    assert found.test.bound
    assert (found.test.num_images, found.test.bound.num_importance_samples) == (360, 5)


def test_what_stands_in_line_keeps_its_names_and_its_place():
    reached = Reached(rates_nats=Estimates((1.0, 2.0), (0.1, 0.2)), distortion_nats=Estimate(3.0, 0.3))
    report = TargetReport(
        targets_nats=(1.0, None),
        target_status=("reached", "free"),
        betas=(1.0, 2.0),
        beta_bounds=((0.1, 10.0), (2.0, 2.0)),
        train=reached,
        test=reached,
    )
    evaluation = RunEvaluation(step=3, status="ok", targets=report)
    written = json.loads(json.dumps(plain.to_plain(evaluation)))
    of_split = (
        "rates_nats",
        "rates_nats_standard_error",
        "distortion_nats",
        "distortion_nats_standard_error",
    )
    splits = [f"{split}_{name}" for split in ("train", "test") for name in of_split]
    asked = ["targets_nats", "target_status", "betas", "beta_bounds"]
    assert list(written) == ["step", "status", *asked, *splits]
    assert written["test_rates_nats_standard_error"] == [0.1, 0.2]
    assert plain.from_plain(RunEvaluation, written, "evaluation.json") == evaluation
    # What diverged has nothing else.
    diverged = {"step": 3, "status": "diverged"}
    assert plain.to_plain(plain.from_plain(RunEvaluation, diverged, "evaluation.json")) == diverged


def test_a_row_of_a_table_holds_the_same():
    found = make_metrics()
    cells = {name: str(value) for name, value in plain.to_row(found).items()}
    assert cells["information.test.scored.label_histogram.4"] == "50"
    assert metrics.read(plain.nest({**cells, "of.other.models": ""}), "evaluation.csv") == found


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("rates", "test", "nats"), 1.0, "has rates.test.nats, which this version of hvae_jax does not know"),
        (("train",), {}, "has train, which this version of hvae_jax does not know"),
        (
            ("rates", "test", "bits_per_dim"),
            None,
            "has rates.test.bits_per_dim = None, which is of another kind",
        ),
        (("rates", "test", "num_images"), 1.5, "has rates.test.num_images = 1.5, which is of another kind"),
        (("rates", "test", "num_images"), True, "has rates.test.num_images = True, which is of another kind"),
        (("rates", "test", "rates_nats"), [1, "2"], "has rates.test.rates_nats.2 = '2', which is of another"),
        (("representation", "layers"), {}, "has no representation.layers; it is damaged"),
        (("representation",), [], "has representation = [], which is of another kind"),
    ],
)
def test_what_does_not_fit_is_one_line(place, value, words):
    content = plain.to_plain(make_metrics())
    *way, last = place
    entry = content
    for name in way:
        entry = entry[name]
    entry[last] = value
    if words.startswith("has no"):
        del entry[last]
    with pytest.raises(RunError) as caught:
        metrics.read(content, "metrics.json")
    assert str(caught.value).startswith(f"metrics.json {words}")
    assert "\n" not in str(caught.value)


def test_half_of_a_pair_is_no_pair():
    content = plain.to_plain(make_metrics().rates.test)
    del content["distortion_nats_standard_error"]
    with pytest.raises(RunError, match=r"^a file has no distortion_nats_standard_error"):
        plain.from_plain(Rates, content, "a file")
