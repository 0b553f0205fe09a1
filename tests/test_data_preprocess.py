"""What turns stored images into a model's input."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import error_of

from hvae_jax.data import BINARIZE, make_preprocess

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)


def make_keys(num: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num)


@pytest.mark.parametrize("binarize", BINARIZE)
@pytest.mark.parametrize("jit", [False, True])
def test_preprocess_gives_float32_in_the_unit_interval(binarize: str, jit: bool) -> None:
    preprocess = jax.jit(make_preprocess(binarize)) if jit else make_preprocess(binarize)
    x = preprocess(make_keys(4), jnp.asarray(EVERY_VALUE))
    assert (x.shape, x.dtype) == ((4, 8, 8, 1), jnp.float32)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert float(x.ravel()[0]) == 0.0
    assert float(x.ravel()[255]) == 1.0
    assert set(np.unique(x)) == {0.0, 1.0} or binarize == "none"


def test_none_divides_by_255() -> None:
    x = jax.jit(make_preprocess("none"))(make_keys(4), jnp.asarray(EVERY_VALUE))
    np.testing.assert_array_max_ulp(np.asarray(x), EVERY_VALUE.astype(np.float32) / np.float32(255), maxulp=1)


def test_round_is_the_nearest_of_zero_and_one() -> None:
    x = make_preprocess("round")(make_keys(4), jnp.asarray(EVERY_VALUE))
    np.testing.assert_array_equal(x, np.round(EVERY_VALUE / 255))
    np.testing.assert_array_equal(x.ravel()[jnp.array([0, 127, 128, 255])], [0, 0, 1, 1])


def test_none_and_round_ignore_keys() -> None:
    images = jnp.asarray(EVERY_VALUE)
    for binarize in ("none", "round"):
        first, second = (make_preprocess(binarize)(make_keys(4, seed), images) for seed in (0, 1))
        np.testing.assert_array_equal(first, second)


def test_sample_has_the_mean_of_the_image() -> None:
    num_draws = 20000  # enough to tell 254 / 255 from 254 / 256
    values = np.array([0, 1, 25, 64, 127, 128, 200, 254, 255], np.uint8).reshape(1, 3, 3, 1)
    preprocess = jax.jit(make_preprocess("sample"))
    x = preprocess(make_keys(num_draws), jnp.asarray(np.repeat(values, num_draws, 0)))
    mean, probs = np.asarray(x, np.float64).mean(0), values[0] / 255
    assert np.all(np.abs(mean - probs) <= 5 * np.sqrt(probs * (1 - probs) / num_draws))


def test_sample_draws_pixels_and_images_independently() -> None:
    num_images = 500
    grey = jnp.full((num_images, 2, 2, 3), 128, jnp.uint8)
    x = np.asarray(jax.jit(make_preprocess("sample"))(make_keys(num_images), grey)).reshape(num_images, 12)
    correlations = np.corrcoef(x.T)[np.triu_indices(12, 1)]  # each about N(0, 1 / num_images)
    assert np.abs(correlations).max() < 5 / math.sqrt(num_images)
    neighbours = np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(x[1:].size)


def test_sample_belongs_to_an_image_and_its_key() -> None:
    preprocess, keys, images = jax.jit(make_preprocess("sample")), make_keys(4), EVERY_VALUE
    x = np.asarray(preprocess(keys, images))
    np.testing.assert_array_equal(preprocess(keys, images), x)
    np.testing.assert_array_equal(preprocess(keys[2:3], images[2:3]), x[2:3])
    np.testing.assert_array_equal(preprocess(keys[::-1], images[::-1]), x[::-1])
    assert np.any(preprocess(make_keys(4, seed=1), images) != x)


def test_preprocess_names_what_is_allowed() -> None:
    message = error_of(lambda: make_preprocess("threshold"))
    assert re.fullmatch(r"config\.data\.binarize='threshold': must be one of none, round, sample", message)
