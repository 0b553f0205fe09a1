"""Hierarchical VAEs with a multiplier and a logged rate for every latent layer."""

from hvae_jax.betas import BetaControl, BetaState, constant, linear_warmup
from hvae_jax.categorical import Categorical, Relaxation
from hvae_jax.controls import target_distortion, target_rates
from hvae_jax.errors import RunError
from hvae_jax.gaussian import Gaussian, kl_divergence
from hvae_jax.likelihoods import Bernoulli, GaussianPixels, LogisticMixture
from hvae_jax.mixture import Mixture
from hvae_jax.models.hierarchy import Hierarchy
from hvae_jax.models.hvae import HVAE, ModelConfig, make_hvae
from hvae_jax.objective import LayerwiseTerms, bits_per_dim, layerwise_elbo

__all__ = [
    "HVAE",
    "Bernoulli",
    "BetaControl",
    "BetaState",
    "Categorical",
    "Gaussian",
    "GaussianPixels",
    "Hierarchy",
    "LayerwiseTerms",
    "LogisticMixture",
    "Mixture",
    "ModelConfig",
    "Relaxation",
    "RunError",
    "bits_per_dim",
    "constant",
    "kl_divergence",
    "layerwise_elbo",
    "linear_warmup",
    "make_hvae",
    "target_distortion",
    "target_rates",
]
