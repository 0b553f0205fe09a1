"""The nearest training image of samples: whether a model has learned images by heart."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.data.pixels import to_bytes
from hvae_jax.keys import make_key
from hvae_jax.models.convolution_products import precision
from hvae_jax.training import PreprocessFn
from hvae_jax.training.split_evaluator import SplitEvaluator

# Training images at a time.
ROWS = 1024
# How far a value may be from n / 255 to be kept as the byte n.
_BYTE_ERROR = 1e-4


class Neighbours:
    """Training images, in whose nearness to others one is interested.

    Which is nearest is decided in float32, by |a|² + |b|² − 2ab of values about the mean image. Of two images
    that are as near but for the rounding of that, less than 10⁻⁵ (|a| + |b|)², either may be found. Distances
    are then those of the two images in float64.
    """

    def __init__(self, images: np.ndarray) -> None:
        """`images`: `[N, ...]`, pixels in [0, 1], or bytes that stand for n / 255; onto the device."""
        self.images = images
        self._shape = images.shape[1:]
        flat = images.reshape(len(images), -1)
        self._scale = 1 / 255 if images.dtype == np.uint8 else 1.0
        self._center = (flat.mean(axis=0, dtype=np.float64) * self._scale).astype(np.float32)
        num_tiles = -(-len(flat) // ROWS)
        # The last tile is filled up with copies of the last image, which come after it.
        index = np.minimum(np.arange(num_tiles * ROWS), len(flat) - 1).reshape(num_tiles, ROWS)
        self._tiles = jnp.stack([jnp.asarray(flat[rows]) for rows in index])
        self._find = jax.jit(_find)

    def __len__(self) -> int:
        return len(self.images)

    def nearest(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each image's nearest training image, by Euclidean distance of pixels; the first of equals.

        Args:
          images: `[N', ...]`, pixels in [0, 1].

        Returns:
          its index `[N']` and its distance `[N']`.

        Raises:
          ValueError: images of another shape.
        """
        if images.shape[1:] != self._shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self._shape))}], got {images.shape}")
        flat = np.asarray(images, np.float32).reshape(len(images), -1)
        index = np.asarray(self._find(flat, self._tiles, self._center, np.float32(self._scale)))
        found = self.images[index].reshape(flat.shape).astype(np.float64) * self._scale
        return index, np.sqrt(np.square(flat - found).sum(axis=1))

    def as_bytes(self, index: np.ndarray) -> np.ndarray:
        """Some of the images, uint8."""
        images = self.images[index]
        return images if images.dtype == np.uint8 else to_bytes(images)


def of_split(images: np.ndarray, preprocess_fn: PreprocessFn) -> Neighbours:
    """Of training images `[N, ...]` as the models see them, bytes where these are bytes over 255."""

    def as_bytes(_: object, x: jax.Array, __: jax.Array) -> tuple[jax.Array, jax.Array]:
        rounded = jnp.clip(jnp.round(x * 255), 0, 255)
        error = jnp.abs(x - rounded / 255).max(axis=tuple(range(1, x.ndim)))
        return rounded.astype(jnp.uint8), error

    split = SplitEvaluator(images, preprocess_fn)
    pixels, error = split.map_images(as_bytes, (), make_key(0))
    if error.max() > _BYTE_ERROR:
        pixels = split.map_images(lambda _, x, __: x.astype(jnp.float32), (), make_key(0))
    return Neighbours(pixels)


def _find(images: jax.Array, tiles: jax.Array, center: jax.Array, scale: jax.Array) -> jax.Array:
    """Index of the nearest of tiles `[T, ROWS, D]` for images `[N, D]`."""
    images = images - center[None]

    def one_tile(best: tuple[jax.Array, jax.Array], tile: tuple[jax.Array, jax.Array]):
        pixels = tile[0].astype(jnp.float32) * scale - center[None]
        products = jnp.matmul(images, pixels.T, precision=precision(images.dtype))
        distance = jnp.square(pixels).sum(axis=1)[None] - 2 * products  # but for |image|²
        place, least = distance.argmin(axis=1), distance.min(axis=1)
        is_nearer = least < best[0]
        index = jnp.where(is_nearer, tile[1] + place, best[1])
        return (jnp.where(is_nearer, least, best[0]), index), None

    starts = ROWS * jnp.arange(len(tiles))
    begin = jnp.full(len(images), math.inf), jnp.zeros(len(images), starts.dtype)
    (_, index), _ = jax.lax.scan(one_tile, begin, (tiles, starts))
    return index
