"""How the networks compute: rematerialised or not, in float32 or bfloat16; the numbers stay."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr, JaxprEqn

from hvae_jax.models.config import INFERENCE, ModelConfig
from hvae_jax.models.hvae import HVAE, make_hvae

MakeConfig = Callable[..., ModelConfig]
IMAGE_SHAPE = (8, 8, 1)
NUM = 64


def random_params(model: HVAE) -> Any:
    """Large enough that every one matters, and made without compiling `init`."""
    rng = np.random.default_rng(0)
    x = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, jax.random.key(1))
    return jax.tree.map(lambda leaf: draw(rng, leaf.shape), shapes)


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).random((NUM, *IMAGE_SHAPE)), jnp.float32)


def loss_fn(model: HVAE) -> Callable[..., Any]:
    """(params, x) → mean negative ELBO, and the terms."""

    def loss(params: Any, x: jax.Array) -> Any:
        terms: Any = model.apply(params, x, jax.random.key(2))
        return (terms.distortion + terms.rates.sum(axis=1)).mean(), terms

    return loss


def with_grads(model: HVAE, params: Any) -> Any:
    """Loss, terms and gradients."""
    grad_fn = jax.value_and_grad(loss_fn(model), has_aux=True)
    # Most of LLVM's optimisation would not pay here.
    return jax.jit(grad_fn, compiler_options={"xla_backend_optimization_level": 0})(params, images())


def kept_bytes(model: HVAE) -> int:
    """What the forward pass keeps for the gradient."""

    def residuals(params: Any, x: jax.Array) -> Any:
        return jax.vjp(lambda p: loss_fn(model)(p, x)[0], params)[1]

    params, x = random_params(model), images()
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(residuals, params, x))
    )


@pytest.mark.long
@pytest.mark.parametrize("inference", INFERENCE)
def test_rematerialised_networks_give_the_same_numbers_and_keep_less(make_config: MakeConfig, inference: str):
    models = [
        make_hvae(make_config(inference=inference, remat=remat), IMAGE_SHAPE) for remat in (False, True)
    ]
    params = [random_params(model) for model in models]
    assert jax.tree.structure(params[0]) == jax.tree.structure(params[1])  # so checkpoints fit, too
    if inference != "ladder":  # whose blocks are those of the other published network
        plain, again = (with_grads(model, params[0]) for model in models)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # A ladder keeps the features of its bottom-up pass either way, since every layer reads them; a deep
    # network the running map between its blocks, and of a block only what enters its GELUs.
    share = {"generalized_top_down": 0.5, "ladder": 0.7, "deep": 0.85}[inference]
    assert kept_bytes(models[1]) < share * kept_bytes(models[0])


@pytest.mark.parametrize("inference", INFERENCE)
def test_bfloat16_is_for_products_alone(make_config: MakeConfig, inference: str):
    model = make_hvae(make_config(inference=inference, compute_dtype="bfloat16"), IMAGE_SHAPE)
    params, x = random_params(model), images()
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss_fn(model), has_aux=True))(params, x)
    operands = dtypes(jaxpr.jaxpr, is_product)
    assert operands == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jaxpr.out_avals)} == {"float32"}
    exponentials = dtypes(jaxpr.jaxpr, is_nonlinear)
    assert exponentials == {"float32"}  # of standard deviations, divergences and the likelihood


def test_bfloat16_rates_are_those_of_float32_within_one_percent(make_config: MakeConfig):
    """Of the ladder, whose posteriors are products of Gaussians as well."""
    models = [
        make_hvae(make_config(inference="ladder", compute_dtype=dtype), IMAGE_SHAPE)
        for dtype in ("float32", "bfloat16")
    ]
    params = random_params(models[0])
    (loss, terms), grads = with_grads(models[0], params)
    (rough_loss, rough), rough_grads = with_grads(models[1], params)
    assert float(rough_loss) == pytest.approx(float(loss), rel=0.01)
    np.testing.assert_allclose(rough.rates.mean(axis=0), terms.rates.mean(axis=0), rtol=0.01)
    flat, rough_flat = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (grads, rough_grads)
    )
    assert np.linalg.norm(rough_flat - flat) < 0.05 * np.linalg.norm(flat)


def dtypes(jaxpr: Jaxpr, is_wanted: Callable[[JaxprEqn], bool]) -> set[str]:
    """Of what goes into the equations that are wanted."""
    avals: list[Any] = [v.aval for eqn in equations(jaxpr) if is_wanted(eqn) for v in eqn.invars]
    return {aval.dtype.name for aval in avals}


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Those of a program and of all programs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from equations(value if isinstance(value, Jaxpr) else value.jaxpr)


def is_program(value: object) -> bool:
    return isinstance(value, Jaxpr) or isinstance(getattr(value, "jaxpr", None), Jaxpr)


def is_product(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in ("dot_general", "conv_general_dilated")


def is_nonlinear(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in ("exp", "log", "log1p", "sqrt", "rsqrt", "logistic")
