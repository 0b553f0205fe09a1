"""Digits with rates asked for instead of betas: 12 nats in z_1 and 6 in z_2.

Shows: the betas are solved for during training. `evaluation.json` holds `targets_nats`, the rates of
every split at the end and whether each target was reached; `figures/targets.png` the way there. Ask for
others with `--config.objective.targets_nats="(3.0,20.0)" --workdir=DIR`.
Command: python -m experiments.run --config=experiments/digits_targets.py
"""

from ml_collections import ConfigDict

from experiments import digits


def get_config() -> ConfigDict:
    """The digits run, twice as long, with targets and a learning rate that comes to rest, and so do rates."""
    config = digits.get_config().unlock()
    config.update(
        {
            # Pixels drawn anew at every step: 1,257 images, always the same, would be learned by heart,
            # and the test rates would differ from those that the control sees.
            "data": {"binarize": "sample"},
            "objective": {"control": "target_rates", "targets_nats": (12.0, 6.0)},
            "training": {"num_epochs": 300.0, "learning_rate_decay_fraction": 0.9},
            # Few images: with 10 passes, the noise of the evaluation alone is 0.2 % of a rate of one nat.
            "evaluation": {"num_samples": 30},
        }
    )
    return config.lock()
