"""A small two-layer GHVAE on scikit-learn's 8×8 digits, binarised: the whole path, offline, in a minute.

Shows: a rate for each layer, and how a beta moves it. Add `--config.objective.betas="(1.0,4.0)"
--workdir=runs/digits_beta_2_is_4` and the rate of z_2 falls while that of z_1 rises.
Command: python -m experiments.run --config=experiments/digits.py
"""

from ml_collections import ConfigDict

from experiments import mnist


def get_config() -> ConfigDict:
    """The MNIST reference, cut down to images of 8×8."""
    config = mnist.get_config().unlock()
    config.update(
        {
            "data": {"name": "digits", "num_valid": 180},
            "model": {"latent_shapes": ((2, 2, 16), (8,)), "num_stages": 2},
            "training": {
                "num_epochs": 150.0,
                "batch_size": 64,
                "learning_rate": 2e-3,
                "eval_every_steps": 500,
                "checkpoint_every_steps": 500,
            },
        }
    )
    return config.lock()
