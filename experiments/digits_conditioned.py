"""One small GHVAE for every beta on scikit-learn's 8×8 digits: the betas are an input of its networks.

Shows: a map of all trade-offs from one training, as long as eight of the 243 models of digits_grid.py: on
the test split of one seed D + Σ β_l R_l is lower than the mean of theirs at 53 of 81 betas, by 0.6 nats in
the mean and 0.9 in the median, and at worst 5.2 higher (β_1 = 1, β_2 = 0.1). Each image draws its own betas,
log β_l uniform over the range; `rates.jsonl` has D and rates at marked betas. Then ask it:
`python -m experiments.ask --workdir=runs/digits_conditioned --targets_nats=12,6`.
Recipe: digits lose z_2 at every beta, for good, when layers begin dear or weights move fast. So z_2 costs
nothing at first, its range opens from its low end over the first 40 % of the steps, and the learning rate
rises over the first quarter.
Command: python -m experiments.run --config=experiments/digits_conditioned.py
"""

from ml_collections import ConfigDict

from experiments import digits


def get_config() -> ConfigDict:
    """The digits run, told its betas."""
    config = digits.get_config().unlock()
    config.update(
        {
            "model": {"conditioning": "scale_shift"},
            # 10^±1.1: a bit more than one will ask for.
            "objective": {"beta_range": (0.08, 12.6), "warmup_fraction": 0.4},
            "training": {
                "num_epochs": 600.0,
                "learning_rate_warmup_steps": 3000,
                "learning_rate_decay_fraction": 0.4,
                "eval_every_steps": 1000,
                "checkpoint_every_steps": 1000,
            },
        }
    )
    return config.lock()
