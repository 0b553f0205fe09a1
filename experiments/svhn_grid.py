"""The published grid on SVHN: 21 × 21 betas of the two-layer GHVAE, 441 models.

Data: TFDS `svhn_cropped`; see experiments/svhn.py on its splits.
Command: python -m experiments.grid --config=experiments/svhn_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid


def get_config() -> ConfigDict:
    """The CIFAR-10 grid on other images."""
    config = cifar_grid.get_config().unlock()
    config.update({"data": {"name": "svhn_cropped"}})
    return config.lock()
