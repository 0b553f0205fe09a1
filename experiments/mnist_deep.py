"""A deep hierarchy on MNIST, binarised by sampling: 9 layers on maps of 7 and 1 pixels a side.

Shows: VDVAE's network narrow enough for two cores, with patches of 4 × 4 pixels; 751,760 parameters. A
gradient takes 4.4 CPU milliseconds an image, so an epoch about 4 CPU minutes (maps of 14 × 14, with half the
channels: 10). On the test split −ELBO is 84.98 ± 0.21 nats, −log p(x) ≤ 82.26 (seed 0); two layers have 104.9
and 97.1 after 12 epochs (see the results, "Depth: MNIST").
Data: TFDS `mnist`, prepared once (the error of a first run gives the command).
Command: python -m experiments.run --config=experiments/mnist_deep.py
"""

from ml_collections import ConfigDict

from experiments import mnist

LAYERS_BY_SIDE = ((7, 6), (1, 3))  # z_1 first


def get_config() -> ConfigDict:
    """The MNIST reference with a deep network."""
    config = mnist.get_config().unlock()
    latent_shapes = tuple((side, side, 8) for side, num in LAYERS_BY_SIDE for _ in range(num))
    config.update(
        {
            "data": {"binarize": "sample"},
            "model": {
                "inference": "deep",
                "latent_shapes": latent_shapes,
                "blocks_by_side": ((7, 4), (1, 2)),
                "channels": 128,
            },
            "objective": {"betas": (1.0,) * len(latent_shapes)},
            "training": {
                "num_epochs": 25.0,
                "batch_size": 64,
                "learning_rate": 1e-3,
                "learning_rate_decay_fraction": 0.7,
                "learning_rate_warmup_steps": 300,
                "max_grad_norm": 200.0,
                "ema_decay": 0.999,
            },
        }
    )
    return config.lock()
