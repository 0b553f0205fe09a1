"""Controls that solve for betas: the closed-form oracle, then what each promises."""

import math

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from hvae_jax import betas, controls, training
from hvae_jax.evaluation.targets import target_status

ONES = (1.0, 1.0)
BOUNDS = ((1e-3, 1e-3), (1e3, 1e3))


def stack(control_list, start=ONES):
    """The states that controls of one kind start from, `[M, ...]`: what they aim for lives there."""
    states = [control.init(jnp.asarray(start)) for control in control_list]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def test_trained_inference_has_the_closed_form_betas_of_the_rates_asked_for():
    num_steps = 1600
    config = linear_gaussian.training_config(
        learning_rate=4e-2, batch_size=256, micro_batch=256, ema_decay=0.0
    )
    wanted = [(0.3, 2.0), (3.0, 0.5), (0.5, 0.7)]
    targets = [(linear_gaussian.optimum(pair).rates, *BOUNDS) for pair in wanted]
    # A rate out of reach leaves its beta at the bound, and the other on target.
    reachable = linear_gaussian.optimum((0.5, 0.1)).rates
    targets.append(((reachable[0], 9.0), (1e-3, 0.1), (1e3, 10.0)))
    decay = betas.cubic_decay(num_steps // 10, num_steps)
    made = [controls.target_rates(*target, decay) for target in targets]
    step_fn = training.make_train_step(linear_gaussian.terms_fn, identity, made[0], config)
    batches = np.random.default_rng(0).permutation(linear_gaussian.data(8192)).reshape(32, 256, 1)

    def step(states, index):
        return jax.vmap(step_fn, (0, None))(states, jnp.asarray(batches)[index % 32])[0], None

    first = training.init_state(linear_gaussian.init_params(), ONES, made[0], config)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(made)), first)
    states = states._replace(beta_state=stack(made))
    found = jax.lax.scan(step, states, jnp.arange(num_steps))[0].beta_state
    np.testing.assert_allclose(found.betas, [*wanted, (0.5, 0.1)], rtol=0.02)
    assert found.memory.rates[3, 1] == pytest.approx(reachable[1], rel=0.05)


def answer(control, states, answer_of, num_steps=3000):
    """The betas `[T, M, L]` of models that answer at once: `answer_of(betas) -> (distortion, rates)`."""

    def one(state):
        return control.update(state, *answer_of(state.betas))

    def step(states, _):
        states = jax.vmap(one)(states)
        return states, states.betas

    return np.asarray(jax.lax.scan(step, states, None, num_steps)[1])


def rates_answer(rates_of):
    return lambda current: (jnp.zeros(()), rates_of(current))


def follow(control, rates, start=ONES):
    """The betas `[T, L]` under `rates` `[T, L]`, whatever the betas are."""

    def step(state, now):
        state = control.update(state, jnp.zeros(()), now)
        return state, state.betas

    return np.asarray(jax.lax.scan(step, control.init(jnp.asarray(start)), jnp.asarray(rates))[1])


def test_a_distortion_asked_for_gives_the_common_factor_of_the_closed_form():
    # The linear-Gaussian optimum over a grid of factors, which all betas share; linear in between.
    logs = np.linspace(-2.0, 2.0, 401)
    optima = [linear_gaussian.optimum((0.5 * math.exp(log), 2.0 * math.exp(log))) for log in logs]
    table = jnp.asarray([(optimum.distortion, *optimum.rates) for optimum in optima])

    def terms(current):
        columns = [jnp.interp(jnp.log(current[0] / 0.5), jnp.asarray(logs), column) for column in table.T]
        return columns[0], jnp.stack(columns[1:])

    control = controls.target_distortion(linear_gaussian.optimum((1.0, 4.0)).distortion, *BOUNDS)
    found = answer(control, stack([control], (0.5, 2.0)), terms, 1000)
    np.testing.assert_allclose(found[-1], [(1.0, 4.0)], rtol=1e-3)


def coupled(current):
    """Two layers that trade: each rate falls with its own beta and rises with the other's."""
    logs = jnp.log(current)
    return jnp.array([4.0, 2.0]) * jnp.exp(-logs + 0.5 * logs[::-1])


@pytest.mark.parametrize("chosen", [{}, {"gains": (0.0, 0.01)}])
def test_coupled_layers_reach_targets_over_a_factor_of_thirty_each_its_own(chosen):
    targets = [(1.0, 1.0), (30.0, 5.0), (5.0, 30.0), (1.0, 30.0)]
    made = [controls.target_rates(wanted, *BOUNDS, **chosen) for wanted in targets]
    # One update serves them all.
    found = answer(made[0], stack(made), rates_answer(coupled))
    np.testing.assert_allclose(jax.vmap(coupled)(jnp.asarray(found[-1])), targets, rtol=1e-3)


