"""Trees of parameters as vectors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_gaussian import data, identity, init_params, terms_fn
from linear_runs import short

from hvae_jax import betas, training
from hvae_jax.training import raveled, stacks

PARAMS = {
    "a": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "b": {"c": np.array([7.0], np.float32), "d": np.array(8.0, np.float32)},
}


def test_a_tree_is_end_to_end_in_the_order_of_its_leaves():
    found = raveled.ravel(PARAMS)
    assert found.vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert found.shapes == ((2, 3), (1,), ())


@pytest.mark.parametrize("on_devices", [False, True])
def test_the_tree_comes_back_as_it_was(on_devices):
    params = jax.tree.map(jnp.asarray, PARAMS) if on_devices else PARAMS
    back = raveled.ravel(params).tree()
    chex.assert_trees_all_equal(back, params)
    kind = jax.Array if on_devices else np.ndarray
    assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(back))


def test_leading_axes_stay():
    models = jax.tree.map(lambda leaf: np.stack([leaf, -leaf]), PARAMS)
    found = raveled.ravel(models, num_leading=1)
    assert found.vector.shape == (2, 8)
    chex.assert_trees_all_equal(found.tree(), models)
    one = jax.tree.map(lambda leaf: leaf[1], found)
    chex.assert_trees_all_equal(one.tree(), jax.tree.map(np.negative, PARAMS))


def test_what_is_like_the_parameters_is_raveled_and_nothing_else():
    state = {
        "params": PARAMS,
        "moments": (PARAMS, PARAMS),
        "count": np.array(3),
        "betas": np.ones(2),
        "none": {},
    }
    found = raveled.ravel_like(PARAMS, state)
    assert isinstance(found["params"], raveled.Raveled)
    assert all(isinstance(part, raveled.Raveled) for part in found["moments"])
    assert found["count"] is state["count"]
    assert found["betas"] is state["betas"]
    chex.assert_trees_all_equal(raveled.unravel(found), state)


@pytest.mark.parametrize(
    "params",
    [{}, {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float16)}, np.zeros(2, np.float32)],
    ids=["none", "of two types", "one array"],
)
def test_other_parameters_stay_as_they_are(params):
    state = {"params": params, "betas": np.ones(2, np.float32)}
    found = raveled.ravel_like(params, state)
    assert found["params"] is params
    assert found["betas"] is state["betas"]


def test_a_tree_of_other_shapes_is_not_like_the_parameters():
    other = {"a": np.zeros((3, 2), np.float32), "b": PARAMS["b"]}
    assert raveled.ravel_like(PARAMS, (PARAMS, other))[1]["a"] is other["a"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_grad_norm": 0.1, "weight_decay": 0.1, "ema_decay": 0.9},
        {"skip_grad_norm": 1e3, "micro_batch": 8},
    ],
)
def test_a_step_is_the_same_in_both_forms(changes):
    config, control = short(3, **changes), betas.constant()
    state = training.init_state(init_params(), (1.0, 0.5), control, config)
    step_fn = jax.jit(training.make_train_step(terms_fn, identity, control, config))
    images = jnp.asarray(data(16))
    as_tree, as_vector = state, raveled.ravel_like(state.params, state)
    for _ in range(3):
        as_tree, metrics = step_fn(as_tree, images)
        as_vector, same = step_fn(as_vector, images)
        chex.assert_trees_all_close(metrics, same, rtol=1e-5)
    assert isinstance(as_vector.params, raveled.Raveled)
    chex.assert_trees_all_close(raveled.unravel(as_vector), as_tree, rtol=1e-5, atol=1e-7)


def test_a_stack_is_one_vector_a_model():
    config, control = short(3), betas.constant()
    states = [
        training.init_state(init_params(), of_model, control, config) for of_model in ((1.0, 0.5), (2.0, 3.0))
    ]
    stack = stacks.new_stack(states)
    found = stacks.ravel_states(stack.states)
    assert found.params.vector.shape[0] == 2
    chex.assert_trees_all_equal(raveled.unravel(found), stack.states)
