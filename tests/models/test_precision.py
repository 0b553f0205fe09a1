"""How exact the products of the models are, read off the programs that each kind of device would get."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import linear_gaussian
import pytest
from linear_gaussian import identity

from hvae_jax import controls, training
from hvae_jax.keys import make_key
from hvae_jax.models import convolution
from hvae_jax.models.classifier import make_classifier
from hvae_jax.models.config import DEEP, PUBLISHED, ModelConfig
from hvae_jax.models.hvae import HVAE, make_hvae

MakeConfig = Callable[..., ModelConfig]
# One program with what each of them would get: a choice between platforms stays in it as branches.
PLATFORMS = ("tpu", "cuda", "cpu")
# The networks of the reference models with fewer channels.
REFERENCE = {
    "28 x 28": ((28, 28, 1), {"latent_shapes": ((4, 4, 4), (5,)), "likelihood": "bernoulli"}),
    "32 x 32": ((32, 32, 3), {"latent_shapes": ((4, 4, 4), (5,)), "likelihood": "logistic_mixture"}),
}
# What a product must say of itself: the types of its operands, and its precision, once for each.
EXACT = ("f32", "f32", "HIGHEST", "HIGHEST")
FAST = ("bf16", "bf16", "DEFAULT", "DEFAULT")


def products(program: str) -> list[tuple[str, ...]]:
    """Operand types and precisions of every product and convolution in a StableHLO program."""
    found = []
    for line in program.splitlines():
        if re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line):
            operands = re.search(r": \(tensor<([^>]*)>, tensor<([^>]*)>\) -> ", line)
            assert operands is not None, line
            types = [shape.split("x")[-1] for shape in operands.groups()]
            precisions = re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)
            found.append((*types, *(precisions or ["DEFAULT", "DEFAULT"])))  # a default need not be written
    return found


def lower(fn: Callable[..., Any], *arguments: Any) -> str:
    return jax.export.export(jax.jit(fn), platforms=PLATFORMS)(*arguments).mlir_module()


def train_step(model: HVAE) -> tuple[Callable[..., Any], Any, Any]:
    """A training step, and the shapes of its state and images."""
    config = linear_gaussian.training_config(batch_size=4, max_grad_norm=1.0)
    control = controls.target_distortion(80.0, (1e-3, 1e-3), (1e3, 1e3))
    apply: Callable[..., Any] = model.apply
    step_fn = training.make_train_step(apply, identity, control, config)

    def init() -> training.TrainState:
        key, x = make_key(0), jnp.zeros((1, *model.image_shape))
        return training.init_state(model.init(key, x, key), (1.0, 1.0), control, config)

    return step_fn, jax.eval_shape(init), jax.ShapeDtypeStruct((4, *model.image_shape), jnp.float32)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("reference", "inference"), [*zip(REFERENCE, PUBLISHED, strict=True), ("28 x 28", DEEP)]
)
def test_every_product_of_a_training_step_is_what_compute_dtype_says(
    make_config: MakeConfig, reference: str, inference: str, compute_dtype: str
):
    image_shape, fields = REFERENCE[reference]
    if inference == DEEP:
        fields = {"likelihood": fields["likelihood"]}
    config = make_config(inference=inference, compute_dtype=compute_dtype, num_stages=3, **fields)
    step_fn, state, x = train_step(make_hvae(config, image_shape))
    found = products(lower(step_fn, state, x))
    assert len(found) > 30  # forward and two backward ones for each layer
    assert set(found) == {EXACT if compute_dtype == "float32" else FAST}


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_so_is_every_product_of_a_packed_stack(make_config: MakeConfig, compute_dtype: str):
    model = make_hvae(make_config(compute_dtype=compute_dtype), (8, 8, 1))
    step_fn, state, x = train_step(model)
    states = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), state)
    with convolution.as_products():
        found = products(lower(jax.vmap(step_fn, (0, None)), states, x))
    assert len(found) > 20
    assert set(found) == {EXACT if compute_dtype == "float32" else FAST}


@pytest.mark.parametrize(
    ("method", "inference"),
    [
        *[(method, PUBLISHED[0]) for method in ("reconstruct", "sample", "draw", "log_weight", "encode")],
        *[(method, DEEP) for method in ("sample", "encode")],
    ],
)
def test_direct_use_of_a_model_is_as_exact(make_config: MakeConfig, method: str, inference: str):
    model = make_hvae(make_config(likelihood="bernoulli", inference=inference), (8, 8, 1))
    key, x = jax.random.key(0), jnp.zeros((2, 8, 8, 1))
    params = jax.eval_shape(model.init, key, x, key)
    of_images = {"reconstruct": (x,), "log_weight": (x, key), "encode": (x, key)}
    arguments = of_images.get(method, (key,))
    kwargs = {"num": 2} if method in ("sample", "draw") else {}
    fn = functools.partial(model.apply, method=method, **kwargs)
    assert set(products(lower(fn, params, *arguments))) == {EXACT}


@pytest.mark.parametrize("image_shape", [(28, 28, 1), (32, 32, 3)], ids=str)
def test_classifiers_are_as_exact(image_shape: tuple[int, int, int]):
    network, x = make_classifier(image_shape, 10), jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        out: Any = network.apply(params, x)
        return out[1].sum()

    found = products(lower(jax.grad(loss), params, x))
    assert len(found) >= 10
    assert set(found) == {EXACT}


def test_a_users_setting_of_jax_changes_nothing(make_config: MakeConfig):
    key, x = jax.random.key(0), jnp.zeros((2, 8, 8, 1))
    for compute_dtype, setting in (("float32", "bfloat16"), ("bfloat16", "highest")):
        model = make_hvae(make_config(compute_dtype=compute_dtype), (8, 8, 1))
        params = jax.eval_shape(model.init, key, x, key)
        with jax.default_matmul_precision(setting):
            found = products(lower(model.apply, params, x, key))
        assert set(found) == {EXACT if compute_dtype == "float32" else FAST}


def test_a_product_that_does_not_say_how_exact_it_is_would_be_found():
    x = jnp.zeros((2, 2))
    assert set(products(lower(lambda x: x @ x, x))) == {("f32", "f32", "DEFAULT", "DEFAULT")}
    with jax.default_matmul_precision("high"):
        assert set(products(lower(lambda x: x @ x, x))) == {("f32", "f32", "HIGH", "HIGH")}
