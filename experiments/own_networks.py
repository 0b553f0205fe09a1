"""Train networks, a likelihood and a prior of one's own: three examples to copy from.

    python -m experiments.own_networks --model=vectors --workdir=runs/vectors
    python -m experiments.own_networks --model=nnx --targets_nats=4.0,2.0
    python -m experiments.own_networks --model=images --grid_betas=0.3,1.0,3.0

`vectors`: networks and a learned prior for `Hierarchy`, on noisy sine waves `[N, 16]`. `nnx`: a module of
flax.nnx that fills `LayerwiseTerms` by itself, on the same. `images`: the published networks under a
likelihood that the library does not have, on scikit-learn's digits. A run's folder is what `experiments.run`
leaves, without the figures; --grid_betas trains a grid over the betas of every layer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments import digits, program
from hvae_jax import (
    Gaussian,
    GaussianPixels,
    Hierarchy,
    LayerwiseTerms,
    ModelConfig,
    data,
    kl_divergence,
    make_hvae,
    own,
)
from hvae_jax.data import DataConfig, Dataset
from hvae_jax.errors import RunError
from hvae_jax.experiment import Experiment
from hvae_jax.gaussian import log_prob, sample, standard
from hvae_jax.keys import fold_in, per_image_keys
from hvae_jax.models.convolution_products import matmul

NUM_POINTS, NOISE = 16, 0.3


# Networks and a prior for `Hierarchy`: z_2 `[B, 2]` above z_1 `[B, 4]` above x `[B, 16]`.


@dataclasses.dataclass
class Perceptrons:
    """A state is the latent above a layer, so x depends on z_1 alone."""

    params: dict[str, Any]
    num_layers = 2

    def bottom_up(self, x: jax.Array) -> jax.Array:
        """What posteriors read of x: all of it."""
        return x

    def start(self, batch_size: int) -> jax.Array:
        """Nothing is above z_2."""
        return jnp.zeros((batch_size, 0))

    def prior(self, layer: int, state: jax.Array) -> tuple[Gaussian, jax.Array]:
        """p(z_1|z_2), and a p(z_2) that is learned, not N(0, I)."""
        if layer == 1:
            return self.gaussian("p_1", state), state
        learned = jnp.broadcast_to(self.params["p_2"][None], (len(state), 4))
        return as_gaussian(learned), state

    def posterior(self, layer: int, state: jax.Array, features: jax.Array, p: Gaussian) -> Gaussian:
        """q(z_2|x) and q(z_1|z_2, x)."""
        return self.gaussian(f"q_{layer}", jnp.concatenate([features, state], axis=1))

    def below(self, layer: int, state: jax.Array, z: jax.Array) -> jax.Array:
        """z alone."""
        return z

    def outputs(self, state: jax.Array) -> jax.Array:
        """Means of x, of z_1."""
        return self.perceptron("x", state)

    def gaussian(self, name: str, h: jax.Array) -> Gaussian:
        """From a perceptron."""
        return as_gaussian(self.perceptron(name, h))

    def perceptron(self, name: str, h: jax.Array) -> jax.Array:
        """One hidden layer."""
        hidden, out = self.params[name]
        return matmul(jnp.tanh(matmul(h, hidden)), out)


def as_gaussian(h: jax.Array) -> Gaussian:
    """Means, and beside them what becomes standard deviations."""
    mean, raw = jnp.split(h, 2, axis=-1)
    return Gaussian(mean, jax.nn.softplus(raw) + 1e-3)


def init_vectors(key: jax.Array) -> dict[str, Any]:
    """Of `Perceptrons`."""
    sizes = {"q_2": (16, 4), "q_1": (18, 8), "p_1": (2, 8), "x": (4, NUM_POINTS)}
    params: dict[str, Any] = {"p_2": jnp.zeros(4)}
    for number, (name, (num_in, num_out)) in enumerate(sizes.items()):
        hidden, out = jax.random.split(jax.random.fold_in(key, number))
        params[name] = (
            jax.random.normal(hidden, (num_in, 32)) / num_in**0.5,
            0.1 * jax.random.normal(out, (32, num_out)) / 32**0.5,
        )
    return params


def vector_terms(params: dict[str, Any], x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
    """D, R_1 and R_2; the same `Hierarchy` also encodes, reconstructs and generates."""
    return Hierarchy(Perceptrons(params), GaussianPixels(NOISE)).terms(x, keys)


# A module of nnx that knows nothing of the library but `LayerwiseTerms`.


class Waves(nnx.Module):
    """Two layers, written out."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        # In JAX's own precision GPUs and TPUs would take fewer digits than float32 has.
        linear = functools.partial(nnx.Linear, precision="highest", rngs=rngs)
        self.q_2, self.q_1 = linear(NUM_POINTS, 4), linear(NUM_POINTS + 2, 8)
        self.p_1, self.x = linear(2, 8), linear(4, NUM_POINTS)

    def __call__(self, x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
        """D, R_1 and R_2 of each of x `[B, 16]`."""
        q_2 = as_gaussian(self.q_2(x))
        z_2 = sample(fold_in(keys, 1), q_2)
        q_1, p_1 = as_gaussian(self.q_1(jnp.concatenate([x, z_2], axis=1))), as_gaussian(self.p_1(z_2))
        mean = self.x(sample(fold_in(keys, 0), q_1))
        rates = kl_divergence(q_1, p_1), kl_divergence(q_2, standard(q_2))
        return LayerwiseTerms(
            -log_prob(Gaussian(mean, jnp.full_like(mean, NOISE)), x), jnp.stack(rates, axis=1)
        )


def init_nnx(key: jax.Array) -> dict[str, Any]:
    """The parameters as nested dicts, which checkpoints and stacks of models take."""
    return nnx.to_pure_dict(nnx.state(Waves(nnx.Rngs(key))))


def nnx_terms(params: dict[str, Any], x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
    """A module made of the parameters, and called."""
    module = nnx.eval_shape(lambda: Waves(nnx.Rngs(0)))
    structure, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(structure, state)(x, keys)


# A likelihood, under networks that the library has.


@dataclasses.dataclass(frozen=True)
class LaplacePixels:
    """Independent Laplace pixels of one scale; what the networks give are means."""

    scale: float

    def num_outputs(self, channels: int) -> int:
        """One mean per channel."""
        return channels

    def log_prob(self, outputs: jax.Array, x: jax.Array) -> jax.Array:
        """Σ log p, `[B]`, nats."""
        terms = -jnp.abs(x - outputs) / self.scale - jnp.log(2.0 * self.scale)
        return terms.reshape(len(x), -1).sum(axis=1)

    def mean(self, outputs: jax.Array) -> jax.Array:
        """E[x|z]."""
        return outputs

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """x drawn from p(x|z)."""
        keys = per_image_keys(key, len(outputs))
        noise = jax.vmap(lambda key: jax.random.laplace(key, outputs.shape[1:]))(keys)
        return outputs + self.scale * noise


@functools.cache
def image_model() -> Any:
    """The networks of `digits.py`; a Gaussian likelihood's outputs are as many as a Laplace one's."""
    config = {**digits.get_config().to_dict()["model"], "likelihood": "gaussian_fixed_std"}
    return make_hvae(ModelConfig(**config), (8, 8, 1))


def init_images(key: jax.Array) -> Any:
    """Of the published networks."""
    return image_model().init(key, jnp.zeros((1, 8, 8, 1)), key)


def image_terms(params: Any, x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
    """D under the own likelihood."""
    return image_model().apply(
        params, method=lambda model: Hierarchy(model.networks, LaplacePixels(0.15)).terms(x, keys)
    )


# What is the same for all three.


def waves() -> Dataset:
    """Sine waves of random phase and height in noise."""
    rng = np.random.default_rng(0)
    phase, height = 2 * np.pi * rng.random((6000, 1)), 1.0 + 0.3 * rng.normal(size=(6000, 1))
    angle = 2 * np.pi * np.arange(NUM_POINTS) / NUM_POINTS
    x = height * np.sin(angle + phase) + NOISE * rng.normal(size=(6000, NUM_POINTS))
    return own.make_dataset("waves", *np.split(x.astype(np.float32), [5000, 5500]))


def digit_images() -> Dataset:
    """Of scikit-learn, as bytes."""
    return data.load(DataConfig(**digits.get_config().to_dict()["data"]))


MODELS: dict[str, tuple[Callable[[], Dataset], own.InitFn, Any, Any]] = {
    "vectors": (waves, init_vectors, vector_terms, own.unchanged),
    "nnx": (waves, init_nnx, nnx_terms, own.unchanged),
    "images": (digit_images, init_images, image_terms, data.make_preprocess("none")),
}


def make(name: str, changes: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], Experiment]:
    """The config of an example, with fields changed by group, and what is trained by it."""
    base = digits.get_config().to_dict()
    config: dict[str, Any] = {group: dict(base[group]) for group in own.GROUPS}
    for group, fields in changes.items():
        config[group] = {**config.get(group, {}), **fields}
    config["example"] = {"name": name}  # ours to name: it tells this run from those of other networks
    load, init_fn, terms_fn, preprocess_fn = MODELS[name]
    return config, own.build(config, load(), init_fn, terms_fn, preprocess_fn)


def main(arguments: list[str]) -> None:
    """Reads the flags, trains a run or a grid."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    options = flags.FLAGS
    folder = program.folder_flag("workdir", options.workdir or f"runs/own_{options.model}")
    changes: dict[str, dict[str, Any]] = {"training": {"num_epochs": options.num_epochs}}
    if targets := numbers("targets_nats"):
        changes["objective"] = {"control": "target_rates", "targets_nats": targets}
        changes["training"]["learning_rate_decay_fraction"] = 0.5
    if betas := numbers("grid_betas"):
        changes["grid"] = {
            **dict.fromkeys(("points", "targets_nats", "target_points"), ()),
            **{
                "betas": (betas, betas),
                "seeds": (0,),
                "data_order": "shared",
                "chunk_size": 0,
                "memory_gib": 0.0,
            },
        }
    program.start_devices()
    config, built = make(options.model, changes)
    if betas:
        own.train_grid(folder, config, built)
    else:
        own.train(folder, config, built, [show])
    print(f"Everything is in {folder}")


def show(row: dict[str, Any]) -> None:
    """Prints a row of the log where it is of the validation split."""
    if row["split"] == "valid":
        rates = "  ".join(f"R_{layer} {rate:.3f}" for layer, rate in enumerate(row["rates_nats"], start=1))
        print(f"step {row['step']}  D {row['distortion_nats']:.3f}  {rates} nats", flush=True)


def numbers(name: str) -> tuple[float, ...]:
    """A flag's list."""
    given: list[str] = getattr(flags.FLAGS, name) or []
    try:
        return tuple(map(float, given))
    except ValueError as error:
        raise RunError(f"--{name}={','.join(given)} must be numbers: {error}") from error


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_enum("model", "vectors", list(MODELS), "Which example.")
    flags.DEFINE_string("workdir", None, "The run's folder; runs/own_MODEL by default.")
    flags.DEFINE_list("targets_nats", None, "Rates to solve for, of z_1 and z_2.")
    flags.DEFINE_list("grid_betas", None, "Betas of each layer for a grid.")
    flags.DEFINE_float("num_epochs", 40.0, "Passes over the training split.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
