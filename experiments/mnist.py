"""The reference two-layer GHVAE on MNIST binarised by rounding (28×28, 122,713 parameters).

Shows: the published experiment on binary images: q(z_2|x), q(z_1|z_2, x) and the generative model
p(z_2) p(z_1|z_2) p(x|z_1) of Xiao and Bamler (2023), Bernoulli likelihood, Adam 3e-4, batch 256.
Data: TFDS `mnist`, prepared once (the error of a first run gives the command).
Command: python -m experiments.run --config=experiments/mnist.py
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    """Every field, with its published value where there is one."""
    config = ConfigDict(
        {
            "data": {
                "name": "mnist",
                "data_dir": "",  # the default of TensorFlow Datasets
                "binarize": "round",
                "num_valid": 5000,
                "split_seed": 0,
                "streaming": "auto",  # splits of more than 1 GiB
                "num_workers": 2,
                "check_values": True,  # refuse images that are not bytes from 0 to 255
                "side": FieldReference(None, field_type=int),  # of a folder of images: scales squares of them
            },
            "model": {
                "inference": "generalized_top_down",
                "latent_shapes": ((4, 4, 16), (20,)),
                "channels": 16,
                "num_stages": 3,
                "likelihood": "bernoulli",
                "likelihood_std": 1.0,
                "num_mixture_components": 10,
                "compute_dtype": "float32",
                "remat": False,
                "blocks_by_side": (),  # of inference="deep"
                "latent_kinds": (),  # all Gaussian; or one for each layer, the last may be "categorical"
                "gumbel_hard": False,  # of training with a categorical layer, as the next
                "gumbel_schedule": (0.007, 0.4),  # temperature max(exp(-0.007 epoch), 0.4)
                "top_prior": "standard",
                "num_prior_components": 10,  # of top_prior="mixture"
                "conditioning": "none",  # or one network for all betas: "scale_shift", "gates"
            },
            "objective": {
                "betas": (1.0, 1.0),
                "warmup_fraction": 0.0,
                "control": "constant",
                "targets_nats": (),  # rates to solve the betas for; or in one of the next two units
                "targets_bits": (),
                "targets_bits_per_dim": (),
                "target_kinds": (),
                "target_shares": (),
                "beta_bounds": (1e-3, 1e3),
                "pi_gains": (0.01, 1e-4),  # of control="pi"
                "beta_groups": FieldReference("", field_type=object),  # "sides", or ranges of layers
                "free_nats": (),
                "beta_range": (),  # of a conditioned model
                "marked_betas": (),
            },
            "training": {
                "seed": 0,
                "order_seed": 0,
                "num_epochs": 200.0,
                "batch_size": 256,
                "micro_batch": 0,  # chosen for the platform
                "learning_rate": 3e-4,
                "learning_rate_decay_fraction": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "max_grad_norm": 0.0,
                "ema_decay": 0.0,
                "log_every_steps": 100,
                "eval_every_steps": 1000,
                "checkpoint_every_steps": 1000,
                "num_checkpoints": 3,
                "weight_decay": 0.0,
                "learning_rate_warmup_steps": 0,
                "skip_grad_norm": 0.0,  # leaves out no step
            },
            "evaluation": {
                "num_samples": 10,
                "num_importance_samples": 100,
            },
        }
    )
    return config.lock()
