import jax.numpy as jnp
import numpy as np
import pytest

from hvae_jax.evaluation import neighbours
from hvae_jax.evaluation.neighbours import Neighbours


def brute_force(images, train):
    images, train = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (images, train))
    return np.sqrt(np.square(images[:, None] - train[None]).sum(axis=2))


def test_nearest_is_found_by_brute_force():
    generator = np.random.default_rng(0)
    train, images = (generator.random((num, 4, 4, 1), np.float32) for num in (70, 9))
    table = brute_force(images, train)
    index, distance = Neighbours(train).nearest(images)
    np.testing.assert_array_equal(index, table.argmin(axis=1))
    np.testing.assert_allclose(distance, table.min(axis=1), rtol=1e-6)
    index, distance = Neighbours(train).nearest(train[3:5])
    assert index.tolist() == [3, 4]
    np.testing.assert_array_equal(distance, 0)
    with pytest.raises(ValueError, match=r"images must be \[N, 4, 4, 1\]"):
        Neighbours(train).nearest(images[:, :2])


def test_what_is_found_among_many_tiles_is_as_near_as_float32_can_tell(monkeypatch):
    """Images that differ in the last digits, far from the mean: the worst that a product can be given."""
    monkeypatch.setattr(neighbours, "ROWS", 16)
    generator = np.random.default_rng(1)
    base = (generator.random((40, 28, 28, 1)) > 0.5).astype(np.float64)
    near = np.clip(np.repeat(base, 5, axis=0) + 1e-4 * generator.normal(size=(200, 28, 28, 1)), 0, 1)
    train = near.astype(np.float32)
    images = np.clip(base + 1e-4 * generator.normal(size=base.shape), 0, 1).astype(np.float32)
    table = brute_force(images, train)
    _, distance = Neighbours(train).nearest(images)
    center = train.mean(axis=0, dtype=np.float64)
    norms = (np.square(a - center).reshape(len(a), -1).sum(axis=1).max() for a in (images, train))
    largest = sum(map(np.sqrt, norms)) ** 2
    assert (np.square(distance) - np.square(table.min(axis=1)) <= 1e-5 * largest).all()


def test_bytes_are_kept_as_bytes_and_other_pixels_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    as_grey = neighbours.of_split(images, lambda _, x: jnp.asarray(x, jnp.float32) / 255)
    np.testing.assert_array_equal(as_grey.images, images)
    assert as_grey.images.dtype == np.uint8
    index, distance = as_grey.nearest(images[:5].astype(np.float32) / 255)
    assert index.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(distance, 0, atol=1e-6)
    np.testing.assert_array_equal(as_grey.as_bytes(np.arange(5)), images[:5])

    as_roots = neighbours.of_split(images, lambda _, x: jnp.sqrt(jnp.asarray(x, jnp.float32) / 255))
    np.testing.assert_allclose(as_roots.images, np.sqrt(images / 255), rtol=1e-6)
    assert as_roots.nearest(np.sqrt(images[7:9] / 255))[0].tolist() == [7, 8]
