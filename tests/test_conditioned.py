"""Betas for rates, solved for: against the closed form of the linear-Gaussian model."""

import linear_gaussian
import numpy as np
import pytest

from hvae_jax import conditioned
from hvae_jax.conditioned import Means

LOWS, HIGHS = (0.08, 0.08), (12.6, 12.6)


def exact(betas: np.ndarray) -> Means:
    found = linear_gaussian.optimum((float(betas[0]), float(betas[1])))
    return Means(found.distortion, np.asarray(found.rates))


def of_few_images(betas: np.ndarray) -> Means:
    means = exact(betas)
    return means._replace(rates=means.rates * np.array([1.06, 0.93]))


def test_the_betas_of_any_rates_are_found():
    surveyed = conditioned.survey(exact, LOWS, HIGHS)
    for betas in np.exp(np.random.default_rng(0).uniform(np.log(0.1), np.log(10.0), (20, 2))):
        answer = conditioned.solve(exact, exact(betas).rates.tolist(), LOWS, HIGHS, surveyed=surveyed)
        np.testing.assert_allclose(answer.means.rates, exact(betas).rates, rtol=conditioned.TOLERANCE * 1.01)
        np.testing.assert_allclose(answer.betas, betas, rtol=0.02)
        assert not answer.out_of_reach
        assert answer.num_passes <= 15


def test_all_images_are_looked_at_for_the_last_steps_alone():
    num_calls = []

    def counted(betas: np.ndarray) -> Means:
        num_calls.append(1)
        return exact(betas)

    answer = conditioned.solve(counted, (0.5, 0.6), LOWS, HIGHS, search=of_few_images)
    np.testing.assert_allclose(exact(np.asarray(answer.betas)).rates, (0.5, 0.6), rtol=0.003)
    assert len(num_calls) <= 4 < answer.num_passes


@pytest.mark.parametrize(
    ("targets", "missed", "why"),
    [
        ((5.0, 0.4), ["z_1"], "outside of what it reaches"),
        ((2.2, 1.7), ["z_1", "z_2"], "not together with the other targets"),
    ],
)
def test_what_is_out_of_reach_is_named_with_the_reason_and_the_rest_is_met(targets, missed, why):
    answer = conditioned.solve(exact, targets, LOWS, HIGHS)
    assert [reason.split()[0] for reason in answer.out_of_reach] == missed
    assert all(why in reason for reason in answer.out_of_reach)
    assert min(answer.betas) >= LOWS[0] * (1 - 1e-9)
    assert max(answer.betas) <= HIGHS[0] * (1 + 1e-9)
    if missed == ["z_1"]:
        assert answer.betas[0] == pytest.approx(LOWS[0])
        assert answer.means.rates[1] == pytest.approx(0.4, rel=0.01)


def test_a_distortion_is_reached_with_betas_in_the_ratios_asked_for():
    answer = conditioned.solve_distortion(exact, 0.9, LOWS, HIGHS, ratios=(1.0, 4.0), search=of_few_images)
    assert answer.means.distortion == pytest.approx(0.9, abs=0.003)
    assert answer.betas[1] == pytest.approx(4.0 * answer.betas[0])
    far = conditioned.solve_distortion(exact, 9.0, LOWS, HIGHS)
    assert far.betas == pytest.approx(HIGHS)
    assert "D is 4.55" in far.out_of_reach[0]
    with pytest.raises(ValueError, match="do not fit into the range"):
        conditioned.solve_distortion(exact, 0.9, LOWS, HIGHS, ratios=(1.0, 1e4))


def test_targets_are_positive_and_one_per_layer():
    for targets in ((1.0,), (1.0, 0.0)):
        with pytest.raises(ValueError, match=r"targets must be \[2\] positive rates"):
            conditioned.solve(exact, targets, LOWS, HIGHS)