@pytest.mark.parametrize(
    ("gains", "factor"),  # of beta in a step in which the error goes from a tenth to a fifth
    [(controls.TARGET_GAINS, 1.5 * 0.1 + 0.03 * 0.2), ((0.5, 0.1), 0.5 * 0.1 + 0.1 * 0.2)],
)
def test_log_betas_move_by_the_gains_times_the_error_and_its_change(gains, factor):
    control = controls.target_rates((10.0,), (1e-3,), (1e3,), gains=gains)
    first, second = follow(control, [[11.0], [13.0]], (1.0,))  # whose mean is 12
    assert second / first == pytest.approx(math.exp(factor), rel=1e-5)


def test_betas_rest_with_a_model_that_no_longer_learns():
    # Rates that stay 5 % too high, whatever beta is: only the learning rate tells that nothing can mend them.
    control = controls.target_rates((1.0,), (1e-3,), (1e3,), betas.cubic_decay(100, 1100))
    found = follow(control, np.full((1200, 1), 1.05, np.float32), (1.0,))
    assert found[800, 0] > 2.0 * found[100, 0]
    np.testing.assert_allclose(found[1050:], np.broadcast_to(found[1050], found[1050:].shape), rtol=1e-3)
    np.testing.assert_array_equal(found[1101:], np.broadcast_to(found[1101], found[1101:].shape))


def test_a_free_layer_keeps_its_beta_and_an_upper_bound_acts_only_on_a_rate_above_it():
    # The free layer's rate and target are zero; of the bounds, the first is too low and the second is kept.
    free = controls.target_rates((3.0, 0.0, 3.0), (1e-3, 0.7, 1.0), (1e3, 0.7, 1e3))
    states = stack([free], (1.0, 0.7, 1.0))
    found = answer(free, states, rates_answer(lambda current: jnp.array([6.0, 0.0, 2.0]) / current))[:, 0]
    np.testing.assert_allclose(found[-1], (2.0, 0.7, 1.0), rtol=1e-3)
    np.testing.assert_array_equal(found[:, 1], np.float32(0.7))
    bound = controls.target_rates((3.0, 3.0, 3.0), (1.0, 1.0, 1.0), (1e3, 1e3, 1e3))
    found = answer(
        free, stack([bound], (1.0, 1.0, 1.0)), rates_answer(lambda b: jnp.array([6.0, 2.0, 3.0]) / b)
    )
    np.testing.assert_allclose(found[-1, 0], (2.0, 1.0, 1.0), rtol=1e-3)


def test_betas_leave_a_bound_as_soon_as_the_rate_answers():
    # For 2000 steps the rate is too small whatever the beta is; a sum that wound up would need as long
    # again to come back from the bound.
    rates = np.repeat([0.5, 2.0], [2000, 100])[:, None].astype(np.float32)
    found = follow(controls.target_rates((1.0,), (0.1,), (10.0,)), rates, (1.0,))
    assert found[1999, 0] == pytest.approx(0.1)
    assert found[2099, 0] > 0.15


def test_a_warm_up_scales_what_a_control_finds_and_the_control_rests_until_it_is_over():
    control = betas.linear_warmup(100, controls.target_rates((3.0, 3.0), *BOUNDS))
    rates = rates_answer(lambda current: jnp.array([6.0, 2.0]) / jnp.maximum(current, 0.1))
    found = answer(control, stack([control]), rates)[:, 0]
    np.testing.assert_allclose(found[:100], np.outer(np.arange(1, 101) / 100, ONES), rtol=1e-6)
    # The first updates know the rates at once: a mean that started at zero would first push beta_2 up.
    assert (found[100:120, 1] < 1.0).all()
    np.testing.assert_allclose(found[-1], (2.0, 2 / 3), rtol=1e-3)


