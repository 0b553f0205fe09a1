"""A grid of 3 × 3 betas of a deep hierarchy on digits: one for its 8×8 layers, one for its 4×4 layers.

Shows: where a deep network puts its information when the betas of two sides of its maps move; a packed grid
over groups of layers. `figures/rate_maps.png` has their rates over their betas: the cheaper side takes nearly
all (29.3 and 0.0 nats at (0.1, 1), 0.0 and 29.3 at (1, 0.1), test split). 30 epochs are not the end.
Command: python -m experiments.grid --config=experiments/digits_deep_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid, digits_deep

BETAS = (0.1, 0.3, 1.0)


def get_config() -> ConfigDict:
    """The deep network on digits for less long, with a beta per side, that of the 1×1 layers being 1."""
    config = digits_deep.get_config().unlock()
    config.update(
        {
            "objective": {"beta_groups": "sides", "betas": (1.0, 1.0, 1.0)},
            "training": {"num_epochs": 30.0},
            "grid": {**cifar_grid.get_config().to_dict()["grid"], "betas": (BETAS, BETAS, (1.0,))},
        }
    )
    return config.lock()
