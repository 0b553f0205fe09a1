"""A deep hierarchy on scikit-learn's 8×8 digits, binarised: 6 layers on maps of 8, 4 and 1 pixels a side.

Shows: the network of VDVAE, offline, in minutes: a rate for each of six layers, most of which these images
leave empty. Seed 0, test split: −ELBO 18.99 ± 0.20 nats, of which R_3 (the lower 4×4 layer) is 7.77 and all
other rates 0.12 together; the two-layer GHVAE of digits.py has 19.02. 161 CPU seconds, evaluation included.
Command: python -m experiments.run --config=experiments/digits_deep.py
"""

from ml_collections import ConfigDict

from experiments import digits

LAYERS_BY_SIDE = ((8, 2), (4, 2), (1, 2))  # z_1 first


def get_config() -> ConfigDict:
    """The digits' config with a deep network."""
    config = digits.get_config().unlock()
    latent_shapes = tuple((side, side, 4) for side, num in LAYERS_BY_SIDE for _ in range(num))
    config.update(
        {
            "model": {
                "inference": "deep",
                "latent_shapes": latent_shapes,
                "blocks_by_side": ((8, 2), (4, 2), (1, 1)),
                "channels": 32,
            },
            "objective": {"betas": (1.0,) * len(latent_shapes)},
            "training": {"num_epochs": 100.0, "max_grad_norm": 200.0, "ema_decay": 0.99},
        }
    )
    return config.lock()
