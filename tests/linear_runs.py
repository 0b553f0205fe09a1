"""Short training runs of the linear-Gaussian model."""

import dataclasses

import linear_gaussian
from linear_gaussian import identity

from hvae_jax import betas, records, training
from hvae_jax.training import batches

CONFIG = linear_gaussian.training_config()


def train_linear(
    folder, config=CONFIG, images=None, start_betas=(1.0, 1.0), reports=(), stop_requested=lambda: False
):
    control = betas.constant()
    state = training.init_state(linear_gaussian.init_params(), start_betas, control, config)
    return training.train(
        records.open_run(folder, {"betas": list(start_betas)}),
        state,
        linear_gaussian.terms_fn,
        batches.ResidentBatches(linear_gaussian.data(8192) if images is None else images, config),
        preprocess_fn=identity,
        control=control,
        config=config,
        reports=reports,
        stop_requested=stop_requested,
    )


def short(num_steps: int, **changes) -> training.TrainingConfig:
    """`num_steps` steps over 64 images in batches of 16, a log row and a checkpoint every 5."""
    defaults = {
        "num_epochs": num_steps / 4,
        "batch_size": 16,
        "log_every_steps": 5,
        "eval_every_steps": 5,
        "checkpoint_every_steps": 5,
    }
    return dataclasses.replace(CONFIG, **{**defaults, **changes})
