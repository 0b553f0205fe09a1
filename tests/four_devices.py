"""What training and evaluation give on four devices: python tests/four_devices.py OUT.npz."""

import pathlib
import sys
import tempfile

import jax
import linear_gaussian
import numpy as np
from linear_gaussian import identity

from hvae_jax import betas, training
from hvae_jax.keys import make_key
from hvae_jax.training import batches, devices, loop, stacks
from hvae_jax.training.split_evaluator import SplitEvaluator, StackEvaluator
from hvae_jax.training.stacks import Packed

CONFIG = linear_gaussian.training_config(
    num_epochs=10.0, batch_size=16, log_every_steps=15, eval_every_steps=15, checkpoint_every_steps=15
)
IMAGES, OTHERS = linear_gaussian.data(64), linear_gaussian.data(75)
# Betas, seed and order seed of each model.
MODELS = (((1.0, 1.0), 0, 0), ((0.3, 2.0), 1, 0), ((3.0, 0.5), 0, 5), ((1.0, 1.0), 2, 2), ((2.0, 2.0), 3, 3))


class Rows(list):
    """A log that keeps its rows."""


def new_state(start_betas: tuple[float, float]) -> training.TrainState:
    return training.init_state(linear_gaussian.init_params(), start_betas, betas.constant(), CONFIG)


def results() -> dict[str, np.ndarray]:
    """By name: a program with all that `over_devices` offers, one run, a packed stack, their evaluations."""
    found = {}

    def program(split: jax.Array, same: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = jax.lax.axis_index(devices.DEVICE_AXIS)
        return split + same * place, jax.lax.pmean(split, devices.DEVICE_AXIS)

    count = jax.local_device_count()
    compiled = devices.over_devices(program, (True, False), donated=(0,))
    own, mean = compiled(devices.split(np.arange(2.0 * count).reshape(count, 2)), np.float32(10.0))
    found |= {"own": np.asarray(own), "mean": np.asarray(mean)}

    common = {"preprocess_fn": identity, "control": betas.constant(), "config": CONFIG}
    single, key = SplitEvaluator(OTHERS, identity), make_key(4)
    with tempfile.TemporaryDirectory() as folder:
        state = training.train(
            pathlib.Path(folder),
            new_state((0.3, 2.0)),
            linear_gaussian.terms_fn,
            batches.ResidentBatches(IMAGES, CONFIG),
            validate=lambda params: single.map_images(linear_gaussian.terms_fn, params, key),
            **common,
        )
        found["rates.jsonl"] = np.array((pathlib.Path(folder) / "rates.jsonl").read_text())
    found |= {f"run.{i}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    terms = single.map_images(linear_gaussian.terms_fn, state.params, key)
    found |= {"run.distortion": terms.distortion, "run.rates": terms.rates}

    layout = Packed(len(MODELS))
    trainer = loop.Trainer(linear_gaussian.terms_fn, layout=layout, **common)
    stack = trainer.train(
        stacks.new_stack([new_state(start_betas) for start_betas, _, _ in MODELS]),
        [Rows() for _ in MODELS],
        batches.ResidentBatches(IMAGES, CONFIG, layout).ordered([order for *_, order in MODELS]),
        save=lambda step, stack: None,
    )
    found |= {f"stack.{i}": leaf for i, leaf in enumerate(jax.tree.leaves(stack.states))}
    seeds = np.array([seed for _, seed, _ in MODELS])
    terms = StackEvaluator(OTHERS, identity, layout).map_images(
        linear_gaussian.terms_fn, layout.put(stack.states.params), seeds, len(seeds)
    )
    return found | {"stack.distortion": terms.distortion, "stack.rates": terms.rates}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    np.savez(sys.argv[1], allow_pickle=True, **results())
