"""Random keys: of one kind on every device and under every setting, and one per image.

The kind is named, since JAX's default can be changed: threefry gives a key the same numbers in a batch of
any size, which others (`rbg`) do not.
"""

import jax
import jax.numpy as jnp
import numpy as np

IMPLEMENTATION = "threefry2x32"
# Folded into a run's key for all that evaluation draws. Training folds in the step, which never gets so far:
# what judges a model is not the noise that it was trained with.
EVALUATION = 2**32 - 1


def make_key(seed: int | jax.Array) -> jax.Array:
    """A typed key.

    Args:
      seed: in [0, 2**32).

    Raises:
      ValueError: an integer out of that range, which would be another's key.
    """
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {seed}")
    return jax.random.key(seed, impl=IMPLEMENTATION)


def to_data(key: jax.Array) -> jax.Array:
    """A key as plain numbers, uint32, which checkpoints and devices take."""
    return jax.random.key_data(key)


def from_data(data: jax.Array) -> jax.Array:
    """The inverse of `to_data`."""
    return jax.random.wrap_key_data(data, impl=IMPLEMENTATION)


def per_image_keys(key: jax.Array, num_images: int) -> jax.Array:
    """One key per image: noise then belongs to an image, not to the batch it shares.

    Splitting a batch over devices or micro-batches therefore leaves every draw as it was.

    Args:
      key: a typed key (`jax.random.key`), or `[B]` of them, which is returned as it is.
      num_images: B.

    Returns:
      `[B]` typed keys.

    Raises:
      ValueError: an array of keys whose shape is not `[B]`, or no images.
    """
    # A dimension that is a symbol, as of an exported model, is no integer.
    is_counted = isinstance(num_images, int | np.integer)
    if isinstance(num_images, bool | float) or (is_counted and num_images < 1):
        raise ValueError(f"the number of images must be an integer of at least 1, got {num_images!r}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == (num_images,):
            return key
        if key.shape == ():
            return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_images))
    raise ValueError(
        f"key must be one typed key (jax.random.key) or [{num_images}] of them, "
        f"got {key.dtype}{list(key.shape)}"
    )


def fold_in(keys: jax.Array, data: int) -> jax.Array:
    """`jax.random.fold_in` of one integer into each of `[B]` keys."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
