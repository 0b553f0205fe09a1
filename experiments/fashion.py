"""The reference two-layer GHVAE on Fashion-MNIST binarised by rounding (28×28, 122,713 parameters).

Data: the four gzipped IDX files, as Debian's package dataset-fashion-mnist installs them; for another
folder give `--config.data.name=idx:FOLDER`, for TFDS's copy `--config.data.name=fashion_mnist`.
Command: python -m experiments.run --config=experiments/fashion.py
"""

from ml_collections import ConfigDict

from experiments import mnist


def get_config() -> ConfigDict:
    """The MNIST reference on other images and for fewer epochs."""
    config = mnist.get_config().unlock()
    config.update(
        {"data": {"name": "idx:/usr/share/datasets/fashion-mnist"}, "training": {"num_epochs": 10.0}}
    )
    return config.lock()
