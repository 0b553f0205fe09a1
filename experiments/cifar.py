"""The published CIFAR-10 experiment: two-layer GHVAE, 32×32×3, 475,811 parameters.

Shows: Gaussian likelihood with fixed σ = 0.71 (so −log p(x|z) is about the squared error plus a
constant), c = 32 channels, 32 dimensions in z_2, Adam 3e-4, batch 256, 200 epochs.
Data: TFDS `cifar10`, prepared once (the error of a first run gives the command).
Command: python -m experiments.run --config=experiments/cifar.py
"""

from ml_collections import ConfigDict

from experiments import mnist


def get_config() -> ConfigDict:
    """The MNIST reference with the published settings for colour images."""
    config = mnist.get_config().unlock()
    config.update(
        {
            "data": {"name": "cifar10", "binarize": "none"},
            "model": {
                "latent_shapes": ((4, 4, 32), (32,)),
                "channels": 32,
                "likelihood": "gaussian_fixed_std",
                "likelihood_std": 0.71,
            },
        }
    )
    return config.lock()
