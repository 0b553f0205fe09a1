import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from small_metrics import make_metrics, make_population, there

from hvae_jax import bounds
from hvae_jax.errors import RunError
from hvae_jax.evaluation import bound_checks, guidance, guidance_text, plain, seeds, tables
from hvae_jax.evaluation.choices import Guidance, KnownSpread, Scored
from hvae_jax.evaluation.guidance import APPLICATIONS
from hvae_jax.evaluation.metrics import Information, PerApplication, PerSplit, Score
from hvae_jax.evaluation.representation import KINDS


def model(name, betas, seed, valid, test, error=0.3):
    """A model with the same value in every application."""
    scores = (PerApplication(**dict.fromkeys(APPLICATIONS, Score(value, error))) for value in (valid, test))
    rates = tuple(5.0 / beta for beta in betas)
    return Scored(name, betas, seed, rates, PerSplit(**dict(zip(("valid", "test"), scores, strict=True))))


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
    made = there(guidance.make_guidance(MODELS).applications.generation)
    best, equal = made.best, there(made.equal_betas)
    # Not (3, 1), although its test score is the highest: its validation score, 10.5, is not.
    assert (best.betas, best.valid, best.test, best.seeds) == ((0.1, 1.0), 11.0, 10.0, (0, 1))
    # Squares of 2, 0 and 0.5 with a degree of freedom each, for all alike; 0.3 within each model.
    variance = (2 + 0 + 0.5) / 3
    assert made.seed_spread == KnownSpread(math.sqrt(variance), 3, "these models")
    assert best.standard_error_of_images_and_draws == pytest.approx(0.3)
    assert best.standard_error_of_seeds == pytest.approx(math.sqrt(variance / 2))
    assert best.test_standard_error == pytest.approx(math.sqrt(variance / 2 + 0.3**2))
    assert equal.betas == (0.1, 0.1)
    assert equal.difference == 3.5
    error = math.sqrt(2) * best.test_standard_error
    assert equal.num_standard_errors == pytest.approx(3.5 / error)
    assert there(made.unit_betas).difference == 5.0
    assert made.baseline is None


def test_the_table_is_recomputed_from_the_json():
    baseline = [model("b", (0.5,), 0, valid=7.0, test=8.0), model("c", (2.0,), 0, valid=1.0, test=99.0)]
    made = guidance.make_guidance(MODELS, baseline)
    text = guidance_text.to_markdown(made)
    assert plain.from_plain(Guidance, json.loads(json.dumps(plain.to_plain(made))), "guidance.json") == made
    # √(2.5 / 3 / 2 + 0.3²), and for the one seed of the baseline √(2.5 / 3 + 0.3²).
    assert "| **best** | 0.1, 1 | 50.00, 5.00 | 2 | 11.00 | 10.00 ± 0.71 |  |" in text
    assert "| one layer (β-VAE) | 0.5 | 10.00 | 1 | 7.00 | 8.00 ± 0.96 | 2.000 ± 1.196 (1.7) |" in text
    assert "Independent betas won, by 3.5 standard errors" in text
    assert "standard deviation over seeds is 0.913, with 3 degrees of freedom" in text


def test_active_units_stand_beside_the_rates_where_they_were_counted():
    text = guidance_text.to_markdown(guidance.make_guidance(MODELS))
    assert "active" not in text
    counts = [(12, 4), (13, 4), (12, 5), None, (8, 8), (8, 8), (9, 1)]
    counted = [model._replace(active_units=units) for model, units in zip(MODELS, counts, strict=True)]
    made = guidance.make_guidance(counted)
    assert plain.from_plain(Guidance, plain.to_plain(made), "guidance.json") == made
    entry = there(made.applications.reconstruction)
    # Means over the seeds of (0.1, 1); of betas of 1, one model was not counted.
    assert (entry.best.active_units, there(entry.unit_betas).active_units) == ((12.5, 4.0), None)
    lines = guidance_text.to_markdown(made).splitlines()
    assert lines[6] == (
        "| choice | betas | rates (nats) | active units | seeds | validation | test | best is ahead by |"
    )
    assert {line.count("|") for line in lines[6:12]} == {9}
    assert "| **best** | 0.1, 1 | 50.00, 5.00 | 12.5, 4 | 2 | 11.00 |" in lines[8]
    assert "| all betas 1 (the ELBO) | 1, 1 | 5.00, 5.00 |  | 2 |" in lines[10]
    many = dataclasses.replace(entry.best, active_units=(10.0,) * 6 + (3.5,))
    assert guidance_text.describe_units(many) == "63.5 in all, 3.5 at the top"


