"""What a config may say of the objective, and what it means."""

import math

import jax.numpy as jnp
import pytest

from experiments import mnist
from hvae_jax.errors import RunError
from hvae_jax.objective_config import ObjectiveConfig


def make(**changes) -> ObjectiveConfig:
    return ObjectiveConfig(**{**mnist.get_config().to_dict()["objective"], **changes})


def with_targets(**changes) -> ObjectiveConfig:
    return make(**{"control": "target_rates", "targets_nats": (20.0, 8.0), **changes})


@pytest.mark.parametrize(
    ("fields", "nats"),
    [
        ({}, (20.0, 8.0)),
        ({"targets_nats": (), "targets_bits": (10.0, 1.0)}, (10.0 * math.log(2), math.log(2))),
        ({"targets_nats": (), "targets_bits_per_dim": (0.5, 0.25)}, (392 * math.log(2), 196 * math.log(2))),
        ({"targets_nats": (28.0,), "target_shares": (0.75, 0.25)}, (21.0, 7.0)),
        ({"targets_nats": (85.0,), "control": "target_distortion"}, (85.0,)),
        ({"targets_nats": (), "control": "constant"}, ()),
    ],
)
def test_targets_in_every_unit_mean_nats(fields, nats):
    config = with_targets(**fields)
    config.check_layers(2)
    assert config.resolve_targets(784) == pytest.approx(nats)


def test_kinds_are_bounds_of_the_beta():
    config = with_targets(
        betas=(1.0, 0.5, 2.0), targets_nats=(9.0, 4.0, 0.0), target_kinds=("equal", "at_most", "free")
    )
    assert config.bounds() == ((1e-3, 0.5, 2.0), (1e3, 1e3, 2.0))


def test_a_distortion_moves_all_betas_to_their_bounds_together():
    config = with_targets(control="target_distortion", targets_nats=(85.0,), betas=(1.0, 4.0))
    assert config.bounds() == (pytest.approx((1e-3, 4e-3)), pytest.approx((250.0, 1e3)))


def test_pi_has_the_gains_of_its_config():
    config = with_targets(control="pi", pi_gains=(0.0, 0.5), beta_bounds=(0.25, 1e3))
    control = config.make_control(100, 784, 0.0)
    state = control.update(control.init(jnp.ones(2)), jnp.zeros(()), jnp.array([22.0, 11.0]))
    assert state.betas.tolist() == [1.25, 1.75]  # each nat too many raises beta by half


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control": "targets"}, r"control='targets' is unknown; choose one of .*target_rates"),
        (
            {"targets_nats": ()},
            r"control='target_rates' needs targets in one unit: give one of .*targets_nats",
        ),
        ({"targets_bits": (1.0, 1.0)}, r"not targets_nats and targets_bits"),
        ({"control": "constant"}, r"targets_nats=\(20\.0, 8\.0\) has no effect with control='constant'"),
        (
            {"control": "constant", "targets_nats": (), "target_shares": (0.5, 0.5)},
            r"target_shares=.* has no effect",
        ),
        ({"targets_nats": (20.0, -1.0)}, r"targets_nats=\(20\.0, -1\.0\) asks for -1\.0 in z_2"),
        ({"targets_nats": (20.0, 0.0)}, r"asks for 0\.0 in z_2; a target rate must be positive"),
        ({"targets_nats": (20.0, math.inf)}, r"must be a tuple of finite numbers"),
        ({"targets_nats": (20.0, "8")}, r"targets_nats=.* must be a tuple of finite numbers"),
        (
            {"target_kinds": ("equal", "most")},
            r"target_kinds=\('equal', 'most'\) must be a tuple with one of",
        ),
        ({"target_kinds": ("free", "free")}, r"leaves nothing to control"),
        ({"target_shares": (0.5, 0.5)}, r"targets_nats=.* must have one entry, the total rate"),
        ({"targets_nats": (9.0,), "target_shares": (0.5, 0.4)}, r"target_shares=.* sum to 1"),
        ({"control": "target_distortion"}, r"targets_nats=.* must have one entry, the distortion"),
        (
            {"control": "target_distortion", "targets_nats": (9.0,), "target_kinds": ("equal", "free")},
            r"target_kinds=.* has no effect with control='target_distortion'",
        ),
        ({"beta_bounds": (0.0, 1.0)}, r"beta_bounds=\(0\.0, 1\.0\) must be two numbers"),
        ({"pi_gains": (0.01,)}, r"pi_gains=\(0\.01,\) must be two numbers"),
        ({"pi_gains": (0.01, 0.0)}, r"pi_gains=\(0\.01, 0\.0\) must be two numbers .* K_i positive"),
        ({"beta_bounds": (2.0, 3.0)}, r"beta_1=1\.0, where the control starts, must lie in .*beta_bounds"),
        ({"warmup_fraction": "no"}, r"warmup_fraction='no' must lie in"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields, message):
    with pytest.raises(RunError, match=message) as caught:
        with_targets(**fields)
    assert str(caught.value).startswith("config.objective.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets_nats": (20.0,)}, r"targets_nats=\(20\.0,\) has 1 entries but the model has 2 layers"),
        ({"target_kinds": ("equal",)}, r"target_kinds=\('equal',\) has 1 entries"),
        ({"targets_nats": (9.0,), "target_shares": (0.5, 0.3, 0.2)}, r"target_shares=.* has 3 entries"),
        ({"betas": (1.0, 1.0, 1.0)}, r"betas=\(1\.0, 1\.0, 1\.0\) has 3 entries"),
    ],
)
def test_there_is_one_target_per_layer(fields, message):
    with pytest.raises(RunError, match=message):
        with_targets(**fields).check_layers(2)
