"""Betas that nobody solves for: constant, warmed up, and the learning rate that goes with them."""

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from hvae_jax import betas, controls, training
from hvae_jax.objective import LayerwiseTerms

ONES = (1.0, 1.0)


def betas_of(control, num_steps, start=ONES, rates=(1.0, 1.0)):
    """The betas `[T, L]` after each step."""

    def step(state, _):
        state = control.update(state, jnp.zeros(()), jnp.asarray(rates))
        return state, state.betas

    return np.asarray(jax.lax.scan(step, control.init(jnp.asarray(start)), None, num_steps)[1])


def doubling(step):
    """The docstring's own control."""

    def update(state, distortion, rates):
        moved = jnp.where(state.step == step - 1, 2.0 * state.betas, state.betas)
        return state._replace(betas=moved, step=state.step + 1)

    return betas.BetaControl(init=betas.constant().init, update=update)


@pytest.mark.parametrize("num_steps", [0, 10, 99])
def test_a_warm_up_keeps_what_a_control_of_your_own_does(num_steps):
    alone = np.repeat([ONES, (2.0, 2.0)], [99, 21], axis=0)
    found = betas_of(betas.linear_warmup(num_steps, doubling(100)), 120)
    np.testing.assert_array_equal(found[num_steps:], alone[num_steps:])
    np.testing.assert_allclose(
        found[:num_steps, 0], np.arange(1, num_steps + 1) / max(num_steps, 1), rtol=1e-6
    )


def test_a_warm_up_leads_to_the_betas_that_a_control_starts_from():
    control = doubling(1000)._replace(init=lambda b: betas.constant().init(b)._replace(betas=3.0 * b))
    found = betas_of(betas.linear_warmup(4, control), 6)
    np.testing.assert_allclose(found[:, 0], [0.75, 1.5, 2.25, 3.0, 3.0, 3.0])


@pytest.mark.parametrize("control", [betas.constant(), controls.target_rates(ONES, (0.1, 0.1), (9.0, 9.0))])
def test_a_warm_up_wraps_the_state_of_its_control_which_counts_the_same_steps(control):
    warm_up = betas.linear_warmup(4, control)
    state, update = warm_up.init(jnp.array([0.5, 2.0])), jax.jit(warm_up.update)
    assert state.betas.tolist() == [0.0, 0.0]
    assert jax.tree.structure(state.memory) == jax.tree.structure(control.init(jnp.ones(2)))
    assert state.memory.betas.tolist() == [0.5, 2.0]
    for done in range(1, 7):
        state = update(state, jnp.ones(()), jnp.array([3.0, 0.3]))
        assert int(state.step) == int(state.memory.step) == done
    np.testing.assert_array_equal(state.betas, state.memory.betas)


def test_a_warm_up_of_a_warm_up_is_refused():
    with pytest.raises(ValueError, match="warms up itself"):
        betas.linear_warmup(5, betas.linear_warmup(3))
    assert betas.linear_warmup(0).init(jnp.ones(2)).betas.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("num_steps", [-1, 1.5])
def test_a_warm_up_of_no_number_of_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"0 or more, got {num_steps}"):
        betas.linear_warmup(num_steps)


def test_the_learning_rate_falls_to_nothing_and_the_step_obeys():
    scale = betas.cubic_decay(30, 40)
    np.testing.assert_allclose(
        [scale(jnp.asarray(s)) for s in (0, 30, 35, 39, 40)], [1, 1, 0.125, 0.001, 0], rtol=1e-5
    )
    control, config = betas.constant(betas.cubic_decay(0, 2)), linear_gaussian.training_config(ema_decay=0.0)

    def terms_fn(params, x, keys):
        del keys
        return LayerwiseTerms(jnp.square(x - params["w"][None]).sum(axis=1), jnp.zeros((len(x), 2)))

    state = training.init_state({"w": jnp.ones(3)}, ONES, control, config)
    images = jnp.zeros((4, 3))
    step_fn = jax.jit(training.make_train_step(terms_fn, identity, control, config))
    moved = step_fn(state, images)[0].params["w"]
    np.testing.assert_allclose(moved, 1.0 - config.learning_rate, rtol=1e-5)  # Adam's first step
    late = state._replace(step=jnp.asarray(2, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, step_fn(late, images)[0].params, state.params)
