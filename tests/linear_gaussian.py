"""The two-layer linear-Gaussian model whose optimal rates and optimum under betas are closed form.

p(z_2) = N(0, 1), p(z_1|z_2) = N(a z_2, s²), p(x|z_1) = N(b z_1, σ²), all fixed; only inference is
learned. Data with E[x] = 0 and E[x²] = V.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from hvae_jax import gaussian
from hvae_jax.gaussian import Gaussian
from hvae_jax.keys import fold_in, per_image_keys
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import TrainingConfig

A, S, B, SIGMA = 0.8, 0.6, 1.5, 0.5
MATCHED_V = B**2 * (A**2 + S**2) + SIGMA**2


class Optimum(NamedTuple):
    """The terms at the optimum of D + β_1 R_1 + β_2 R_2 over Gaussian inference, nats."""

    distortion: float
    rates: tuple[float, float]


def optimum(betas: tuple[float, float], variance: float = MATCHED_V) -> Optimum:
    beta_1, beta_2 = betas
    precision_1 = 1 / S**2 + B**2 / (SIGMA**2 * beta_1)
    g = B / (SIGMA**2 * beta_1 * precision_1)
    v = beta_2 / beta_1 * (SIGMA**2 * beta_1 + B**2 * S**2)
    precision_2 = 1 + A**2 * B**2 / v
    m = A * B / (v * precision_2)
    error = (1 - A * B * m) ** 2 * variance + A**2 * B**2 / precision_2
    rate_2 = 0.5 * (1 / precision_2 + m**2 * variance - 1 + math.log(precision_2))
    rate_1 = 0.5 * (1 / (precision_1 * S**2) + g**2 * error / S**2 - 1 + math.log(precision_1 * S**2))
    noise = (1 - B * g) ** 2 * error + B**2 / precision_1
    distortion = 0.5 * math.log(2 * math.pi * SIGMA**2) + noise / (2 * SIGMA**2)
    return Optimum(distortion, (rate_1, rate_2))


def init_params() -> dict[str, jax.Array]:
    """An inference model that knows nothing: q(z_2|x) = N(0, 1), q(z_1|z_2, x) = N(0, 1)."""
    return {name: jnp.zeros(()) for name in ("m", "log_std_2", "from_z_2", "from_x", "log_std_1")}


def terms_fn(params: Any, x: jax.Array, key: jax.Array) -> LayerwiseTerms:
    """x `[B, 1]`: what a user's own hand-written model looks like."""
    keys = per_image_keys(key, len(x))
    q_2 = Gaussian(params["m"] * x, jnp.exp(params["log_std_2"]) * jnp.ones_like(x))
    z_2 = gaussian.sample(fold_in(keys, 2), q_2)
    mean_1 = params["from_z_2"] * z_2 + params["from_x"] * x
    q_1 = Gaussian(mean_1, jnp.exp(params["log_std_1"]) * jnp.ones_like(x))
    z_1 = gaussian.sample(fold_in(keys, 1), q_1)
    p_1 = Gaussian(A * z_2, S * jnp.ones_like(x))
    rates = [gaussian.kl_divergence(q_1, p_1), gaussian.kl_divergence(q_2, gaussian.standard(q_2))]
    log_likelihood = gaussian.log_prob(Gaussian(B * z_1, SIGMA * jnp.ones_like(x)), x)
    return LayerwiseTerms(-log_likelihood, jnp.stack(rates, axis=1))


def data(num: int) -> np.ndarray:
    """`[num, 1]` quantiles of N(0, V), scaled so that their mean square is V to the last digit."""
    x = stats.norm.ppf((np.arange(num) + 0.5) / num)
    return (x * math.sqrt(MATCHED_V / np.mean(x**2))).astype(np.float32)[:, None]


def identity(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Stored images are the data themselves."""
    del keys
    return images


def training_config(**changes: Any) -> TrainingConfig:
    """4,800 steps over 8,192 images, which reach the closed-form optimum, with these fields changed."""
    fields = {
        "seed": 0,
        "order_seed": 0,
        "num_epochs": 600.0,
        "batch_size": 1024,
        "micro_batch": 0,
        "learning_rate": 1e-2,
        "learning_rate_decay_fraction": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "max_grad_norm": 0.0,
        "ema_decay": 0.998,
        "log_every_steps": 200,
        "eval_every_steps": 200,
        "checkpoint_every_steps": 200,
        "num_checkpoints": 2,
        "weight_decay": 0.0,
        "learning_rate_warmup_steps": 0,
        "skip_grad_norm": 0.0,
    }
    unknown = changes.keys() - fields.keys()
    assert not unknown, f"no such fields of TrainingConfig: {unknown}"
    return TrainingConfig(**{**fields, **changes})
