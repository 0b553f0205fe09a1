"""Convolution and transposed convolution, each in the form that is fastest where it runs.

GPUs and TPUs have native convolutions. On CPUs XLA's are several times slower than a matrix product
of the same size, so there both are written as one matrix product with shifted slices around it.
Values and gradients agree to float tolerance.

Images are `[B, H, W, C]`; kernels are `[K, K, C_in, C_out]` for both. A transposed convolution is the
adjoint of the convolution with the same stride and padding, as in PyTorch's ConvTranspose2d.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

# Below this a block of pixels is too narrow to make up for the copy that lays it out.
MIN_BLOCK_CHANNELS = 8

_ONLY_PRODUCTS = contextvars.ContextVar("only_products", default=False)


@contextlib.contextmanager
def as_products() -> Iterator[None]:
    """What is traced inside uses matrix products on every platform.

    Under `vmap` over models, each with kernels of its own, a product becomes a batched product; a native
    convolution would become a grouped one, which is slow on every platform.
    """
    token = _ONLY_PRODUCTS.set(True)
    try:
        yield
    finally:
        _ONLY_PRODUCTS.reset(token)


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Convolution with a square kernel.

    Args:
      x: `[B, H, W, C_in]`.
      kernel: `[K, K, C_in, C_out]`.
      stride: the same in both directions.
      padding: zeros on each of the four sides.

    Returns:
      `[B, H', W', C_out]`, H' = ⌊(H + 2 padding − K) / stride⌋ + 1.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check(x, kernel)

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _native_conv(x, kernel, stride, padding)

    def gemm(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _gemm_conv(x, kernel, stride, padding)

    if _ONLY_PRODUCTS.get():
        return gemm(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=gemm, default=native)


def conv_transpose(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Transposed convolution with a square kernel.

    Args:
      x: `[B, H, W, C_in]`.
      kernel: `[K, K, C_in, C_out]`.
      stride: of the convolution it is the adjoint of.
      padding: of that convolution, so it crops.

    Returns:
      `[B, H', W', C_out]`, H' = stride · (H − 1) + K − 2 padding.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check(x, kernel)

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _native_conv_transpose(x, kernel, stride, padding)

    def gemm(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _gemm_conv_transpose(x, kernel, stride, padding)

    if _ONLY_PRODUCTS.get():
        return gemm(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=gemm, default=native)


def _native_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _native_conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    edge = kernel.shape[0] - 1 - padding
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        ((edge, edge), (edge, edge)),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _gemm_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size, _, c_in, c_out = kernel.shape
    height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[1:3])
    if size % stride == 0 and stride > 1 and c_in >= MIN_BLOCK_CHANNELS:
        return _conv_by_blocks(x, kernel, stride, padding, height, width)
    # Patches: every output pixel's window is laid out as one row.
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate(rows, axis=-1)
    return _matmul(patches, kernel.reshape(size * size * c_in, c_out))


def _conv_by_blocks(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, height: int, width: int
) -> jax.Array:
    """Space to depth, one product to all (K / stride)² partial outputs, and their shifted sum."""
    size, _, c_in, c_out = kernel.shape
    taps = size // stride
    block_rows, block_columns = height + taps - 1, width + taps - 1
    batch, rows, columns, _ = x.shape
    right = (block_rows * stride - rows - padding, block_columns * stride - columns - padding)
    # lax.pad, since an odd side leaves a last row that no window reaches: a negative pad drops it.
    x = jax.lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (padding, right[0], 0), (padding, right[1], 0), (0, 0, 0))
    )
    # Rows of a block side by side. As pieces, since XLA copies a transpose in a slow general loop.
    x = x.reshape(batch, block_rows, stride, block_columns, stride * c_in)
    x = jnp.concatenate(jnp.split(x, stride, axis=2), axis=-1)[:, :, 0]
    kernel = kernel.reshape(taps, stride, taps, stride, c_in, c_out).transpose(1, 3, 4, 0, 2, 5)
    partial = _matmul(x, kernel.reshape(stride * stride * c_in, taps * taps * c_out))
    out = None
    for i in range(taps):
        for j in range(taps):
            start = (i * taps + j) * c_out
            term = partial[:, i : i + height, j : j + width, start : start + c_out]
            out = term if out is None else out + term
    assert out is not None
    return out


def _gemm_conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size, _, c_in, c_out = kernel.shape
    batch, rows, columns, _ = x.shape
    taps = -(-size // stride)
    extra = taps * stride - size
    kernel = jnp.pad(kernel, ((0, extra), (0, extra), (0, 0), (0, 0)))
    # [tap, offset in the block] in both directions: block j of the output gets tap i of input j - i.
    kernel = kernel.reshape(taps, stride, taps, stride, c_in, c_out)
    by_blocks = stride > 1 and c_out >= MIN_BLOCK_CHANNELS
    blocks = (_gather_blocks if by_blocks else _scatter_blocks)(x, kernel)
    block_rows, block_columns = rows + taps - 1, columns + taps - 1
    out = jnp.concatenate([part[:, :, None] for part in jnp.split(blocks, stride, axis=-1)], axis=2)
    out = out.reshape(batch, block_rows * stride, block_columns * stride, c_out)
    height, width = (stride * (side - 1) + size - 2 * padding for side in (rows, columns))
    return out[:, padding : padding + height, padding : padding + width]


def _gather_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The taps² inputs that a block of outputs depends on as one row, and one product."""
    taps, stride, _, _, c_in, c_out = kernel.shape
    rows, columns = x.shape[1] + taps - 1, x.shape[2] + taps - 1
    edge = (taps - 1, taps - 1)
    x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
    starts = [taps - 1 - tap for tap in range(taps)]
    patches = jnp.concatenate([x[:, i : i + rows, j : j + columns] for i in starts for j in starts], axis=-1)
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(taps * taps * c_in, stride * stride * c_out)
    return _matmul(patches, kernel)


def _scatter_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product to every tap of the kernel, and the overlapping windows added up."""
    taps, stride, _, _, c_in, c_out = kernel.shape
    windows = _matmul(x, kernel.transpose(4, 0, 2, 1, 3, 5).reshape(c_in, (taps * stride) ** 2 * c_out))
    out = None
    for tap, part in enumerate(jnp.split(windows, taps * taps, axis=-1)):
        i, j = divmod(tap, taps)
        term = jnp.pad(part, ((0, 0), (i, taps - 1 - i), (j, taps - 1 - j), (0, 0)))
        out = term if out is None else out + term
    assert out is not None
    return out


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W over the last axis, the leading axes as one; reverse-mode gradients only."""
    rows = _product(x.reshape(-1, x.shape[-1]), kernel)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    return rows @ kernel


def _product_forward(rows: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rows @ kernel, (rows, kernel)


def _product_backward(factors: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, kernel = factors
    # The gradient of W contracts the first axes of two arrays. On CPUs XLA's product of that kind runs at
    # half the speed of one of rows and columns; the barrier keeps it from folding the transpose into it.
    return g @ kernel.T, jax.lax.optimization_barrier(rows.T) @ g


_product.defvjp(_product_forward, _product_backward)


def _check(x: jax.Array, kernel: jax.Array) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"x must be [B, H, W, C] and kernel [K, K, C_in, C_out], got {x.shape}, {kernel.shape}"
        )
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x has {x.shape[-1]} channels but the kernel of shape {kernel.shape} takes {kernel.shape[2]}"
        )
