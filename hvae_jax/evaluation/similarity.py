"""How far images are from others, pixel by pixel: PSNR and SSIM, in JAX, on values clipped to [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hvae_jax.models.convolution_products import precision

# A mean squared error below this counts as this: 100 dB instead of infinity, so that means exist.
MIN_SQUARED_ERROR = 1e-10
# Of SSIM, for values in [0, 1] (Wang et al., 2004).
_C1, _C2 = 0.01**2, 0.03**2


def psnr(images: ArrayLike, others: ArrayLike) -> jax.Array:
    """Peak signal-to-noise ratio, 10 log10(1 / mean squared error), of each image.

    Args:
      images, others: `[N, H, W, C]`, clipped to [0, 1] first.

    Returns:
      `[N]`, dB, at most 100.

    Raises:
      ValueError: shapes differ.
    """
    x, y = _clipped(images, others)
    error = jnp.square(x - y).mean(axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error, MIN_SQUARED_ERROR))


def ssim(images: ArrayLike, others: ArrayLike) -> jax.Array:
    """Structural similarity of each image: the mean over all windows that lie inside it.

    A window is 7 × 7 as usual, and 3 × 3 for images of less than 16 pixels a side: inside 8 × 8 the usual
    window has four places only. Variances are those of a sample. These are the choices of scikit-image.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.

    Args:
      images, others: `[N, H, W, C]`, clipped to [0, 1] first.

    Returns:
      `[N]`, at most 1; channels are averaged.

    Raises:
      ValueError: shapes differ.
    """
    clipped = _clipped(images, others)
    num_images, height, width, num_channels = clipped[0].shape
    size = 7 if min(height, width) >= 16 else 3
    num = size**2
    # Images and channels last: what CPUs add is then long rows.
    x, y = (jnp.transpose(a, (1, 2, 0, 3)).reshape(height, width, -1) for a in clipped)
    mean_x, mean_y = (_window_sums(a, size) / num for a in (x, y))
    # Of values about ½, whose squares lose fewer digits.
    x, y = x - 0.5, y - 0.5
    of_x, of_y = mean_x - 0.5, mean_y - 0.5
    scale = 1 / (num - 1)
    var_x = (_window_sums(x * x, size) - num * of_x * of_x) * scale
    var_y = (_window_sums(y * y, size) - num * of_y * of_y) * scale
    covariance = (_window_sums(x * y, size) - num * of_x * of_y) * scale
    numerator = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    denominator = (mean_x * mean_x + mean_y * mean_y + _C1) * (var_x + var_y + _C2)
    similarity = (numerator / denominator).mean(axis=(0, 1))
    return similarity.reshape(num_images, num_channels).mean(axis=1)


def _window_sums(a: jax.Array, size: int) -> jax.Array:
    """Sums over all windows inside `[H, W, N]`, `[H − size + 1, W − size + 1, N]`."""
    # As products with matrices of ones and zeros: XLA's windows, and sums of shifted copies, take ten times
    # as long on CPUs.
    down, across = (_band(side, size) for side in a.shape[:2])
    a = jnp.einsum("uh,hwn->uwn", down, a, precision=precision(a.dtype))
    return jnp.einsum("vw,uwn->uvn", across, a, precision=precision(a.dtype))


def _band(side: int, size: int) -> jax.Array:
    """`[side − size + 1, side]`, 1 where a place is in a window."""
    shift = np.arange(side) - np.arange(side - size + 1)[:, None]
    return jnp.asarray((shift >= 0) & (shift < size), jnp.float32)


def _clipped(images: ArrayLike, others: ArrayLike) -> tuple[jax.Array, jax.Array]:
    first, second = (jnp.asarray(a, jnp.float32) for a in (images, others))
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(
            f"images and reconstructions must both be [N, H, W, C], got {first.shape} and {second.shape}"
        )
    return jnp.clip(first, 0.0, 1.0), jnp.clip(second, 0.0, 1.0)
