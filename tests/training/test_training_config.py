"""Fields of config.training that cannot be."""

import math

import pytest
from linear_runs import short

from hvae_jax.errors import RunError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("micro_batch", -1),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("num_epochs", 0.0),
        ("b1", 1.0),
        ("ema_decay", 1.5),
        ("max_grad_norm", -1.0),
        ("weight_decay", -1.0),
        ("learning_rate_warmup_steps", 0.5),
        ("skip_grad_norm", -1.0),
        ("eval_every_steps", 7),
        ("checkpoint_every_steps", 0),
        ("seed", -1),
        ("order_seed", -1),
    ],
)
def test_a_training_field_out_of_range_is_named(field, value):
    with pytest.raises(RunError, match=f"config.training.{field}={value}"):
        short(5, **{field: value})


def test_devices_must_divide_the_batch():
    with pytest.raises(RunError, match=r"batch_size=16 cannot be divided over 3 devices"):
        short(5).check_devices(3)


def test_micro_batches_must_divide_what_a_device_takes():
    short(5, micro_batch=4).check_devices(4)
    with pytest.raises(
        RunError, match=r"micro_batch=8 does not divide the 4 images .*batch_size=16, 4 devices"
    ):
        short(5, micro_batch=8).check_devices(4)


def test_less_than_one_batch_is_refused():
    with pytest.raises(RunError, match=r"num_epochs=0\.25 over 32 images is less than one batch"):
        short(1).num_steps(32)
