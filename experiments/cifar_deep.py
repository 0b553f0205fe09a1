"""VDVAE's network for CIFAR-10: 43 layers of latents on maps of five sides, 39,145,700 parameters.

Shows: a deep hierarchy with a rate for every layer. Logistic mixture of 10, AdamW at 2e-4 with
b = (0.9, 0.9) and weight decay 0.01, 100 warm-up steps, gradients clipped at a norm of 200, steps left
out above 400, averaged parameters. Child (2021) has 2.87 bits per dimension; not run here.
Data: TFDS `cifar10`, prepared once (the error of a first run gives the command). For a GPU.
Command: python -m experiments.run --config=experiments/cifar_deep.py
"""

from ml_collections import ConfigDict

from experiments import cifar

LAYERS_BY_SIDE = ((32, 22), (16, 11), (8, 6), (4, 3), (1, 1))  # the image's side, and z_1, first


def get_config() -> ConfigDict:
    """The CIFAR-10 reference with VDVAE's network and training."""
    config = cifar.get_config().unlock()
    latent_shapes = tuple((side, side, 16) for side, num in LAYERS_BY_SIDE for _ in range(num))
    config.update(
        {
            "model": {
                "inference": "deep",
                "latent_shapes": latent_shapes,
                "blocks_by_side": ((32, 12), (16, 7), (8, 7), (4, 4), (1, 3)),
                "channels": 384,
                "likelihood": "logistic_mixture",
            },
            "objective": {"betas": (1.0,) * len(latent_shapes)},
            "training": {
                "num_epochs": 1600.0,
                "batch_size": 32,
                "learning_rate": 2e-4,
                "b1": 0.9,
                "b2": 0.9,
                "weight_decay": 0.01,
                "learning_rate_warmup_steps": 100,
                "max_grad_norm": 200.0,
                "skip_grad_norm": 400.0,
                "ema_decay": 0.9999,
            },
        }
    )
    return config.lock()
