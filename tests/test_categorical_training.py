"""A model with a categorical layer in training: the relaxation's schedule, a resumed run, a packed stack."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from experiments import digits_categorical, run
from hvae_jax import betas, experiment, records, training
from hvae_jax.errors import Stopped
from hvae_jax.experiment import Experiment
from hvae_jax.grid.members import Member
from hvae_jax.grid.packed import PackedTrainer, init_stack
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import stacks

RATE, LOWEST = 0.5, 0.3


@pytest.fixture(scope="module")
def config(tiny_data) -> dict[str, Any]:
    """Two variables with three values each over a small map; eight steps of two epochs."""
    config = digits_categorical.get_config().to_dict()
    config["data"].update(name=f"npz:{tiny_data}", num_valid=0)
    shapes = {"latent_shapes": ((4, 4, 1), (2, 3)), "channels": 2, "num_stages": 1}
    config["model"].update(shapes, gumbel_schedule=(RATE, LOWEST))
    steps = {"num_epochs": 2.0, "batch_size": 16, "learning_rate": 0.01}
    every = dict.fromkeys(("log_every_steps", "eval_every_steps", "checkpoint_every_steps"), 4)
    config["training"].update(steps, **every)
    config["evaluation"].update(num_samples=2, num_importance_samples=4)
    return config


@pytest.fixture(scope="module")
def built(config) -> Experiment:
    """What it describes."""
    return experiment.from_config(config)


def train(folder: Any, built: Experiment, stop_after: int | None = None) -> Any:
    """The final state, or a stop after as many calls, the first of which is one step."""
    calls = iter(range(100))
    with contextlib.closing(built.make_batches()) as batches:
        return training.train(
            records.open_run(folder, {}),
            built.init_state(),
            built.train_terms_fn,
            batches,
            preprocess_fn=built.preprocess_fn,
            control=built.make_control(),
            config=built.training,
            stop_requested=lambda: next(calls) == stop_after,
        )


def test_terms_of_a_step_are_told_the_step():
    def at(step: jax.Array) -> Any:
        def terms_fn(params: Any, x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
            return LayerwiseTerms(jnp.full(len(x), 10.0 * step), jnp.full((len(x), 2), params["m"]))

        return terms_fn

    config = linear_gaussian.training_config(batch_size=4)
    terms_fn = training.TermsOfStep(at)
    step_fn = jax.jit(training.make_train_step(terms_fn, identity, betas.constant(), config))
    state = training.init_state({"m": jnp.ones(())}, (1.0, 1.0), betas.constant(), config)
    found = []
    for _ in range(3):
        state, metrics = step_fn(state, jnp.zeros((4, 1)))
        found.append(float(metrics.distortion))
    assert found == [0.0, 10.0, 20.0]


def test_the_temperature_follows_the_epoch(built, monkeypatch):
    asked = []
    model = type(built.model)
    monkeypatch.setattr(model, "apply", lambda *_, gumbel_temperature: asked.append(gumbel_temperature))
    for step in (0, 9, 900):  # 72 images, 16 a step: two epochs
        built.train_terms_fn.at(step)(None, None, None)
    np.testing.assert_allclose(asked, [1.0, np.exp(-2 * RATE), LOWEST], rtol=1e-6)


def test_a_run_that_resumed_is_the_one_that_went_through_in_a_stack(config, built, tmp_path):
    """With a step counted from the resumption, its temperatures would be others."""
    with pytest.raises(Stopped):
        train(tmp_path, built, stop_after=1)
    resumed = train(tmp_path, built)
    assert (records.load(tmp_path)["rates_nats"] > 0).all()
    members = [
        Member(seed, {**config, "training": {**config["training"], "seed": seed}}, {}) for seed in (0, 1)
    ]
    stack = PackedTrainer(built, 2).train(
        init_stack(built, members), [[], []], members, save=lambda step, stack: None
    )
    first = stacks.entry(stack.states, 0).params
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    rows = run.sample_by_value(built, resumed.params, jax.random.key(0))
    assert [*rows] == ["value 1", "value 2", "value 3"]
    assert rows["value 1"].shape == (run.NUM_PICTURES, 8, 8, 1)
    assert np.abs(rows["value 1"] - rows["value 2"]).max() > 0
