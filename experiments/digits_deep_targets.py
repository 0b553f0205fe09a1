"""A deep hierarchy on digits with a rate asked for on each side of its maps: 6, 5 and 2 nats, 8×8 first.

Command: python -m experiments.run --config=experiments/digits_deep_targets.py
"""

from ml_collections import ConfigDict

from experiments import digits_deep


def get_config() -> ConfigDict:
    """The deep network on digits, longer, with a target for each of its three sides."""
    config = digits_deep.get_config().unlock()
    config.update(
        {
            # As in digits_targets: pixels drawn anew, a learning rate that comes to rest, many passes.
            "data": {"binarize": "sample"},
            "objective": {
                "beta_groups": "sides",
                "betas": (1.0, 1.0, 1.0),
                "control": "target_rates",
                "targets_nats": (6.0, 5.0, 2.0),
            },
            "training": {
                "num_epochs": 150.0,
                "learning_rate_decay_fraction": 0.9,
                # The control hears the rates of the network in training, so that one is evaluated.
                "ema_decay": 0.0,
            },
            "evaluation": {"num_samples": 30},
        }
    )
    return config.lock()