@pytest.mark.parametrize("chosen", [{}, {"gains": (0.2, 0.003)}])
def test_pi_follows_the_published_rule(chosen):
    targets, lower, upper = (3.0, 30.0), (0.0, 0.0), (1.0, 1.0)
    gains = chosen.get("gains", (0.01, 1e-4))  # the published ones
    given = np.array([(5.0, 5.0), (4.0, 6.0), (3.5, 9.0), (6.0, 40.0), (3.0, 40.0)], np.float32)
    sums, expected = np.zeros(2), []
    for rates in given:
        errors = np.subtract(targets, rates)
        sums_next = sums - gains[1] * errors
        wanted = gains[0] / (1 + np.exp(errors)) + sums_next
        sums = np.where((wanted < 0) & (errors > 0), sums, sums_next)
        expected.append(np.clip(wanted, 0, 1))
    found = follow(controls.pi_rates(targets, lower, upper, **chosen), given)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_pi_reaches_a_target_that_it_is_given_time_for():
    control = controls.pi_rates((3.0,), (1e-3,), (1e3,))
    found = answer(control, stack([control], (1.0,)), rates_answer(lambda b: 6.0 / (0.5 + b)), 60_000)
    assert found[-1, 0, 0] == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("make", [controls.target_rates, controls.pi_rates])
def test_targets_bounds_and_betas_of_other_lengths_are_refused(make):
    with pytest.raises(ValueError, match=r"got 1 targets, 2 lower, 2 upper"):
        make((3.0,), *BOUNDS)
    with pytest.raises(ValueError, match=r"need one entry per layer each, got 3 betas, 2"):
        make((3.0, 3.0), *BOUNDS).init(jnp.ones(3))
    with pytest.raises(ValueError, match="3 betas, 2 lower, 2 upper"):
        controls.target_distortion(80.0, *BOUNDS).init(jnp.ones(3))


@pytest.mark.parametrize(
    ("kind", "target", "reached", "bounds", "status"),
    [
        ("equal", 10.0, 10.05, (False, False), "reached"),
        ("equal", 10.0, 10.2, (False, False), "not_reached"),
        ("equal", 10.0, 3.0, (True, False), "not_reached_beta_at_lower_bound"),
        ("equal", 10.0, 30.0, (False, True), "not_reached_beta_at_upper_bound"),
        ("equal", 10.0, 30.0, (True, False), "not_reached"),
        ("at_most", 10.0, 3.0, (True, False), "below"),
        ("at_most", 10.0, 12.0, (False, False), "not_reached"),
        ("free", 0.0, 3.0, (True, True), "free"),
    ],
)
def test_status_of_a_target(kind, target, reached, bounds, status):
    assert target_status(kind, target, reached, *bounds) == status


def rates_with(**changes):
    return controls.target_rates(**{"targets": ONES, "lower": BOUNDS[0], "upper": BOUNDS[1], **changes})


def distortion_with(**changes):
    return controls.target_distortion(**{"target": 80.0, "lower": BOUNDS[0], "upper": BOUNDS[1], **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rates_with(targets=(0.0, 1.0)), "finite and positive"),
        (lambda: rates_with(targets=(-1.0, 1.0)), "finite and positive"),
        (lambda: controls.pi_rates((float("nan"), 1.0), *BOUNDS), "finite and positive"),
        (lambda: controls.pi_rates((0.0, 1.0), *BOUNDS), "finite and positive"),
        (lambda: rates_with(lower=(2.0, 2.0), upper=ONES), "0 <= lower <= upper"),
        (lambda: controls.pi_rates(ONES, (-1.0, 0.1), ONES), "0 <= lower <= upper"),
        (lambda: distortion_with(lower=(2.0,), upper=(1.0,)), "0 <= lower <= upper"),
        (lambda: distortion_with(target=float("inf")), "finite distortion"),
        (lambda: rates_with().init(jnp.zeros(2)), "start above 0"),
        (lambda: betas.linear_warmup(5, rates_with()).init(jnp.zeros(2)), "start above 0"),
        (lambda: distortion_with().init(jnp.array([1.0, jnp.nan])), "start above 0"),
        (lambda: distortion_with().init(jnp.array([1.0, 0.0])), "start above 0"),
        (lambda: controls.pi_rates(ONES, *BOUNDS, gains=(0.01, 0.0)), "K_i positive"),
        (lambda: rates_with(gains=(1.5, -0.03)), "K_i positive"),
        (lambda: rates_with(gains=(1.5,)), "K_i positive"),
        (lambda: distortion_with(gains=(-1.0, 0.03)), "K_p at least 0"),
        (lambda: distortion_with(gains=(1.0, float("inf"))), "K_p at least 0"),
    ],
)
def test_what_no_control_can_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_beta_that_is_fixed_may_be_zero_and_needs_no_target():
    control = controls.target_rates((3.0, 0.0), (1e-3, 0.0), (1e3, 0.0))
    assert control.init(jnp.array([1.0, 0.0])).betas[1] == 0
