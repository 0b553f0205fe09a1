"""One step, and what a few of them do: gradients, averages, clipping, warm-ups, batches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity
from linear_runs import short, train_linear

from hvae_jax import betas, records, training
from hvae_jax.errors import RunError
from hvae_jax.training import batches


def test_a_run_compiles_the_step_once(tmp_path):
    traces = []

    def terms_fn(params, x, key):
        traces.append(1)
        return linear_gaussian.terms_fn(params, x, key)

    config, control = short(17), betas.constant()

    def trained(config, folder):
        traces.clear()
        state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
        training.train(
            records.open_run(folder, {}),
            state,
            terms_fn,
            batches.ResidentBatches(linear_gaussian.data(64), config),
            preprocess_fn=identity,
            control=control,
            config=config,
        )
        return len(traces)

    # A run of one interval and a run of four, the last of them short, trace equally often.
    assert trained(config, tmp_path / "four") == trained(short(5), tmp_path / "one") > 0


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    control = betas.constant()
    state = training.init_state(linear_gaussian.init_params(), (0.7, 1.3), control, short(5))
    images = jnp.asarray(linear_gaussian.data(16))
    results = [
        training.make_train_step(linear_gaussian.terms_fn, identity, control, short(5, micro_batch=size))(
            state, images
        )
        for size in (16, 4)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_loss_gradient_with_respect_to_betas_is_the_mean_rates():
    x = jnp.asarray(linear_gaussian.data(16))
    terms = linear_gaussian.terms_fn(linear_gaussian.init_params(), x, jax.random.key(0))
    from hvae_jax.objective import layerwise_elbo

    gradient = jax.grad(lambda b: -layerwise_elbo(terms, b).mean())(jnp.array([0.3, 2.0]))
    np.testing.assert_allclose(gradient, terms.rates.mean(axis=0), rtol=1e-6)


def test_a_step_that_is_not_finite_leaves_the_state_alone():
    config, control = short(5), betas.constant()
    state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
    step_fn = training.make_train_step(linear_gaussian.terms_fn, identity, control, config)
    after, metrics = step_fn(state, jnp.full((16, 1), jnp.nan))
    assert not training.is_finite(metrics)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_averaged_parameters_and_clipping_follow_their_definition():
    config, control = short(5, ema_decay=0.9, max_grad_norm=1e-3, eps=1.0), betas.constant()
    state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
    images = jnp.asarray(linear_gaussian.data(16))
    after, metrics = training.make_train_step(linear_gaussian.terms_fn, identity, control, config)(
        state, images
    )
    # The first step replaces the random start, which then never counts.
    jax.tree.map(np.testing.assert_array_equal, after.ema_params, after.params)
    # With eps = 1 the first Adam step is lr · g / (|g| + 1), so it shows the clipped gradient.
    moved = np.array([float(p) for p in jax.tree.leaves(after.params)]) / config.learning_rate
    clipped = moved / (1 - np.abs(moved))
    assert float(metrics.grad_norm) > 1e-3
    assert np.linalg.norm(clipped) == pytest.approx(1e-3, rel=1e-3)


def test_averaged_parameters_are_the_weighted_mean_of_those_after_each_step():
    config, control, decay = short(5, ema_decay=0.9), betas.constant(), 0.9
    state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
    state = state._replace(ema_params=jax.tree.map(lambda p: p + 1e6, state.params))
    step_fn = jax.jit(training.make_train_step(linear_gaussian.terms_fn, identity, control, config))
    images, seen = jnp.asarray(linear_gaussian.data(16)), []
    for _ in range(7):
        state, _ = step_fn(state, images)
        seen.append([float(leaf) for leaf in jax.tree.leaves(state.params)])
        weights = decay ** np.arange(len(seen))[::-1]
        average = [float(leaf) for leaf in jax.tree.leaves(state.ema_params)]
        np.testing.assert_allclose(average, weights @ np.array(seen) / weights.sum(), rtol=1e-4, atol=1e-8)


def test_warm_up_and_weight_decay_are_those_of_adamw():
    config = short(2, weight_decay=0.1, learning_rate_warmup_steps=4, learning_rate=0.01)
    tx: Any = config.make_optimizer()
    params = {"w": jnp.asarray([2.0, -3.0])}
    state, grads = tx.init(params), {"w": jnp.asarray([5.0, -1.0])}
    for step in (1, 2, 3, 4, 5):
        updates, state = tx.update(grads, state, params)
        # Constant gradients: Adam's step is the sign; then the decay, times the learning rate.
        expected = -0.01 * min(step / 4, 1.0) * (np.sign(grads["w"]) + 0.1 * params["w"])
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_steps_of_large_gradients_are_left_out_and_counted(tmp_path):
    """As if they had not been: state and parameters of the steps between them."""
    config = short(8, skip_grad_norm=10.0)
    tx: Any = config.make_optimizer()
    plain: Any = dataclasses.replace(config, skip_grad_norm=0.0).make_optimizer()
    params = {"w": jnp.zeros(2)}
    state, expected = tx.init(params), plain.init(params)
    for norm in (1.0, 11.0, 3.0, 12.0, 13.0):
        grads = {"w": jnp.asarray([norm, 0.0])}
        updates, state = tx.update(grads, state, params)
        if norm > 10.0:
            np.testing.assert_array_equal(updates["w"], 0.0)
        else:
            wanted, expected = plain.update(grads, expected, params)
            np.testing.assert_array_equal(updates["w"], wanted["w"])
    assert (int(state.num_skipped), int(state.num_in_a_row)) == (3, 2)
    jax.tree.map(np.testing.assert_array_equal, state.inner, expected)
    # In a run, whose log counts them.
    train_linear(tmp_path / "taken", short(8, skip_grad_norm=1e6), linear_gaussian.data(64))
    assert records.load(tmp_path / "taken")["num_skipped"].tolist() == [0, 0]
    with pytest.raises(
        RunError, match=r"skip_grad_norm=0\.001 in each of the last 5 steps, up to step 5; no .*Raise config"
    ):
        train_linear(tmp_path / "left", short(8, skip_grad_norm=1e-3), linear_gaussian.data(64))
    assert records.load(tmp_path / "left")["num_skipped"].tolist() == [5]


def test_warm_up_scales_all_betas_linearly():
    control = betas.linear_warmup(4)
    state = control.init(jnp.array([2.0, 0.5]))
    seen = []
    for _ in range(6):
        seen.append(state.betas.tolist())
        state = control.update(state, jnp.zeros(()), jnp.zeros(2))
    np.testing.assert_allclose(seen, np.outer([0, 0.25, 0.5, 0.75, 1, 1], [2.0, 0.5]), rtol=1e-6)


def test_batches_see_every_image_once_per_epoch_in_an_order_of_their_own():
    order = batches.batch_indices(3, num_images=10, batch_size=4, start=0, num_steps=5).ravel()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    late = batches.batch_indices(3, num_images=10, batch_size=4, start=2, num_steps=3)
    np.testing.assert_array_equal(late.ravel(), order[8:])
    assert batches.batch_indices(4, 10, 4, 0, 5).ravel().tolist() != order.tolist()
