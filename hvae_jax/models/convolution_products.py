"""The matrix product of all networks; convolution and transposed convolution as one of them each.

`precision` is where it is decided how exact the products and convolutions are, of models and of all that
judges them. It is an argument of each, which gradients inherit: no setting of JAX, a user's or a test's,
changes it.

The convolutions here, with shifted slices around the product, are for `vmap` over models, where a native
convolution would become a grouped one, and for transposed convolutions to few channels on CPUs. Their
arguments are those of `convolution`, which checks them.
"""

import jax
import jax.numpy as jnp

# Below this a block of pixels is too narrow to make up for the copy that lays it out.
MIN_BLOCK_CHANNELS = 8


def precision(dtype: jax.typing.DTypeLike) -> jax.lax.Precision:
    """Of a product of `dtype`: float32 means float32 on every device.

    JAX's own default would make it of bfloat16 parts on TPUs and of TF32 on GPUs. Networks that compute in
    bfloat16 ask for the speed of just that.
    """
    return jax.lax.Precision.DEFAULT if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W over the last axis, the leading axes as one."""
    rows = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=precision(x.dtype))
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """`convolution.conv`."""
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
    return matmul(patches, kernel.reshape(size * size * c_in, c_out))


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
    partial = matmul(x, kernel.reshape(stride * stride * c_in, taps * taps * c_out))
    out = None
    for i in range(taps):
        for j in range(taps):
            start = (i * taps + j) * c_out
            term = partial[:, i : i + height, j : j + width, start : start + c_out]
            out = term if out is None else out + term
    assert out is not None
    return out


def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """`convolution.conv_transpose`."""
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
    return matmul(patches, kernel)


def _scatter_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product to every tap of the kernel, and the overlapping windows added up, columns first."""
    taps, stride, _, _, c_in, c_out = kernel.shape
    windows = matmul(x, kernel.transpose(4, 2, 0, 1, 3, 5).reshape(c_in, (taps * stride) ** 2 * c_out))

    def add_up(windows: jax.Array, axis: int) -> jax.Array:
        out = None
        for tap, part in enumerate(jnp.split(windows, taps, axis=-1)):
            edges = [(0, 0)] * 4
            edges[axis] = (tap, taps - 1 - tap)
            term = jnp.pad(part, edges)
            out = term if out is None else out + term
        assert out is not None
        return out

    return add_up(add_up(windows, axis=2), axis=1)