def test_an_application_that_follows_one_rate_is_explained_by_it_alone():
    # Its value is a rising function of R_2, and R_1 is drawn apart from it.
    drawn = np.random.default_rng(0).uniform(0.1, 10.0, (400, 2))
    models = [
        model(str(i), (5.0 / rate_1, 5.0 / rate_2), 0, valid=0.0, test=math.tanh(rate_2 / 5))
        for i, (rate_1, rate_2) in enumerate(drawn)
    ]
    found = guidance.explained_by_rates(models, "representation")
    assert (found["rate_2"].share, found["rate_2"].rises) == (pytest.approx(1.0), True)
    assert there(found["rate_1"].share) < 10 * math.log(400) / 400
    assert 0.2 < there(found["total_rate"].share) < 0.8
    # Falling as well as rising, and not only linearly.
    falling = [model(m.name, m.betas, 0, valid=0.0, test=math.exp(-sum(m.rates_nats))) for m in models]
    found = guidance.explained_by_rates(falling, "representation")
    assert (found["total_rate"].share, found["total_rate"].rises) == (pytest.approx(1.0), False)


def test_models_that_score_the_same_are_explained_by_nothing():
    found = guidance.explained_by_rates(MODELS[2:4], "generation")
    assert {entry.share for entry in found.values()} == {None}
    other = model("9", (3.0, 1.0), 0, valid=5.0, test=5.0)
    text = guidance_text.to_markdown(guidance.make_guidance([*MODELS[2:4], other]))
    assert "explains: the total rate nothing (rising), R_1 nothing (rising), R_2 nothing (rising)." in text


def test_a_model_of_the_baseline_is_another_though_it_has_the_same_name():
    models = [model("0000", (0.1, 0.1), 0, valid=5.0, test=5.0), model("0001", (1.0, 0.1), 0, 3.0, 3.0)]
    rival = guidance.make_guidance(models, [model("0000", (0.1,), 0, valid=2.0, test=2.0)])
    rival = there(there(rival.applications.generation).baseline)
    assert (rival.is_best, rival.difference) == (False, 3.0)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ([(0.1, 1.0, 5.0, 5.1), (1.0, 1.0, 4.0, 5.0)], "No clear difference"),
        ([(0.1, 1.0, 5.0, 2.0), (1.0, 1.0, 4.0, 5.0)], "lost on the test split, by 5.9 standard errors"),
        ([(0.1, 1.0, 5.0, 9.0), (1.0, 1.0, 4.0, 5.0)], "Independent betas won, by 7.8"),
        ([(0.1, 1.0, 3.0, 9.0), (1.0, 1.0, 4.0, 5.0)], "did not win"),
        ([(0.1, 1.0, 3.0, 9.0), (1.0, 2.0, 4.0, 5.0)], "No model has equal betas"),
    ],
)
def test_the_statement_follows_the_numbers(chosen, sentence):
    models = [
        model(str(n), betas, 0, valid, test) for n, (*betas, valid, test) in enumerate(map(list, chosen))
    ]
    models = [m._replace(betas=tuple(m.betas)) for m in models]
    # Others, whose spread over seeds is 0.2: beside 0.3 of the images, a difference has √(2 · 0.13).
    others = [model("a", (9.0, 1.0), 0, 0.0, 1.0), model("b", (9.0, 1.0), 1, 0.0, 1.0 + 0.2 * math.sqrt(2))]
    assert sentence in guidance_text.to_markdown(guidance.make_guidance(models, seeds_from=others))


