"""One small GHVAE for every beta on scikit-learn's 8×8 digits: the betas are an input of its networks.

Shows: a map of all trade-offs from one training. Each image draws its own betas, log β_l uniform over the
range; `rates.jsonl` has D and rates at marked betas. Then ask it:
`python -m experiments.ask --workdir=runs/digits_conditioned --targets_nats=12,6`.
Command: python -m experiments.run --config=experiments/digits_conditioned.py
"""

from ml_collections import ConfigDict

from experiments import digits


def get_config() -> ConfigDict:
    """The digits run, told its betas, for as long as three models of digits_grid.py take."""
    config = digits.get_config().unlock()
    config.update(
        {
            "model": {"conditioning": "scale_shift"},
            # 10^±1.1: a bit more than one will ask for. Without the warm-up z_2 is lost at every beta.
            "objective": {"beta_range": (0.08, 12.6), "warmup_fraction": 0.5},
            "training": {
                "num_epochs": 225.0,
                "learning_rate_warmup_steps": 200,
                "learning_rate_decay_fraction": 0.5,
            },
        }
    )
    return config.lock()
