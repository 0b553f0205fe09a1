"""A grid of 4 × 4 target rates on Fashion-MNIST (28×28, binarised): the map of digits on other images.

Shows: models evenly spread in rate space, R_1 and R_2 of 5, 10, 15 and 20 nats each;
`figures/target_map.png` shows what they reached.
Data: as experiments/fashion.py says.
Command: python -m experiments.grid --config=experiments/fashion_targets_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid, digits_targets_grid, fashion_targets


def get_config() -> ConfigDict:
    """The Fashion-MNIST run that asks for rates, and which rates."""
    config = fashion_targets.get_config().unlock()
    targets = digits_targets_grid.TARGETS
    grid = {**cifar_grid.get_config().to_dict()["grid"], "betas": (), "targets_nats": (targets, targets)}
    config.update({"grid": grid})
    return config.lock()