def test_betas_of_the_same_networks_are_compared_within_them():
    # At (0.1, 1) 2 above (1, 1), give or take 0.1; the third network is 10 above the others at both.
    values = {(1.0, 1.0): (4.0, 5.0, 15.0), (0.1, 1.0): (6.1, 6.9, 17.0)}
    models = [
        model(f"{seed}/{betas}", betas, seed, value, value)._replace(network=f"network {seed}")
        for betas, of_networks in values.items()
        for seed, value in enumerate(of_networks)
    ]
    only_best = model("2/(3, 3)", (3.0, 3.0), 2, 16.9, 16.9)._replace(network="network 2")
    made = guidance.make_guidance([*models, only_best])
    entry = there(made.applications.generation)
    assert (made.num_networks, there(entry.seed_spread).degrees_of_freedom) == (3, 2)
    assert (entry.best.betas, entry.num_candidates) == ((0.1, 1.0), 2)
    # Differences 2.1, 1.9, 2: of these the variance is 0.01, and half of it that of each side.
    assert there(entry.difference_spread).standard_deviation == pytest.approx(math.sqrt(0.01 / 2))
    assert there(entry.difference_spread).degrees_of_freedom == 2
    rival = there(entry.unit_betas)
    assert rival.difference == pytest.approx(2.0)
    assert rival.difference_standard_error == pytest.approx(math.sqrt(0.01 / 3 + 2 * 0.3**2))
    # What is said of each by itself knows the networks' differences, and so do models that were each trained.
    assert entry.best.test_standard_error > 3.0
    apart = guidance.make_guidance([one._replace(network="") for one in (*models, only_best)])
    assert there(apart.applications.generation).best.betas == (3.0, 3.0)
    assert there(apart.applications.generation).difference_spread is None
    text = guidance_text.to_markdown(made)
    assert "Betas that only some of the networks were asked at are no candidates" in text
    assert "of what betas change within a network, 0.071, with 2." in text
    assert "no candidates" not in guidance_text.to_markdown(apart)
    assert plain.from_plain(Guidance, json.loads(json.dumps(plain.to_plain(made))), "guidance.json") == made


def test_networks_that_share_no_betas_are_compared_as_they_are_and_it_is_said():
    models = [
        model("0", (1.0, 1.0), 0, 4.0, 4.0)._replace(network="one"),
        model("1", (0.1, 1.0), 1, 6.0, 6.0)._replace(network="other"),
    ]
    made = guidance.make_guidance(models)
    entry = there(made.applications.generation)
    assert (entry.num_candidates, entry.difference_spread, entry.seed_spread) == (2, None, None)
    text = guidance_text.to_markdown(made)
    assert "a difference may be one of the networks" in text
    assert "Of 2 models any rate explains much" in text


def test_the_spread_within_networks_is_that_of_what_is_drawn():
    generator = np.random.default_rng(0)
    found = [
        seeds.pool_within(
            10 * generator.normal(size=3)
            + generator.normal(size=(4, 1))
            + 0.2 * generator.normal(size=(4, 3))
        )
        for _ in range(500)
    ]
    variance = np.mean([there(spread).standard_deviation ** 2 for spread in found])
    assert variance == pytest.approx(0.2**2, rel=0.1)
    assert seeds.pool_within([[1.0, 2.0]]) is None
    assert seeds.pool_within([[1.0], [2.0]]) is None


@pytest.mark.parametrize(
    ("test", "words"), [(9.0, "9.4 standard errors of images and draws ahead of"), (2.0, "7.1 standard")]
)
def test_without_a_second_seed_nothing_is_won_and_nothing_lost(test, words):
    models = [model("0", (0.1, 1.0), 0, 5.0, test), model("1", (1.0, 1.0), 0, 4.0, 5.0)]
    made = guidance.make_guidance(models)
    text = guidance_text.to_markdown(made)
    assert words in text
    assert "whether they won cannot be said. The spread over seeds is not known" in text
    assert not [verdict for verdict in ("betas won", "lost on", "No clear difference") if verdict in text]
    entry = there(made.applications.generation)
    assert (entry.seed_spread, entry.best.standard_error_of_seeds) == (None, None)


def test_without_a_second_seed_equal_betas_are_best_and_others_have_not_lost():
    models = [model("0", (0.1, 1.0), 0, 3.0, 9.0), model("1", (1.0, 1.0), 0, 4.0, 5.0)]
    text = guidance_text.to_markdown(guidance.make_guidance(models))
    assert "The best model has equal betas; whether it would with other seeds cannot be said." in text
    assert "did not win" not in text


def test_one_model_is_told_of_itself_alone():
    made = guidance.make_guidance([model("run", (1.0, 0.5), 0, 5.0, 4.0)])
    text = guidance_text.to_markdown(made)
    assert "One model of 2 layers, reported on the test split" in text
    assert "| this model | 1, 0.5 |" in text
    assert "There is one choice of betas here, so there is nothing to compare it with." in text
    assert "1 models" not in text
    assert "did not win" not in text
    assert "Of its variance" not in text


