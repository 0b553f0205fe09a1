"""One GHVAE for every beta on CIFAR-10 (32×32×3), for as long as one published model: 200 epochs.

Shows: the published grid of 441 models as one. With 10 epochs (JPEG copies, test split, mean of three seeds)
D + Σ β_l R_l is lower than that of nine models of 10 epochs at each of their betas, by 9 nats in the mean and
1 at least. See the results, "One model for every beta".
Data: as experiments/cifar.py says.
Command: python -m experiments.run --config=experiments/cifar_conditioned.py
"""

from ml_collections import ConfigDict

from experiments import cifar, fashion_conditioned


def get_config() -> ConfigDict:
    """The published settings for colour images, with the recipe of fashion_conditioned.py."""
    config = cifar.get_config().unlock()
    told = fashion_conditioned.get_config().to_dict()
    fields = {"model": ["conditioning"], "objective": ["beta_range", "warmup_fraction"]}
    fields["training"] = [name for name in told["training"] if name.startswith(("batch", "learning_rate"))]
    config.update({group: {name: told[group][name] for name in names} for group, names in fields.items()})
    return config.lock()
