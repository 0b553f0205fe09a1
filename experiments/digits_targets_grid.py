"""A grid of 4 × 4 target rates of the small GHVAE on digits: a map that is even in rate space.

Shows: models where you ask for them. An even grid of betas crowds where a layer is nearly empty and is
thin elsewhere; here R_1 and R_2 are 5, 10, 15 and 20 nats, and
`figures/target_map.png` shows what the models reached.
Command: python -m experiments.grid --config=experiments/digits_targets_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid, digits_targets

TARGETS = (5.0, 10.0, 15.0, 20.0)


def get_config() -> ConfigDict:
    """The digits run that asks for rates, and which rates."""
    config = digits_targets.get_config().unlock()
    grid = {**cifar_grid.get_config().to_dict()["grid"], "betas": (), "targets_nats": (TARGETS, TARGETS)}
    config.update({"grid": grid})
    return config.lock()
