"""A model with a categorical layer in training: the relaxation's schedule, a packed stack that is resumed."""

from typing import Any

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from experiments import digits_categorical, pictures
from hvae_jax import betas, experiment, training
from hvae_jax.errors import Stopped
from hvae_jax.experiment import Experiment
from hvae_jax.grid.members import Member
from hvae_jax.grid.packed import PackedTrainer, init_stack
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import stacks
from hvae_jax.training.stacks import Stack

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


@pytest.mark.long
def test_a_packed_stack_resumes_with_the_temperatures_of_its_steps(config, built):
    """Stopped after a step, it ends where one that was not stopped does; models differ by their seeds."""
    members = [
        Member(seed, {**config, "training": {**config["training"], "seed": seed}}, {}) for seed in (0, 1)
    ]
    trainer, stack = PackedTrainer(built, 2), init_stack(built, members)
    saved: dict[int, Stack] = {}
    rows = [], []
    whole = trainer.train(stack, rows, members, save=saved.__setitem__)
    with pytest.raises(Stopped):
        trainer.train(stack, rows, members, save=saved.__setitem__, stop_requested=lambda: True)
    assert 0 < min(saved) < 4
    resumed = trainer.train(saved[min(saved)], rows, members, save=saved.__setitem__)
    for a, b in zip(jax.tree.leaves(resumed.states), jax.tree.leaves(whole.states), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(row["rates_nats"][1] > 0 for row in rows[0])
    assert rows[0][-1]["rates_nats"] != rows[1][-1]["rates_nats"]

    params = stacks.entry(whole.states, 0).params
    by_value = pictures.sample_by_value(built, params, jax.random.key(0))
    assert [*by_value] == ["value 1", "value 2", "value 3"]
    assert by_value["value 1"].shape == (pictures.NUM_PICTURES, 8, 8, 1)
    assert np.abs(by_value["value 1"] - by_value["value 2"]).max() > 0
