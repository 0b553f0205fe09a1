"""Passes over a split in parts: what comes back does not depend on how many there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvae_jax.data.stored import HostArray
from hvae_jax.keys import make_key
from hvae_jax.training import split_evaluator
from hvae_jax.training.split_evaluator import SplitEvaluator, StackEvaluator
from hvae_jax.training.stacks import Packed

IMAGES = np.random.default_rng(0).integers(0, 256, (1000, 4, 4, 1), np.uint8)
ROWS = np.asarray([0, 3, 255, 256, 700, 998, 999])


def preprocess(keys, images):
    noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys)
    return jnp.asarray(images, jnp.float32) + noise


def both(scale, x, keys):
    """A number of every image, and pixels of some."""
    return scale * x.mean(axis=(1, 2, 3)), {"pixels": x, "draw": jax.vmap(jax.random.uniform)(keys)}


def shared_fn(both_params, x, keys):
    scale, shift = both_params
    return both(scale, x + shift, keys)


@pytest.fixture(params=["resident", "streamed"])
def images(request):
    return IMAGES if request.param == "resident" else HostArray(IMAGES)


def test_parts_give_what_one_pass_gives(images, monkeypatch):
    scale, key = jnp.float32(2.0), make_key(1)
    whole_mean, whole = SplitEvaluator(IMAGES, preprocess).map_images(both, scale, key, np.arange(1000))
    assert whole["pixels"].shape == (1000, 4, 4, 1)
    plain = SplitEvaluator(IMAGES, preprocess).map_images(lambda *args: both(*args)[0], scale, key)
    np.testing.assert_allclose(plain, whole_mean, rtol=1e-6)
    # Of 256 images at a time: three parts and a last one that begins within the third.
    monkeypatch.setattr(split_evaluator, "OUTPUT_BYTES", 256 * 80)
    mean, some = SplitEvaluator(images, preprocess).map_images(both, scale, key, ROWS)
    np.testing.assert_allclose(mean, whole_mean, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[ROWS]), some, whole)


def test_parts_of_a_stack_give_what_its_models_give_alone(images, monkeypatch):
    monkeypatch.setattr(split_evaluator, "OUTPUT_BYTES", 3 * 256 * 80)
    layout, scales = Packed(3), np.asarray([1.0, 2.0, -1.0], np.float32)
    stack = StackEvaluator(images, preprocess, layout)
    means, some = stack.map_images(
        shared_fn, layout.put(scales), np.asarray([1, 1, 5]), 3, shared=np.float32(0.5), rows=ROWS
    )
    for number, (scale, seed) in enumerate(zip(scales, (1, 1, 5), strict=True)):
        alone = SplitEvaluator(IMAGES, preprocess)
        mean, of_some = alone.map_images(shared_fn, (scale, np.float32(0.5)), make_key(seed), ROWS)
        np.testing.assert_array_equal(means[number], mean)
        jax.tree.map(lambda a, b, n=number: np.testing.assert_array_equal(a[n], b), some, of_some)
