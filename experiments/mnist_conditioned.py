"""One GHVAE for every beta on MNIST binarised by rounding (28×28, 271,625 parameters).

Shows: as experiments/fashion_conditioned.py, on the published data set. Not yet measured.
Data: as experiments/mnist.py says.
Command: python -m experiments.run --config=experiments/mnist_conditioned.py
"""

from ml_collections import ConfigDict

from experiments import fashion_conditioned, mnist


def get_config() -> ConfigDict:
    """The recipe of fashion_conditioned.py on other images."""
    config = fashion_conditioned.get_config().unlock()
    config.update({"data": mnist.get_config().to_dict()["data"]})
    return config.lock()
