"""One small GHVAE for every beta on digits, with three seeds: packed, as a grid of one point.

Shows: what the seed changes. Then a grid of any betas: `python -m experiments.grid
--config=experiments/digits_grid.py --from_model=DIR/models/0000,DIR/models/0001,DIR/models/0002`.
Command: python -m experiments.grid --config=experiments/digits_conditioned_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid, digits_conditioned


def get_config() -> ConfigDict:
    """The single model's config, and which seeds."""
    config = digits_conditioned.get_config().unlock()
    grid = {**cifar_grid.get_config().to_dict()["grid"], "betas": ((1.0,), (1.0,)), "seeds": (0, 1, 2)}
    config.update({"grid": grid})
    return config.lock()
