"""The forms of the convolutions against each other, their adjoints and SciPy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from hvae_jax.models import convolution, convolution_products
from hvae_jax.models.blocks import KERNEL_SIZE, make_stages

EPS = float(np.finfo(np.float32).eps)

# Kernel, stride, padding, side, input channels.
CASES = [
    (1, 1, 0, 4, 3),
    (1, 2, 2, 8, 3),
    (3, 1, 0, 13, 3),
    (3, 1, 2, 6, 3),
    (3, 2, 0, 8, 3),
    (4, 1, 2, 9, 3),
    (4, 2, 0, 13, 3),
    (4, 2, 1, 28, 3),
    (5, 1, 0, 9, 3),
    (5, 2, 1, 8, 3),
]
# Where the stride divides the kernel and there are channels enough, the product has another form.
BLOCK_CASES = [
    (4, 2, 0, 5, 8),
    (4, 2, 1, 4, 8),
    (4, 2, 1, 28, 8),
    (4, 2, 2, 9, 8),
]
# Likewise on CPUs, where it depends on the number of channels which form is taken.
CPU_CASES = [(4, 2, 1, 8, 1), (4, 2, 1, 7, 32), (4, 2, 2, 6, 32), (3, 1, 1, 5, 32), (4, 1, 0, 7, 32)]
# Equal values everywhere make equal gradients, so of these fewer will do.
GRADIENT_CASES = [(1, 2, 0, 5, 3), (3, 1, 1, 4, 3), (4, 1, 0, 7, 3), (5, 2, 2, 13, 3)]
GRADIENT_BLOCK_CASES = [(4, 2, 1, 7, 8)]

# What is compiled here runs once: most of LLVM's optimisation would not pay.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
conv = quick_jit(convolution.conv, static_argnames=("stride", "padding"))
conv_transpose = quick_jit(convolution.conv_transpose, static_argnames=("stride", "padding"))

Case = tuple[int, int, int, int, int]
Convolution = Callable[[jax.Array, jax.Array, int, int], Any]  # what a custom_vjp returns has no type
NATIVE: dict[str, Convolution] = {
    "conv": convolution._native_conv,
    "conv_transpose": convolution._native_conv_transpose,
}
OTHERS: dict[str, dict[str, Convolution]] = {
    "product": {"conv": convolution_products.conv, "conv_transpose": convolution_products.conv_transpose},
    "cpu": {"conv": convolution._cpu_conv, "conv_transpose": convolution._cpu_conv_transpose},
}


def normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def make_inputs(case: Case, num_outputs: int = 2) -> tuple[jax.Array, jax.Array]:
    size, _, _, side, channels = case
    # Not square: rows and columns must not be confused.
    return normal(0, (2, side, side + 1, channels)), normal(1, (size, size, channels, num_outputs))


def with_gradients(convolve: Convolution, case: Case) -> Callable[..., list[jax.Array]]:
    """The output, and what a cotangent without symmetry becomes at x and at the kernel."""

    def evaluate(x: jax.Array, kernel: jax.Array) -> list[jax.Array]:
        y, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, case[1], case[2]), x, kernel)
        return [y, *pull_back(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))]

    return evaluate


def assert_equal_sums(a: jax.Array, b: jax.Array, num_terms: int) -> None:
    """Equal but for the rounding of sums of at most so many terms."""
    assert a.shape == b.shape
    assert a.size > 0
    np.testing.assert_allclose(a, b, rtol=0.0, atol=EPS * np.sqrt(num_terms) * np.abs(np.asarray(b)).max())


@pytest.mark.parametrize("case", CASES + BLOCK_CASES + CPU_CASES, ids=str)
def test_every_form_is_the_native_convolution(case: Case):
    size, stride, padding, _, channels = case
    x, kernel = make_inputs(case)

    @quick_jit
    def evaluate(x: jax.Array, kernel: jax.Array) -> dict[str, list[jax.Array]]:
        forms = {name: [NATIVE[name], *(form[name] for form in OTHERS.values())] for name in NATIVE}
        return {name: [form(x, kernel, stride, padding) for form in some] for name, some in forms.items()}

    for native, *others in evaluate(x, kernel).values():
        for other in others:
            assert_equal_sums(other, native, num_terms=size * size * channels)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("case", GRADIENT_CASES + GRADIENT_BLOCK_CASES + CPU_CASES, ids=str)
def test_its_gradients_are_equal(name: str, case: Case):
    # As many outputs as inputs, so that CPU_CASES meet the forms of many channels both ways.
    x, kernel = make_inputs(case, num_outputs=case[-1])
    forms = [NATIVE[name], *(form[name] for form in OTHERS.values())]
    evaluate = quick_jit(lambda x, kernel: [with_gradients(form, case)(x, kernel) for form in forms])
    native, *others = evaluate(x, kernel)
    for other in others:
        for a, b in zip(other, native, strict=True):
            assert_equal_sums(a, b, num_terms=x.size)


def test_the_block_form_is_taken_where_it_is_meant_to_be(monkeypatch: pytest.MonkeyPatch):
    taken = []
    blocks = convolution_products._conv_by_blocks
    monkeypatch.setattr(
        convolution_products, "_conv_by_blocks", lambda *args: taken.append(case) or blocks(*args)
    )
    for case in CASES + GRADIENT_CASES + BLOCK_CASES + GRADIENT_BLOCK_CASES:
        convolve = functools.partial(convolution_products.conv, stride=case[1], padding=case[2])
        jax.eval_shape(convolve, *make_inputs(case))
    assert taken == BLOCK_CASES + GRADIENT_BLOCK_CASES


def test_on_a_cpu_no_gradient_dilates_an_image_where_there_are_channels_enough():
    """The reason for the CPU's forms: their gradients are convolutions of the fast kind."""
    x, kernel = normal(0, (2, 8, 8, 32)), normal(1, (4, 4, 32, 32))
    for convolve in OTHERS["cpu"].values():
        gradients = jax.grad(lambda x, kernel, f=convolve: f(x, kernel, 2, 1).sum(), argnums=(0, 1))
        text = jax.jit(gradients).lower(x, kernel).as_text()
        assert "lhs_dilate = [1, 1]" in text
        assert "lhs_dilate = [2, 2]" not in text