def test_a_model_without_a_number_is_no_candidate_and_an_application_without_any_is_named():
    lacking = model("5", (0.2, 1.0), 0, valid=99.0, test=99.0)
    some = dataclasses.replace(lacking.scores.test, representation=None)
    lacking = lacking._replace(scores=PerSplit(valid=some, test=some))
    made = guidance.make_guidance([*MODELS, lacking]).applications
    assert there(made.representation).best.betas == (0.1, 1.0)
    assert there(made.generation).best.betas == (0.2, 1.0)
    # Without a validation split no model can be chosen, and the test split does not take its place.
    left_out = {f"applications.{name}": "no validation split" for name in APPLICATIONS}
    alone = lacking._replace(scores=PerSplit(test=some), left_out=left_out)
    made = guidance.make_guidance([alone])
    assert made.applications == PerApplication()
    assert made.left_out == dict.fromkeys(APPLICATIONS, "no validation split")
    assert "- generation: no validation split" in guidance_text.to_markdown(made)


def test_draws_and_means_are_not_compared():
    scored = [
        model(str(i), (1.0, 1.0), i, 1.0, 1.0)._replace(pixels=pixels)
        for i, pixels in enumerate(("draws", "means"))
    ]
    text = guidance_text.to_markdown(guidance.make_guidance(scored[:1]))
    assert "Generation: inception score of draws from p(x|z) by the data set's classifier" in text
    with pytest.raises(RunError, match=r"draws from p\(x\|z\) for some"):
        guidance.make_guidance(scored)


RESULTS = pathlib.Path(__file__).parents[2] / "experiments" / "results"


def study(inference):
    """The Fashion-MNIST study's models, from a table of version 0.1.0, and its guidance.json."""
    content = json.loads((RESULTS / f"fashion_{inference}_guidance.json").read_text())
    return tables.read_table(RESULTS / f"fashion_{inference}_evaluation.csv"), content


def test_the_wins_of_the_study_are_those_that_its_seeds_allow():
    (ghvae, kept), (ladder, kept_of_ladder) = study("generalized_top_down"), study("ladder")
    ghvae, ladder = ([model.scored for model in models] for models in (ghvae, ladder))
    made = guidance.make_guidance(ghvae, guidance.baseline_of(kept, "kept"))
    entry = made.applications.generation
    assert entry.seed_spread.degrees_of_freedom == 9
    assert entry.seed_spread.standard_deviation == pytest.approx(0.121, abs=5e-4)
    assert entry.equal_betas.num_standard_errors == pytest.approx(0.95, abs=5e-3)
    assert plain.to_plain(made) == kept, (
        "experiments/results has what experiments.guidance makes of the table"
    )

    alone = there(guidance.make_guidance(ladder).applications.reconstruction)
    assert there(alone.equal_betas).num_standard_errors == pytest.approx(3.5, abs=0.05)
    assert "cannot be said" in guidance_text.statement(alone)
    made = guidance.make_guidance(ladder, guidance.baseline_of(kept_of_ladder, "kept"), ghvae)
    found = there(there(made.applications.reconstruction).equal_betas).num_standard_errors
    assert found == pytest.approx(1.4, abs=0.05)
    assert plain.to_plain(made) == kept_of_ladder


