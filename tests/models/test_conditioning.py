"""Networks that are told the betas: how they begin, what one image's betas change, what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvae_jax.models import conditioning
from hvae_jax.models.config import CONDITIONING, DEEP, ModelConfig
from hvae_jax.models.hvae import make_hvae

KEY = jax.random.key(0)


@pytest.mark.long
@pytest.mark.parametrize("inference", ["generalized_top_down", "ladder", DEEP])
def test_they_begin_as_networks_that_are_not_told_and_each_image_has_its_own_betas(make_config, inference):
    plain = make_hvae(make_config(inference=inference), (8, 8, 1))
    told = make_hvae(make_config(inference=inference, conditioning="scale_shift"), (8, 8, 1))
    x = jax.random.uniform(KEY, (2, 8, 8, 1))
    keys = jax.random.split(KEY, 2)
    apply: Any = told.apply

    def all_terms(betas: jax.Array) -> Any:
        params = told.init(KEY, x, KEY)
        own = told.apply(conditioning.at(params, betas[0]), x, keys)
        moved = jax.tree.map(lambda leaf: leaf + 0.05, params)
        return plain.apply(plain.init(KEY, x, KEY), x, keys), own, apply(moved, x, keys, betas=betas)

    terms = jax.jit(all_terms)
    plain_terms, first, moved = terms(jnp.array([[0.1, 5.0], [2.0, 0.3]]))
    jax.tree.map(np.testing.assert_array_equal, plain_terms, first)
    *_, other = terms(jnp.array([[0.1, 5.0], [9.0, 9.0]]))
    for one, two in zip(moved, other, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        assert (np.asarray(one[1]) != np.asarray(two[1])).all()


def test_the_sizes_are_counted_by_hand_and_no_weight_is_added_without_conditioning():
    sizes = (((4, 4, 16), (20,)), 16, 3)
    x = jnp.zeros((1, 28, 28, 1))
    num = {}
    for kind in CONDITIONING:
        config = ModelConfig(
            "generalized_top_down", *sizes, "bernoulli", 1.0, 10, "float32", False, conditioning=kind
        )
        params = jax.eval_shape(make_hvae(config, (28, 28, 1)).init, KEY, x, KEY)
        num[kind] = sum(leaf.size for leaf in jax.tree.leaves(params))
    # A gate has a weight per layer and a bias for each of 528 hidden channels and units. A scale and
    # a shift have 64 weights and a bias each; outputs have them too: mean and standard deviation of 20
    # numbers and 16 channels where networks infer, and of 4 × 4 × 16 numbers where they generate.
    mlp = (2 * 64 + 64) + (64 * 64 + 64)
    changes = 2 * (64 + 1) * (528 + 2 * (20 + 16 + 4 * 4 * 16))
    assert num == {
        "none": 122_713,
        "scale_shift": 122_713 + mlp + changes,
        "gates": 122_713 + 528 * (2 + 1),
    }


@pytest.mark.parametrize("kind", [conditioning.Gates, conditioning.GenerativeGates])
def test_gates_are_open_at_the_start_and_have_a_derivative_where_they_close(kind):
    gates = kind(jnp.array([[1.0, -1.0]]))
    is_generating = kind is conditioning.GenerativeGates
    start = conditioning.initial("gates", 2, is_generating)
    assert start is not None
    weights = {"kernel": jnp.zeros((2, 3)), "bias": jnp.full(3, start.bias)}
    h = jnp.ones((1, 4, 4, 3))
    assert (np.asarray(gates.apply(weights, h)) > 0.98).all()
    sign = -1.0 if is_generating else 1.0
    closed = jax.grad(lambda opening: gates.gate(sign * opening).sum())(jnp.array([-30.0, -0.1, 0.0, 30.0]))
    assert np.isfinite(closed).all()
    assert float(gates.gate(jnp.asarray(-30.0 * sign))) < 2e-3


def test_what_is_asked_of_a_conditioned_model_needs_betas_and_of_others_takes_none(make_config):
    told = make_hvae(make_config(conditioning="gates"), (8, 8, 1))
    plain = make_hvae(make_config(), (8, 8, 1))
    x = jnp.zeros((3, 8, 8, 1))
    params = jax.eval_shape(told.init, KEY, x, KEY)

    def shapes(model: Any, *args: Any, **named: Any) -> Any:
        return jax.eval_shape(lambda params: model.apply(params, *args, **named), params)

    asked: list[tuple[tuple[Any, ...], str]] = [
        ((x, KEY), "__call__"),
        ((x, KEY, 1), "terms_above"),
        ((x, KEY), "log_weight"),
        ((x, KEY), "encode"),
        ((x,), "reconstruct"),
        ((KEY, 3), "generate"),
        ((KEY, 3), "sample"),
        ((KEY, 3), "draw"),
        ((x, x, (0.0, 0.5)), "interpolate"),
        ((jnp.zeros((3, 4, 4, 2)),), "decode"),
    ]
    for args, method in asked:
        with pytest.raises(ValueError, match="conditioned on the betas: give betas"):
            shapes(told, *args, method=method)
        each = shapes(told, *args, betas=jnp.ones((3, 2)), method=method)
        assert each == shapes(told, *args, betas=(0.1, 2.0), method=method)
        with pytest.raises(ValueError, match="not conditioned on the betas"):
            shapes(plain, *args, betas=(0.1, 2.0), method=method)
    for betas, message in (((1.0,), r"must be \[2\] or .* \[3, 2\]"), ((0.0, 1.0), "must be positive")):
        with pytest.raises(ValueError, match=message):
            shapes(told, x, KEY, betas=betas)
