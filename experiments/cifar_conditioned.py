"""One GHVAE for every beta on CIFAR-10 (32×32×3), for as long as one published model: 200 epochs.

Shows: the published grid of 441 models as one. Not yet measured.
Data: as experiments/cifar.py says.
Command: python -m experiments.run --config=experiments/cifar_conditioned.py
"""

from ml_collections import ConfigDict

from experiments import cifar, fashion_conditioned


def get_config() -> ConfigDict:
    """The published settings for colour images, with the recipe of fashion_conditioned.py."""
    config = cifar.get_config().unlock()
    told = fashion_conditioned.get_config()
    config.model.conditioning = told.model.conditioning
    config.objective.beta_range = told.objective.beta_range
    config.objective.warmup_fraction = told.objective.warmup_fraction
    config.training.learning_rate_decay_fraction = told.training.learning_rate_decay_fraction
    return config.lock()
