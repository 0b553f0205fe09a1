"""Programs as GPUs and TPUs would get them, lowered without one: what their StableHLO text says."""

import collections
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hvae_jax import training
from hvae_jax.betas import BetaControl
from hvae_jax.keys import make_key
from hvae_jax.models.config import ModelConfig
from hvae_jax.models.hvae import HVAE, make_hvae
from hvae_jax.training import TrainingConfig, batches, streaming
from hvae_jax.training.raveled import ravel_like
from hvae_jax.training.step import StepMetrics, TrainState

# One program with what each of them would get: a choice between platforms stays in it as branches.
PLATFORMS = ("cuda", "tpu")
# What a product must say of itself: the types of its operands, and its precision, once for each.
EXACT = ("f32", "f32", "HIGHEST", "HIGHEST")
FAST = ("bf16", "bf16", "DEFAULT", "DEFAULT")
# Calls of code that is no StableHLO: threefry's own kernel on GPUs, and a mark on a layout.
KNOWN_CALLS = {"cu_threefry2x32_ffi", "Sharding"}
MIB = 2**20
_NUM_BYTES = {"i1": 1, "bf16": 2}


def lower(fn: Callable[..., Any], *arguments: Any, platforms: tuple[str, ...] = PLATFORMS) -> str:
    """The program of a function; nothing is allocated where arguments are shapes."""
    return jax.jit(fn).trace(*arguments).lower(lowering_platforms=platforms).as_text()


def shape(*sides: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(sides, dtype)


def stacked(tree: Any, num: int) -> Any:
    """Shapes with a leading axis more."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num, *leaf.shape), leaf.dtype), tree)


def products(program: str) -> list[tuple[str, ...]]:
    """Operand types and precisions of every product and convolution."""
    found = []
    for line in program.splitlines():
        if re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line):
            operands = re.search(r": \(tensor<([^>]*)>, tensor<([^>]*)>\) -> ", line)
            assert operands is not None, line
            types = [operand.split("x")[-1] for operand in operands.groups()]
            precisions = re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)
            found.append((*types, *(precisions or ["DEFAULT", "DEFAULT"])))  # a default need not be written
    return found


def calls(program: str) -> set[str]:
    """What is called that is no StableHLO, or waits for the host."""
    found = set(re.findall(r"custom_call @([\w.]+)", program))
    return found | set(re.findall(r"stablehlo\.(send|recv|infeed|outfeed)\b", program))


def gathers(program: str, dtype: str) -> list[tuple[int, ...]]:
    """Shapes of what is gathered of arrays of a type."""
    lines = [line for line in program.splitlines() if "stablehlo.gather" in line]
    found = [re.search(r"-> tensor<([0-9x]+)x(\w+)>", line) for line in lines]
    return [_sides(match[1]) for match in found if match is not None and match[2] == dtype]


def results(program: str, operation: str, dtype: str) -> list[tuple[int, ...]]:
    """Shapes of the results of an operation on arrays of a type."""
    pattern = rf"stablehlo\.{operation}\b.*: \(tensor<[0-9x]*{dtype}>.*-> tensor<([0-9x]+)x\w+>"
    return [_sides(sides) for sides in re.findall(pattern, program)]


def shapes(program: str) -> collections.Counter[tuple[tuple[int, ...], str]]:
    """(sides, type) of all arrays of at least one axis."""
    found = re.findall(r"tensor<((?:\d+x)+)([a-z]+\d+)>", program)
    return collections.Counter((_sides(sides.rstrip("x")), dtype) for sides, dtype in found)


def largest_mib(program: str) -> float:
    """Of the largest array; what of it lies in memory at a time, a compiler decides."""
    return max(_bytes(*found) for found in shapes(program)) / MIB


def check(program: str, wanted: Sequence[tuple[str, ...]], min_products: int = 1) -> None:
    """Every product says how exact it is, and nothing is called that an accelerator lacks."""
    found = products(program)
    assert len(found) >= min_products
    assert set(found) == set(wanted)
    assert calls(program) <= KNOWN_CALLS


def params_of(model: HVAE) -> Any:
    """The shapes of a model's parameters."""
    return _params_of(model.config, model.image_shape)


@functools.cache
def _params_of(config: ModelConfig, image_shape: tuple[int, int, int]) -> Any:
    key, x = make_key(0), jnp.zeros((1, *image_shape))
    return jax.eval_shape(make_hvae(config, image_shape).init, key, x, key)


def init(model: HVAE, control: BetaControl, config: TrainingConfig) -> TrainState:
    """The shapes of a state before its first step, with betas of 1."""
    ones = (1.0,) * model.num_layers
    return jax.eval_shape(lambda params: training.init_state(params, ones, control, config), params_of(model))


def interval_arguments(
    state: TrainState, image_shape: tuple[int, ...], batch_size: int, num_models: int, kind: str
) -> tuple[Any, tuple[Any, ...]]:
    """What picks images, and the shapes of `intervals.make_interval`'s arguments.

    Args:
      state: shapes of one model's.
      image_shape: of images that are stored as bytes.
      batch_size: of a step.
      num_models: of the device.
      kind: "alike", all models in one order; "own", each in its own; "streamed".
    """
    images, steps = shape(1000, *image_shape, dtype=jnp.uint8), 16
    places = shape(steps, batch_size, dtype=jnp.int32)
    pick, together, own = {
        "alike": (batches.pick_alike, (images, places), ()),
        "own": (batches.pick_own, images, stacked(places, num_models)),
        "streamed": (
            streaming.pick_streamed,
            (shape(batch_size, *image_shape, dtype=jnp.uint8),) * steps,
            (),
        ),
    }[kind]
    scalar, rates = shape(num_models), shape(num_models, *state.beta_state.betas.shape)
    totals = StepMetrics(scalar, scalar, rates, scalar)
    counts = shape(num_models, dtype=jnp.int32)
    raveled = jax.eval_shape(lambda state: ravel_like(state.params, state), state)
    return pick, ((stacked(raveled, num_models), totals), together, own, counts)


def _sides(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split("x"))


def _bytes(sides: tuple[int, ...], dtype: str) -> int:
    return math.prod(sides) * _NUM_BYTES.get(dtype, int(re.sub(r"\D", "", dtype)) // 8)
