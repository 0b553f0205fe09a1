"""Controls of the betas: the closed-form oracle, then what each promises."""

import linear_gaussian
import numpy as np
import pytest

from hvae_jax import betas, records, training
from hvae_jax.training import TrainingConfig

ONES = (1.0, 1.0)
BOUNDS = ((1e-3, 1e-3), (1e3, 1e3))
CONFIG = TrainingConfig(
    seed=0,
    num_epochs=600.0,
    batch_size=1024,
    learning_rate=1e-2,
    learning_rate_decay_fraction=0.5,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    max_grad_norm=0.0,
    ema_decay=0.0,
    log_every_steps=400,
    eval_every_steps=4800,
    checkpoint_every_steps=4800,
    num_checkpoints=1,
)


def train_linear(folder, control, config=CONFIG):
    """Trains inference on the linear-Gaussian model, from betas of one."""
    images = linear_gaussian.data(8192)
    return training.train(
        records.open_run(folder, {}),
        training.init_state(linear_gaussian.init_params(), ONES, control, config),
        linear_gaussian.terms_fn,
        images,
        preprocess_fn=lambda keys, images: images,
        control=control,
        config=config,
    )


@pytest.fixture(scope="module")
def decay():
    return betas.linear_decay(2400, 4800)


@pytest.mark.parametrize("wanted", [(0.3, 2.0), (3.0, 0.5), (0.5, 0.7)])
def test_asked_for_closed_form_rates_it_finds_their_betas(tmp_path, decay, wanted):
    targets = linear_gaussian.optimum(wanted).rates
    state = train_linear(tmp_path, betas.target_rates(targets, *BOUNDS, decay))
    np.testing.assert_allclose(state.beta_state.betas, wanted, rtol=0.01)
