"""Controls of the betas: the closed-form oracle, then what each promises."""

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from hvae_jax import betas, records, training
from hvae_jax.evaluation.targets import target_status
from hvae_jax.training import batches

ONES = (1.0, 1.0)
BOUNDS = ((1e-3, 1e-3), (1e3, 1e3))
CONFIG = linear_gaussian.training_config(
    num_epochs=600.0,
    learning_rate=2e-2,
    learning_rate_decay_fraction=0.9,
    ema_decay=0.0,
    log_every_steps=400,
    eval_every_steps=4800,
    checkpoint_every_steps=4800,
    num_checkpoints=1,
)
DECAY = betas.cubic_decay(480, 4800)


def train_linear(folder, control):
    """The inference of the linear-Gaussian model, trained from betas of one: the final state."""
    return training.train(
        records.open_run(folder, {}),
        training.init_state(linear_gaussian.init_params(), ONES, control, CONFIG),
        linear_gaussian.terms_fn,
        batches.ResidentBatches(linear_gaussian.data(8192), CONFIG),
        preprocess_fn=identity,
        control=control,
        config=CONFIG,
    )


@pytest.mark.parametrize("wanted", [(0.3, 2.0), (3.0, 0.5), (0.5, 0.7)])
def test_asked_for_closed_form_rates_it_finds_their_betas(tmp_path, wanted):
    targets = linear_gaussian.optimum(wanted).rates
    state = train_linear(tmp_path, betas.target_rates(targets, *BOUNDS, DECAY))
    np.testing.assert_allclose(state.beta_state.betas, wanted, rtol=0.01)


def test_asked_for_a_closed_form_distortion_it_finds_the_common_factor(tmp_path):
    # The betas start equal, so at the optimum both are the factor.
    target = linear_gaussian.optimum((2.0, 2.0)).distortion
    state = train_linear(tmp_path, betas.target_distortion(target, *BOUNDS, DECAY))
    np.testing.assert_allclose(state.beta_state.betas, (2.0, 2.0), rtol=0.02)


def test_a_rate_out_of_reach_leaves_its_beta_at_the_bound_and_the_other_on_target(tmp_path):
    reachable = linear_gaussian.optimum((0.5, 0.1)).rates
    state = train_linear(tmp_path, betas.target_rates((reachable[0], 9.0), (1e-3, 0.1), (1e3, 10.0), DECAY))
    np.testing.assert_allclose(state.beta_state.betas, (0.5, 0.1), rtol=0.02)
    assert state.beta_state.memory.rates[1] == pytest.approx(reachable[1], rel=0.05)


def answer(control, start_betas, rates_of, num_steps=3000):
    """The betas `[T, L]` where a model answers at once: `rates_of(betas) -> rates`."""

    def step(state, _):
        state = control.update(state, jnp.zeros(()), rates_of(state.betas))
        return state, state.betas

    state = control.init(jnp.asarray(start_betas))
    return np.asarray(jax.lax.scan(step, state, None, num_steps)[1])


def coupled(current):
    """Two layers that trade: each rate falls with its own beta and rises with the other's."""
    logs = jnp.log(current)
    return jnp.array([4.0, 2.0]) * jnp.exp(-logs + 0.5 * logs[::-1])


@pytest.mark.parametrize("targets", [(1.0, 1.0), (30.0, 5.0), (5.0, 30.0), (1.0, 30.0)])
def test_coupled_layers_reach_targets_over_a_factor_of_thirty(targets):
    found = answer(betas.target_rates(targets, *BOUNDS), ONES, coupled)
    np.testing.assert_allclose(coupled(jnp.asarray(found[-1])), targets, rtol=1e-3)


def test_betas_rest_with_a_model_that_no_longer_learns():
    # Rates that stay 5 % too high, whatever beta is: only the learning rate tells that nothing can mend them.
    control = betas.target_rates((1.0,), (1e-3,), (1e3,), betas.cubic_decay(100, 1100))
    found = answer(control, (1.0,), lambda current: jnp.full(1, 1.05), 1200)
    assert found[800, 0] > 2.0 * found[100, 0]
    np.testing.assert_allclose(found[1050:], np.broadcast_to(found[1050], found[1050:].shape), rtol=1e-3)
    np.testing.assert_array_equal(found[1101:], np.broadcast_to(found[1101], found[1101:].shape))