def test_conv_is_scipys():
    x, kernel = normal(2, (2, 9, 7, 3)), normal(3, (4, 4, 3, 5))
    expected = np.zeros((2, 4, 3, 5))
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for b, i, o in np.ndindex(2, 3, 5):
        whole = scipy.signal.correlate2d(
            padded[b, :, :, i], np.asarray(kernel, np.float64)[:, :, i, o], "valid"
        )
        expected[b, :, :, o] += whole[::2, ::2]
    got = conv(x, kernel, stride=2, padding=1)
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=EPS * 48 * np.abs(expected).max())


def test_conv_transpose_is_scipys():
    x, kernel = normal(4, (2, 4, 3, 3)), normal(5, (4, 4, 3, 5))
    spread = np.zeros((2, 7, 5, 3))
    spread[:, ::2, ::2] = np.asarray(x)
    expected = np.zeros((2, 8, 6, 5))
    for b, i, o in np.ndindex(2, 3, 5):
        whole = scipy.signal.convolve2d(
            spread[b, :, :, i], np.asarray(kernel, np.float64)[:, :, i, o], "full"
        )
        expected[b, :, :, o] += whole[1:-1, 1:-1]
    got = conv_transpose(x, kernel, stride=2, padding=1)
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=EPS * 48 * np.abs(expected).max())


@pytest.mark.parametrize("side", [7, 8], ids=lambda side: f"from {side}")
def test_conv_transpose_is_the_adjoint_of_conv(side: int):
    """⟨conv(x), y⟩ = ⟨x, conv_transpose(y)⟩ for the stages of the models, and the sides meet."""
    (stage,) = make_stages((side, side), 1)
    how = {"stride": stage.stride, "padding": stage.padding}
    x, kernel = normal(6, (2, side, side, 3)), normal(7, (KERNEL_SIZE, KERNEL_SIZE, 3, 8))
    y = normal(8, (2, *stage.size_out, 8))
    down = np.asarray(conv(x, kernel, **how), np.float64)
    up = np.asarray(conv_transpose(y, kernel.swapaxes(2, 3), **how), np.float64)
    assert down.shape == y.shape
    assert up.shape == x.shape
    # Each side is a float64 sum of float32 convolutions, of up to 16 · 8 terms.
    norm = np.linalg.norm(down) * np.linalg.norm(y) + np.linalg.norm(up) * np.linalg.norm(x)
    assert abs((down * np.asarray(y)).sum() - (np.asarray(x) * up).sum()) < EPS * np.sqrt(16 * 8) * norm


def test_stages_are_the_published_ones():
    for side, sides in ((32, [16, 8, 4]), (28, [14, 7, 4]), (64, [32, 16, 8])):
        stages = make_stages((side, side), 3)
        assert [stage.size_out for stage in stages] == [(side, side) for side in sides]
        for stage in stages:
            assert (stage.stride, stage.padding) == ((2, 1) if stage.size_in[0] % 2 == 0 else (1, 0))


@pytest.mark.parametrize("convolve", [convolution.conv, convolution.conv_transpose])
@pytest.mark.parametrize(
    ("x", "kernel", "message"),
    [
        ((8, 8, 3), (4, 4, 3, 2), r"\(8, 8, 3\)"),
        ((2, 8, 8, 3), (4, 3, 2), r"\(4, 3, 2\)"),
        ((2, 8, 8, 3), (4, 3, 3, 2), r"\(4, 3, 3, 2\)"),
        ((2, 8, 8, 3), (4, 4, 2, 3), "3 channels"),
        ((2, 8, 8, 1), (4, 4, 3, 2), "1 channels"),
    ],
)
def test_shapes_that_do_not_fit_raise(
    convolve: Callable[..., jax.Array], x: tuple[int, ...], kernel: tuple[int, ...], message: str
):
    with pytest.raises(ValueError, match=message):
        convolve(jnp.zeros(x), jnp.zeros(kernel), stride=2, padding=1)
