"""Convolution and transposed convolution, each in the form that is fastest where it runs.

GPUs and TPUs have native convolutions. On CPUs XLA's run at the speed of a matrix product where a dense
kernel moves over an image of many channels, and several times slower otherwise: for few channels, and in
the gradients that JAX derives, which dilate images. So there every convolution and every gradient is
written as one of the fast kind, or as a matrix product (`convolution_products`). Values and gradients
agree to float tolerance.

Images are `[B, H, W, C]`; kernels are `[K, K, C_in, C_out]` for both. A transposed convolution is the
adjoint of the convolution with the same stride and padding, as in PyTorch's ConvTranspose2d.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from hvae_jax.models import convolution_products as products

# XLA's convolutions on a CPU are at their best from so many channels on; measured on one core.
CPU_CHANNELS = 32
# Where fewer come in they are the faster the more go out, up to `CPU_CHANNELS`.
MIN_CPU_CHANNELS = 8

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


def are_products() -> bool:
    """Whether what is traced here is inside of `as_products`."""
    return _ONLY_PRODUCTS.get()


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
    if are_products():
        return products.conv(x, kernel, stride, padding)
    return _by_platform(_cpu_conv, _native_conv, x, kernel, stride, padding)


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
    if are_products():
        return products.conv_transpose(x, kernel, stride, padding)
    return _by_platform(_cpu_conv_transpose, _native_conv_transpose, x, kernel, stride, padding)


def _by_platform(
    cpu: Callable[..., Any],
    default: Callable[..., jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: int,
) -> jax.Array:
    def bind(form: Callable[..., jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda x, kernel: form(x, kernel, stride, padding)

    return jax.lax.platform_dependent(x, kernel, cpu=bind(cpu), default=bind(default))


def _native_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _convolve(x, kernel, ((padding, padding), (padding, padding)), stride=(stride, stride))


def _native_conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    edge = kernel.shape[0] - 1 - padding
    return _convolve(x, kernel[::-1, ::-1], ((edge, edge), (edge, edge)), spread=stride)


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    padding: tuple[tuple[int, int], tuple[int, int]],
    *,
    stride: tuple[int, int] = (1, 1),
    spread: int = 1,
    kernel_spread: int = 1,
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        lhs_dilation=(spread, spread),
        rhs_dilation=(kernel_spread, kernel_spread),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=products.precision(x.dtype),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size, _, c_in, c_out = kernel.shape
    if stride == 1 and c_in < MIN_CPU_CHANNELS:
        return _convolve_few_channels(x, kernel, ((padding, padding), (padding, padding)))
    if stride == 1 or size % stride or c_in >= CPU_CHANNELS:
        return _native_conv(x, kernel, stride, padding)
    # `stride` neighbours in a row become one pixel with the channels of all: no copy but the padding.
    taps, columns = size // stride, x.shape[2]
    blocks = (columns + 2 * padding) // stride
    edges = (padding, blocks * stride - columns - padding)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (*edges, 0), (0, 0, 0)))
    x = x.reshape(*x.shape[:2], blocks, stride * c_in)
    kernel = kernel.reshape(size, taps, stride * c_in, c_out)
    convolve = _convolve_few_channels if stride * c_in < MIN_CPU_CHANNELS else _convolve
    return convolve(x, kernel, ((padding, padding), (0, 0)), stride=(stride, 1))


def _convolve_few_channels(
    x: jax.Array,
    kernel: jax.Array,
    padding: tuple[tuple[int, int], tuple[int, int]],
    *,
    stride: tuple[int, int] = (1, 1),
) -> jax.Array:
    """`_convolve` to `CPU_CHANNELS` at least, those that nobody asked for left out: a quarter of the time."""
    c_out = kernel.shape[-1]
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, max(0, CPU_CHANNELS - c_out))))
    return _convolve(x, kernel, padding, stride=stride)[..., :c_out]


def _cpu_conv_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _cpu_conv(x, kernel, stride, padding), (x, kernel)


def _cpu_conv_backward(
    stride: int, padding: int, factors: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    if all((side + 2 * padding - kernel.shape[0]) % stride == 0 for side in x.shape[1:3]):
        to_x: Any = _cpu_conv_transpose(g, kernel.swapaxes(2, 3), stride, padding)
    else:  # the last window ends before the image does, which no stage of the models has
        (to_x,) = jax.linear_transpose(lambda x: _native_conv(x, kernel, stride, padding), x)(g)
    return to_x, _kernel_gradient(x, g, kernel.shape[0], stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size, _, _, c_out = kernel.shape
    is_whole = size % stride == 0 and size - 2 * padding == stride
    if is_whole and c_out >= CPU_CHANNELS:
        return _conv_transpose_by_phases(x, kernel, stride, padding)
    return products.conv_transpose(x, kernel, stride, padding)


def _cpu_conv_transpose_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _cpu_conv_transpose(x, kernel, stride, padding), (x, kernel)


def _cpu_conv_transpose_backward(
    stride: int, padding: int, factors: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    to_kernel = _kernel_gradient(g, x, kernel.shape[0], stride, padding).swapaxes(2, 3)
    return _cpu_conv(g, kernel.swapaxes(2, 3), stride, padding), to_kernel


_cpu_conv.defvjp(_cpu_conv_forward, _cpu_conv_backward)
_cpu_conv_transpose.defvjp(_cpu_conv_transpose_forward, _cpu_conv_transpose_backward)


def _kernel_gradient(large: jax.Array, small: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Gradient of the kernel of a convolution from `large` to `small`, `[K, K, C_large, C_small]`.

    A convolution itself, in which batch and channels of `large` change places and `small`, its pixels
    `stride` apart, is the kernel.
    """
    edges = [
        (padding, size + stride * (side_small - 1) - side - padding)
        for side, side_small in zip(large.shape[1:3], small.shape[1:3], strict=True)
    ]
    image, kernel = large.transpose(3, 1, 2, 0), small.transpose(1, 2, 0, 3)
    return _convolve(image, kernel, (edges[0], edges[1]), kernel_spread=stride).transpose(1, 2, 0, 3)


def _conv_transpose_by_phases(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Pixels of the output that lie `stride` apart are a plain convolution of `x`; one for each offset."""
    batch, rows, columns, _ = x.shape
    taps, c_out = kernel.shape[0] // stride, kernel.shape[-1]

    def edges(offset: int) -> tuple[int, int]:
        before = (offset + padding) // stride
        return taps - 1 - before, before

    phases = []
    for i in range(stride):
        for j in range(stride):
            part = kernel[(i + padding) % stride :: stride, (j + padding) % stride :: stride]
            phases.append(_convolve(x, part[::-1, ::-1], (edges(i), edges(j))))
    out = jnp.stack(phases, axis=3).reshape(batch, rows, columns, stride, stride, c_out)
    return out.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * stride, columns * stride, c_out)


def _check(x: jax.Array, kernel: jax.Array) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"x must be [B, H, W, C] and kernel [K, K, C_in, C_out], got {x.shape}, {kernel.shape}"
        )
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x has {x.shape[-1]} channels but the kernel of shape {kernel.shape} takes {kernel.shape[2]}"
        )
