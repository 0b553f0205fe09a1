"""How much memory a training step takes, by what the networks compute in and whether they rematerialise.

    python -m experiments.benchmark.memory
    pip install "jax[tpu]" && python -m experiments.benchmark.memory --tpu=v5e:2x2 --batch_size=1024

`kept` is what the forward pass keeps for the gradient, from the shapes alone. With --tpu the step is also
compiled for one device of that topology, which needs the compiler (libtpu) but no TPU: `temporaries` is what
the compiled step allocates beside its arguments.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies

from experiments import cifar, program
from hvae_jax import betas, data, records, training
from hvae_jax.errors import RunError
from hvae_jax.keys import make_key
from hvae_jax.models.config import COMPUTE_DTYPES, PUBLISHED, ModelConfig
from hvae_jax.models.hvae import HVAE, make_hvae

IMAGE_SHAPE = (32, 32, 3)
MIB = 2**20


def main(arguments: list[str]) -> None:
    """Reads the flags, prints a line for every combination."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    jax.config.update("jax_platforms", "cpu")
    rows = []
    for inference in options.inference:
        for dtype in COMPUTE_DTYPES:
            for remat in (False, True):
                fields = {"inference": inference, "compute_dtype": dtype, "remat": remat}
                model = make_hvae(
                    ModelConfig(**{**cifar.get_config().to_dict()["model"], **fields}), IMAGE_SHAPE
                )
                row: dict[str, Any] = {**fields, "batch_size": options.batch_size}
                row["kept_mib"] = kept_bytes(model, options.batch_size) / MIB
                if options.tpu:
                    compiled: Any = compile_step(model, options.batch_size, options.tpu)
                    row["topology"] = options.tpu
                    row["temporaries_mib"] = compiled.memory_analysis().temp_size_in_bytes / MIB
                    row["gflop"] = compiled.cost_analysis()["flops"] / 1e9
                print(", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
                rows.append(row)
    if options.out:
        records.write_json(pathlib.Path(options.out), rows)


def kept_bytes(model: HVAE, batch_size: int) -> int:
    """What the forward pass over a batch keeps for the gradient with respect to the parameters."""
    x = jax.ShapeDtypeStruct((batch_size, *IMAGE_SHAPE), jnp.float32)
    key = jax.eval_shape(lambda: make_key(0))

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        terms: Any = model.apply(params, x, key)
        return (terms.distortion + terms.rates.sum(axis=1)).mean()

    def residuals(params: Any, x: jax.Array, key: jax.Array) -> Any:
        return jax.vjp(lambda p: loss(p, x, key), params)[1]

    kept = jax.eval_shape(residuals, jax.eval_shape(model.init, key, x, key), x, key)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def compile_step(model: HVAE, batch_size: int, topology: str) -> jax.stages.Compiled:
    """The training step, compiled for one device of a TPU topology; the whole batch is one micro-batch."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    settings = {
        **cifar.get_config().to_dict()["training"],
        "batch_size": batch_size,
        "micro_batch": batch_size,
    }
    config, control = training.TrainingConfig(**settings), betas.constant()

    def init() -> training.TrainState:
        key, x = make_key(0), jnp.zeros((1, *IMAGE_SHAPE))
        return training.init_state(model.init(key, x, key), (1.0, 1.0), control, config)

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    step_fn = training.make_train_step(model.apply, data.make_preprocess("none"), control, config)
    images = jax.ShapeDtypeStruct((batch_size, *IMAGE_SHAPE), jnp.uint8, sharding=sharding)
    state = jax.tree.map(placed, jax.eval_shape(init))
    return jax.jit(step_fn, donate_argnums=0).lower(state, images).compile()


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_list("inference", list(PUBLISHED), "Inference models.")
    flags.DEFINE_integer("batch_size", 256, "Images.", lower_bound=1)
    flags.DEFINE_string("tpu", "", "Also compile for this topology, for example v5e:2x2.")
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