def test_a_free_layer_keeps_its_beta_even_where_its_rate_and_target_are_zero():
    control = betas.target_rates((3.0, 0.0), (1e-3, 0.7), (1e3, 0.7))
    found = answer(control, (1.0, 0.7), lambda current: jnp.array([6.0, 0.0]) / current)
    np.testing.assert_allclose(found[-1], (2.0, 0.7), rtol=1e-3)
    np.testing.assert_array_equal(found[:, 1], np.float32(0.7))


def test_an_upper_bound_acts_only_on_a_rate_above_it():
    control = betas.target_rates((3.0, 3.0), ONES, (1e3, 1e3))
    found = answer(control, ONES, lambda current: jnp.array([6.0, 2.0]) / current)
    np.testing.assert_allclose(found[-1], (2.0, 1.0), rtol=1e-3)


def test_betas_leave_a_bound_as_soon_as_the_rate_answers():
    # For 2000 steps the rate is too small whatever the beta is; a sum that wound up would need as long
    # again to come back from the bound.
    control = betas.target_rates((1.0,), (0.1,), (10.0,))
    state = control.init(jnp.ones(1))
    seen = []
    for step in range(2100):
        rate = 0.5 if step < 2000 else 2.0
        state = jax.jit(control.update)(state, jnp.zeros(()), jnp.full(1, rate))
        seen.append(float(state.betas[0]))
    assert seen[1999] == pytest.approx(0.1)
    assert seen[2099] > 0.15


@pytest.mark.parametrize("make", [betas.target_rates, betas.pi_rates])
def test_targets_bounds_and_betas_of_other_lengths_are_refused(make):
    with pytest.raises(ValueError, match=r"got 1 targets, 2 lower, 2 upper"):
        make((3.0,), *BOUNDS)
    with pytest.raises(ValueError, match=r"need one entry per layer each, got 3 betas, 2"):
        make((3.0, 3.0), *BOUNDS).init(jnp.ones(3))
    with pytest.raises(ValueError, match="3 betas, 2 lower, 2 upper"):
        betas.target_distortion(80.0, *BOUNDS).init(jnp.ones(3))


