"""One GHVAE for every beta on Fashion-MNIST, with three seeds: packed, as a grid of one point.

Data: as experiments/fashion.py says.
Command: python -m experiments.grid --config=experiments/fashion_conditioned_grid.py
"""

from ml_collections import ConfigDict

from experiments import digits_conditioned_grid, fashion_conditioned


def get_config() -> ConfigDict:
    """The single model's config, and which seeds."""
    config = fashion_conditioned.get_config().unlock()
    config.update({"grid": digits_conditioned_grid.get_config().to_dict()["grid"]})
    return config.lock()