def test_a_baseline_is_read_from_a_guidance_of_0_1_0():
    kept = study("ladder")[1]
    (expected,) = [one for one in guidance.baseline_of(kept, "kept") if one.scores.test.generation]
    rival = kept["applications"]["generation"]["baseline"]
    del rival["standard_error_of_seeds"], rival["standard_error_of_images_and_draws"]
    (found,) = [one for one in guidance.baseline_of(kept, "kept") if one.scores.test.generation]
    assert found.scores.test.generation == Score(rival["test"], rival["test_standard_error"])
    assert found.rates_nats == expected.rates_nats
    rival["bits"] = 1.0
    with pytest.raises(RunError, match=r"^kept has bits, which this version of hvae_jax does not know"):
        guidance.baseline_of(kept, "kept")
    for other in ([], {"applications": 1}, {"applications": {"generation": {"baseline": 1}}}):
        with pytest.raises(RunError, match=r"^kept "):
            guidance.baseline_of(other, "kept")


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    ghvae, _ = study("generalized_top_down")
    generation = ghvae[0].metrics.generation.test
    assert generation.pixels == "means"
    judged = there(there(generation.scores).judged)
    assert judged.inception_score_classifier.value == ghvae[0].scored.test("generation")
    ghvae[0] = ghvae[0]._replace(made_with="0123456789abcdef")
    tables.write_table(tmp_path, ghvae)
    assert tables.read_table(tmp_path / "evaluation.csv") == ghvae
    for name, content in (("empty", ""), ("other", "model,status\n0,ok\n"), ("binary", "\x00\x01")):
        (tmp_path / name).write_text(content)
        with pytest.raises(RunError, match=name):
            tables.read_table(tmp_path / name)
    with pytest.raises(RunError, match="cannot be read"):
        tables.read_table(tmp_path / "absent.csv")


def test_each_bound_is_seen_to_be_broken():
    assert bound_checks.violations(make_metrics(0.5, 0.6, 0.5)) == []
    (information,) = bound_checks.violations(make_metrics(0.7, 0.6, 0.5))
    assert "0.7000 ± 0.0100 nats is above R_L = 0.6000" in information
    found = bound_checks.violations(make_metrics(0.3, 0.6, 0.75))
    assert len(found) == len(KINDS)
    assert "samples of z_2" in found[0]
    found = bound_checks.violations(make_metrics(0.5, 0.6, 0.5, lower_accuracy=0.7))
    assert "f⁻¹(R_1 + … + R_L) = 0.6" in found[0]
    broken = make_metrics(0.5, 0.6, 0.5, min_distortion=6.0)
    assert "D = 5.0000" in bound_checks.violations(broken)[0]


def test_sampling_error_is_no_violation_but_is_counted_without_it():
    within = make_metrics(0.64, 0.6, 0.5)
    assert bound_checks.violations(within) == []
    assert len(bound_checks.violations(within, num_standard_errors=0.0)) == 1


def test_the_bound_of_an_accuracy_is_that_of_the_images_it_is_scored_on():
    """The scored images know less of the class than the whole split does: only they count."""
    assert bound_checks.violations(make_metrics(1.2, 1.3, 0.75)) == []
    informed = Information(whole=make_population(1.2, 1.3, num_images=1000), scored=make_population(0.3, 0.6))
    mixed = dataclasses.replace(make_metrics(0.3, 0.6, 0.75), information=PerSplit(test=informed))
    found = bound_checks.violations(mixed)
    assert len(found) == len(KINDS)
    assert "above f⁻¹(I_q(y; z_L))" in found[0]


def test_checks_say_what_they_are_worth():
    free = make_metrics(1.5, 2.0, 1.0, lower_accuracy=0.5, min_distortion=-3.0)
    assert there(there(free.information.test.scored).label).max_accuracy_by_information == 1.0
    tight = make_metrics(0.5, 0.6, 0.5, lower_accuracy=0.45)
    worth = bound_checks.worth([free, tight])
    counts = {kind: (entry.num_checked, entry.num_could_fail) for kind, entry in worth.items()}
    # R_L = 2 is above H[p(y)] = log 4; f⁻¹(1.5) is 1; and −3 is below any distortion of discrete pixels.
    assert counts == {
        "label_information": (2, 1),
        "top_accuracy": (8, 4),
        "lower_accuracy": (8, 8),
        "distortion": (2, 1),
    }
    limit = float(bounds.max_accuracy(0.5, [1, 1, 1, 1]))
    assert worth["top_accuracy"].smallest_slack == pytest.approx(limit - 0.5)
    assert worth["top_accuracy"].smallest_slack_standard_errors == pytest.approx((limit - 0.5) / 0.01)
    assert worth["lower_accuracy"].smallest_slack == pytest.approx(0.1)
    assert worth["distortion"].smallest_slack == pytest.approx(1.0)
    assert bound_checks.describe(worth["distortion"]) == (
        "D ≥ H − ΣR: 2 checked, 1 could have failed (H − ΣR above 0), smallest slack 1.0000 nats or 10.0 "
        "standard errors"
    )
    assert sum(entry.num_violations + entry.num_beyond_at_all for entry in worth.values()) == 0
