"""Digits with a categorical top layer: one variable with ten values over a 2×2 map.

Command: python -m experiments.run --config=experiments/digits_categorical.py
"""

from ml_collections import ConfigDict

from experiments import digits


def get_config() -> ConfigDict:
    """The digits' config with ten values for z_2."""
    config = digits.get_config().unlock()
    config.update(
        {
            "model": {
                "latent_shapes": ((2, 2, 16), (10,)),
                "latent_kinds": ("gaussian", "categorical"),
            },
        }
    )
    return config.lock()
