"""What a deep network costs by its number of layers: parameters, tracing, compiling, a training step.

    python -m experiments.benchmark.depth --out=rows.json
    python -m experiments.benchmark.depth --cifar

Deep networks of width 32 on 8×8 images, maps of 8, 4 and 1 pixels a side, with as many residual blocks on the
way up as layers. Tracing and compiling are CPU seconds, of a step that nothing was compiled for before; a
step is the median of turns that all networks take one after the other. --cifar instead traces and compiles
the first step of `cifar_deep.py`, 43 layers and 39,145,700 parameters, and says the seconds on the wall, too.
"""

import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cifar_deep, digits_deep, program
from hvae_jax import beta_range, betas, data, records, training
from hvae_jax.errors import RunError
from hvae_jax.keys import make_key
from hvae_jax.models.hvae import ModelConfig, make_hvae

NUM_LAYERS = (5, 10, 20, 40)
BATCH_SIZE = 64


def main(arguments: list[str]) -> None:
    """Reads the flags, measures, prints a line for every network."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    out = None if options.out is None else program.file_flag("out", options.out, (".json", ""))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    if options.cifar:
        rows = [compile_step(cifar_deep.get_config().to_dict(), (32, 32, 3))[0]]
    else:
        rows = measure(NUM_LAYERS, options.repeats)
    report(rows, out)


def report(rows: Sequence[dict[str, Any]], out: pathlib.Path | None) -> None:
    """Prints a line for every row, and writes all to `out`."""
    for row in rows:
        print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if out:
        program.make_parent(out)
        records.write_json(out, list(rows))


def measure(num_layers: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """A row for each number of layers; `step_ratio` is that of the step's time to the first one's."""
    built = [compile_step(depth_config(num), (8, 8, 1)) for num in num_layers]
    seconds: list[list[float]] = [[] for _ in built]
    for _, step in built:
        step()
    for _ in range(repeats):
        for (_, step), taken in zip(built, seconds, strict=True):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
    ratios = [[own / first for own, first in zip(taken, seconds[0], strict=True)] for taken in seconds]
    return [
        {**row, "step_ms": 1e3 * statistics.median(taken), "step_ratio": statistics.median(ratio)}
        for (row, _), taken, ratio in zip(built, seconds, ratios, strict=True)
    ]


def depth_config(num_layers: int) -> dict[str, Any]:
    """`digits_deep.py` with one layer of 1×1, and the others on 4×4 and 8×8."""
    config = digits_deep.get_config().to_dict()
    small = (num_layers - 1) // 2
    numbers = (8, num_layers - 1 - small), (4, small), (1, 1)
    latent_shapes = tuple((side, side, 4) for side, num in numbers for _ in range(num))
    config["model"].update(latent_shapes=latent_shapes, blocks_by_side=numbers)
    config["objective"]["betas"] = (1.0,) * num_layers
    config["training"]["batch_size"] = BATCH_SIZE
    return config


def compile_step(
    config: dict[str, Any], image_shape: tuple[int, int, int]
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Traces and compiles the training step of a config: what that took, and what takes a step."""
    model = make_hvae(ModelConfig(**config["model"]), image_shape)
    settings, control = training.TrainingConfig(**config["training"]), betas.constant()
    apply: Any = model.apply
    own_betas = beta_range.read(config["objective"], model.num_layers)
    step_fn = training.make_train_step(
        apply, data.make_preprocess("none"), control, settings, beta_range=own_betas
    )

    def init() -> training.TrainState:
        key, x = make_key(0), jnp.zeros((1, *image_shape))
        return training.init_state(model.init(key, x, key), config["objective"]["betas"], control, settings)

    shapes = jax.eval_shape(init)
    images = jnp.full((settings.batch_size, *image_shape), 100, jnp.uint8)
    begin = time.process_time(), time.perf_counter()
    lowered = jax.jit(step_fn).lower(shapes, images)
    between = time.process_time(), time.perf_counter()
    compiled: Any = lowered.compile()
    end = time.process_time(), time.perf_counter()
    row = {
        "num_layers": model.num_layers,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
        "trace_cpu_s": between[0] - begin[0],
        "compile_cpu_s": end[0] - between[0],
        "trace_and_compile_wall_s": end[1] - begin[1],
    }
    states: list[training.TrainState] = []

    def step() -> None:
        if not states:
            # Numbers of the right shapes: what they are does not matter, and draws would be compiled.
            zeros = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
            states.append(zeros._replace(key=jax.random.key_data(make_key(0))))
        jax.block_until_ready(compiled(states[0], images))

    return row, step


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_boolean("cifar", False, "Instead: the first step of cifar_deep.py, traced and compiled.")
    flags.DEFINE_integer("repeats", 9, "Turns.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