def test_targets_live_in_the_state():
    control = betas.target_rates((1.0, 1.0), *BOUNDS)
    other = betas.target_rates((30.0, 5.0), *BOUNDS)
    rates = jnp.array([10.0, 2.0])
    for made in (other, betas.target_rates((2.0, 9.0), *BOUNDS)):
        state = made.init(jnp.ones(2))
        for a, b in zip(
            *map(jax.tree.leaves, (c.update(state, jnp.ones(()), rates) for c in (control, made))),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert (control.update(other.init(jnp.ones(2)), jnp.ones(()), rates).betas < 1.0).all()


def test_a_warm_up_scales_what_a_control_finds_and_the_control_rests_until_it_is_over():
    targets = (3.0, 3.0)
    control = betas.linear_warmup(100, betas.target_rates(targets, *BOUNDS))
    found = answer(control, ONES, lambda current: jnp.array([6.0, 2.0]) / jnp.maximum(current, 0.1))
    np.testing.assert_allclose(found[:100], np.outer(np.arange(1, 101) / 100, ONES), rtol=1e-6)
    # The first updates know the rates at once: a mean that started at zero would first push beta_2 up.
    assert (found[100:120, 1] < 1.0).all()
    np.testing.assert_allclose(found[-1], (2.0, 2 / 3), rtol=1e-3)


def doubling(step):
    """The docstring's own control: it moves betas and does not know of final_betas."""

    def update(state, distortion, rates):
        moved = jnp.where(state.step == step - 1, 2.0 * state.betas, state.betas)
        return state._replace(betas=moved, step=state.step + 1)

    return betas.BetaControl(init=betas.constant().init, update=update)


@pytest.mark.parametrize("num_steps", [0, 10, 99])
def test_a_warm_up_keeps_what_a_control_of_your_own_does(num_steps):
    alone = answer(doubling(100), ONES, lambda b: b, 120)
    assert alone[98:100].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    found = answer(betas.linear_warmup(num_steps, doubling(100)), ONES, lambda b: b, 120)
    np.testing.assert_array_equal(found[num_steps:], alone[num_steps:])
    np.testing.assert_allclose(
        found[:num_steps, 0], np.arange(1, num_steps + 1) / max(num_steps, 1), rtol=1e-6
    )


def test_a_warm_up_leads_to_the_betas_that_a_control_starts_from():
    control = doubling(1000)._replace(init=lambda b: betas.constant().init(b)._replace(betas=3.0 * b))
    found = answer(betas.linear_warmup(4, control), ONES, lambda b: b, 6)
    np.testing.assert_allclose(found[:, 0], [0.75, 1.5, 2.25, 3.0, 3.0, 3.0])


def test_a_warm_up_of_a_warm_up_is_refused():
    with pytest.raises(ValueError, match="warms up itself"):
        betas.linear_warmup(5, betas.linear_warmup(3))
    assert betas.linear_warmup(0).init(jnp.ones(2)).betas.tolist() == [1.0, 1.0]


def test_a_beta_state_has_the_fields_that_old_checkpoints_have():
    assert betas.BetaState._fields == ("betas", "step", "final_betas", "memory")


@pytest.mark.parametrize("chosen", [{}, {"gains": (0.2, 0.003)}])
def test_pi_follows_the_published_rule(chosen):
    targets, lower, upper = (3.0, 30.0), (0.0, 0.0), (1.0, 1.0)
    control = betas.pi_rates(targets, lower, upper, **chosen)
    gains = chosen.get("gains", (0.01, 1e-4))  # the published ones
    state, sums = control.init(jnp.ones(2)), np.zeros(2)
    for rates in ((5.0, 5.0), (4.0, 6.0), (3.5, 9.0), (6.0, 40.0), (3.0, 40.0)):
        state = control.update(state, jnp.zeros(()), jnp.asarray(rates))
        errors = np.subtract(targets, rates)
        sums_next = sums - gains[1] * errors
        wanted = gains[0] / (1 + np.exp(errors)) + sums_next
        sums = np.where((wanted < 0) & (errors > 0), sums, sums_next)
        np.testing.assert_allclose(state.betas, np.clip(wanted, 0, 1), rtol=1e-5, atol=1e-9)


def test_pi_reaches_a_target_that_it_is_given_time_for():
    found = answer(betas.pi_rates((3.0,), (1e-3,), (1e3,)), (1.0,), lambda b: 6.0 / (0.5 + b), 60_000)
    assert found[-1, 0] == pytest.approx(1.5, rel=1e-3)


def test_the_learning_rate_falls_to_nothing_and_the_step_obeys():
    scale = betas.cubic_decay(30, 40)
    np.testing.assert_allclose(
        [scale(jnp.asarray(s)) for s in (0, 30, 35, 39, 40)], [1, 1, 0.125, 0.001, 0], rtol=1e-5
    )
    control = betas.constant(betas.cubic_decay(0, 2))
    state = training.init_state(linear_gaussian.init_params(), ONES, control, CONFIG)
    images = jnp.asarray(linear_gaussian.data(16))
    step_fn = training.make_train_step(linear_gaussian.terms_fn, identity, control, CONFIG)
    moved = [abs(float(leaf)) for leaf in jax.tree.leaves(step_fn(state, images)[0].params)]
    assert max(moved) == pytest.approx(CONFIG.learning_rate, rel=1e-3)  # Adam's first step
    late = state._replace(step=jnp.asarray(2))
    for old, new in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(step_fn(late, images)[0].params), strict=True
    ):
        np.testing.assert_array_equal(old, new)


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: betas.target_rates((0.0, 1.0), *BOUNDS), "finite and positive"),
        (lambda: betas.target_rates((-1.0, 1.0), *BOUNDS), "finite and positive"),
        (lambda: betas.pi_rates((float("nan"), 1.0), *BOUNDS), "finite and positive"),
        (lambda: betas.target_rates(ONES, (2.0, 2.0), ONES), "0 <= lower <= upper"),
        (lambda: betas.pi_rates(ONES, (-1.0, 0.1), ONES), "0 <= lower <= upper"),
        (lambda: betas.target_distortion(80.0, (2.0,), (1.0,)), "0 <= lower <= upper"),
        (lambda: betas.target_distortion(float("inf"), *BOUNDS), "finite distortion"),
        (lambda: betas.target_rates(ONES, *BOUNDS).init(jnp.zeros(2)), "start above 0"),
        (lambda: betas.target_distortion(80.0, *BOUNDS).init(jnp.array([1.0, jnp.nan])), "start above 0"),
        (lambda: betas.pi_rates(ONES, *BOUNDS, gains=(0.01, 0.0)), "K_i positive"),
        (lambda: betas.linear_warmup(-1), "0 or more, got -1"),
        (lambda: betas.linear_warmup(1.5), "0 or more, got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_what_no_control_can_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_beta_that_is_fixed_may_be_zero_and_needs_no_target():
    assert betas.target_rates((3.0, 0.0), (1e-3, 0.0), (1e3, 0.0)).init(jnp.array([1.0, 0.0])).betas[1] == 0
