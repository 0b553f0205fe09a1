"""The published SVHN experiment: the CIFAR-10 model and settings on `svhn_cropped`.

The official train and test splits of SVHN are not drawn from one distribution (SVHN-Remix,
arXiv 2312.02168): say which split a number is on. The `extra` split is not used.
Data: TFDS `svhn_cropped`, prepared once (the error of a first run gives the command).
Command: python -m experiments.run --config=experiments/svhn.py
"""

from ml_collections import ConfigDict

from experiments import cifar


def get_config() -> ConfigDict:
    """The CIFAR-10 experiment on other images."""
    config = cifar.get_config().unlock()
    config.update({"data": {"name": "svhn_cropped"}})
    return config.lock()
