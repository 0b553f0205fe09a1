"""Fashion-MNIST (28×28, binarised) with rates asked for: a quarter of the reference's channels, six epochs.

Shows: the same gains as on digits, on other images and another network.
`python -m experiments.targets_table --config=experiments/fashion_targets.py --out=FILE` asks for many.
Data: as experiments/fashion.py says.
Command: python -m experiments.run --config=experiments/fashion_targets.py
"""

from ml_collections import ConfigDict

from experiments import fashion


def get_config() -> ConfigDict:
    """The Fashion-MNIST run made small enough for a hundred of them, with targets."""
    config = fashion.get_config().unlock()
    config.update(
        {
            # All images but those of the test split: few epochs, so nothing is learned by heart.
            "data": {"num_valid": 0},
            "model": {"channels": 4, "latent_shapes": ((4, 4, 8), (20,))},
            "objective": {"control": "target_rates", "targets_nats": (12.0, 6.0)},
            "training": {
                "num_epochs": 6.0,
                "batch_size": 64,
                "learning_rate": 2e-3,
                "learning_rate_decay_fraction": 0.9,
            },
            # Per image of the training split, of which there are 60,000.
            "evaluation": {"num_samples": 1},
        }
    )
    return config.lock()
