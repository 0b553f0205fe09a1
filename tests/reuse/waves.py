"""A project of its own, with hvae_jax as a dependency: noisy sine waves and a model in plain JAX.

It takes from hvae_jax the objective, the rule that solves for the betas, and the rate log; the model,
its parameters, the optimiser and the loop are its own.

    python waves.py FOLDER
"""

import json
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hvae_jax import BetaState, Gaussian, LayerwiseTerms, kl_divergence, layerwise_elbo, records, target_rates
from hvae_jax.betas import cubic_decay
from hvae_jax.gaussian import log_prob, sample, standard

NUM_POINTS, NOISE, HIDDEN = 16, 0.3, 32
SIZES = {"z_1": 4, "z_2": 2}
TARGETS = (4.0, 1.5)  # nats that z_1 and z_2 shall carry
NUM_STEPS, STEPS_PER_ROW, BATCH_SIZE = 2000, 100, 128
# The last two thirds of the run come to rest, and the control slows down with the model.
DECAY = cubic_decay(NUM_STEPS // 3, NUM_STEPS)

Params = Any


class State(NamedTuple):
    params: Params
    opt_state: optax.OptState
    beta_state: BetaState


def draw_waves(key: jax.Array, num: int) -> jax.Array:
    """Sine waves of random phase and height, `[num, NUM_POINTS]`."""
    key_phase, key_height, key_noise = jax.random.split(key, 3)
    phase = 2 * jnp.pi * jax.random.uniform(key_phase, (num, 1))
    height = 1.0 + 0.3 * jax.random.normal(key_height, (num, 1))
    angle = jnp.linspace(0.0, 2 * jnp.pi, NUM_POINTS, endpoint=False)[None]
    return height * jnp.sin(angle + phase) + NOISE * jax.random.normal(key_noise, (num, NUM_POINTS))


def init_params(key: jax.Array) -> Params:
    """A two-layer perceptron for each distribution."""
    z_1, z_2 = SIZES["z_1"], SIZES["z_2"]
    shapes = {
        "q_2": (NUM_POINTS, 2 * z_2),
        "q_1": (NUM_POINTS + z_2, 2 * z_1),
        "p_1": (z_2, 2 * z_1),
        "p_x": (z_1, NUM_POINTS),
    }
    params = {}
    keys = jax.random.split(key, (len(shapes), 2))
    for (first, second), (name, (num_in, num_out)) in zip(keys, shapes.items(), strict=True):
        params[name] = {
            "in": jax.random.normal(first, (num_in, HIDDEN)) / num_in**0.5,
            "in_bias": jnp.zeros((1, HIDDEN)),
            "out": 0.1 * jax.random.normal(second, (HIDDEN, num_out)) / HIDDEN**0.5,
            "out_bias": jnp.zeros((1, num_out)),
        }
    return params


def perceptron(params: Params, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["in"] + params["in_bias"]) @ params["out"] + params["out_bias"]


def gaussian(params: Params, x: jax.Array) -> Gaussian:
    mean, log_std = jnp.split(perceptron(params, x), 2, axis=1)
    return Gaussian(mean, jnp.exp(log_std))


def terms(params: Params, x: jax.Array, key: jax.Array) -> LayerwiseTerms:
    """All that hvae_jax wants of a model."""
    key_1, key_2 = jax.random.split(key)
    q_2 = gaussian(params["q_2"], x)
    z_2 = sample(key_2, q_2)
    q_1, p_1 = gaussian(params["q_1"], jnp.concatenate([x, z_2], axis=1)), gaussian(params["p_1"], z_2)
    z_1 = sample(key_1, q_1)
    p_x = Gaussian(perceptron(params["p_x"], z_1), jnp.full_like(x, NOISE))
    rates = [kl_divergence(q_1, p_1), kl_divergence(q_2, standard(q_2))]
    return LayerwiseTerms(distortion=-log_prob(p_x, x), rates=jnp.stack(rates, axis=1))


def train(folder: str) -> State:
    """Trains, and writes FOLDER/rates.jsonl."""
    control = target_rates(TARGETS, lower=(1e-3, 1e-3), upper=(1e3, 1e3), learning_rate_scale=DECAY)
    tx = optax.adam(3e-3)

    def step(state: State, key: jax.Array) -> tuple[State, tuple[jax.Array, ...]]:
        key_data, key_noise = jax.random.split(key)
        x = draw_waves(key_data, BATCH_SIZE)

        def loss_fn(params: Params) -> tuple[jax.Array, LayerwiseTerms]:
            found = terms(params, x, key_noise)
            return -layerwise_elbo(found, state.beta_state.betas).mean(), found

        (loss, found), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state)
        scale = control.learning_rate_scale(state.beta_state.step)
        updates = jax.tree.map(lambda update: scale * update, updates)
        distortion, rates = found.distortion.mean(), found.rates.mean(axis=0)
        new = State(
            optax.apply_updates(state.params, updates),
            opt_state,
            control.update(state.beta_state, distortion, rates),
        )
        return new, (loss, distortion, rates)

    params = jax.jit(init_params)(jax.random.key(0))
    state = State(params, tx.init(params), control.init(jnp.ones(2)))
    many_steps = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    log = records.RateLog(folder)
    for start in range(0, NUM_STEPS, STEPS_PER_ROW):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), start), STEPS_PER_ROW)
        state, (loss, distortion, rates) = many_steps(state, keys)
        log.append(
            records.rate_row(
                step=start + STEPS_PER_ROW,
                split="train",
                loss=loss.mean(),
                distortion=distortion.mean(),
                rates=rates.mean(axis=0),
                betas=state.beta_state.betas,
                num_dims=NUM_POINTS,
            )
        )
    return state


def main() -> None:
    folder = sys.argv[1]
    state = train(folder)
    measure = jax.jit(lambda params, key, noise: terms(params, draw_waves(key, 20_000), noise))
    found = jax.tree.map(np.asarray, measure(state.params, jax.random.key(2), jax.random.key(3)))
    log = records.load(folder)
    report = {
        "library": records.__file__,
        "targets_nats": TARGETS,
        "rates_nats": found.rates.mean(axis=0).tolist(),
        "rates_nats_standard_error": (found.rates.std(axis=0) / np.sqrt(len(found.rates))).tolist(),
        "betas": state.beta_state.betas.tolist(),
        "log": {name: values.shape for name, values in log.items()},
        "last_logged_rates_nats": log["rates_nats"][-1].tolist(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
