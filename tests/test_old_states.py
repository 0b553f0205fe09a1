"""Checkpoints of 0.1.0, whose BetaState had the betas that a warm-up leads to beside those of the step."""

import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvae_jax import experiment, going_on
from hvae_jax.betas import BetaControl, BetaState, constant, linear_warmup
from hvae_jax.controls import target_rates
from hvae_jax.errors import RunError
from hvae_jax.training import checkpoints
from hvae_jax.training.checkpoints import Checkpoints

RATES = target_rates((3.0, 2.0), (1e-3, 1e-3), (1e3, 1e3))
# With the number of updates after which each was saved: a warm-up in its middle, and past its end.
CASES = {
    "plain": (constant(), 3),
    "warming_up": (linear_warmup(8), 3),
    "warmed_up": (linear_warmup(8), 9),
    "rates": (RATES, 9),
    "rates_warming_up": (linear_warmup(8, RATES), 3),
    "rates_warmed_up": (linear_warmup(8, RATES), 12),
}


class Saved(NamedTuple):
    """A BetaState of 0.1.0, written down here once more."""

    betas: jax.Array
    step: jax.Array
    final_betas: jax.Array
    memory: Any


class Run(NamedTuple):
    """As a TrainState, with the fields that matter here."""

    params: Any
    beta_state: Any


def moved(control: BetaControl, num_updates: int, rate: float = 4.0) -> BetaState:
    state = control.init(jnp.array([0.5, 2.0]))
    update = jax.jit(control.update)
    for _ in range(num_updates):
        state = update(state, jnp.array(90.0), jnp.full(2, rate))
    return state


def as_it_was(state: BetaState) -> Saved:
    inner = state.memory if isinstance(state.memory, BetaState) else state
    return Saved(state.betas, state.step, inner.betas, inner.memory)


def save(folder, state) -> None:
    written = Checkpoints(folder, num_kept=1)
    written.save(1, state)
    written.close()


def test_old_states_become_those_of_today_in_runs_and_in_stacks(tmp_path):
    now = {name: Run({"w": jnp.ones(3)}, moved(*case)) for name, case in CASES.items()}
    # A grid's chunk has them with a leading model axis, and deeper.
    control = linear_warmup(8, RATES)
    models = [Run({"w": jnp.zeros(3)}, moved(control, 12, rate)) for rate in (1.0, 2.0, 5.0)]
    now["stack"] = Run({}, jax.tree.map(lambda *leaves: jnp.stack(leaves), *models))
    was = {
        name: run._replace(beta_state=as_it_was(run.beta_state)) for name, run in now.items() if run.params
    }
    stack = now["stack"].beta_state
    was["stack"] = Run({}, stack._replace(beta_state=as_it_was(stack.beta_state)))
    save(tmp_path / "was", was)
    save(tmp_path / "now", now)
    like = jax.eval_shape(lambda: now)
    assert checkpoints.checksum(tmp_path / "was") == checkpoints.sum_state(was)
    for folder in ("was", "now"):
        restored = Checkpoints(tmp_path / folder, num_kept=1).restore(like)
        assert jax.tree.structure(restored) == jax.tree.structure(now)
        jax.tree.map(np.testing.assert_array_equal, restored, now)
    # In numbers: three eighths of the way, and what the control goes on from.
    found = Checkpoints(tmp_path / "was", num_kept=1).restore(like)["warming_up"].beta_state
    assert found.betas.tolist() == [0.1875, 0.75]
    assert found.memory.betas.tolist() == [0.5, 2.0]
    assert int(found.step) == int(found.memory.step) == 3


def test_a_run_that_started_from_an_old_checkpoint_still_knows_it(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pathlib.Path(__file__).parent / "run_0_1_0", folder)
    built = experiment.from_folder(folder)
    state = experiment.restore(built, folder)
    was = state._replace(beta_state=as_it_was(state.beta_state))
    shutil.rmtree(folder / "checkpoints")
    save(folder / "checkpoints", was)  # with the checksum that later versions keep, and init_from.json has
    start = going_on.Start(str(folder), 1, checkpoints.sum_state(was))
    found = going_on.init_state(built, start)
    jax.tree.map(np.testing.assert_array_equal, found.params, state.eval_params)


def test_an_old_state_is_checked_as_any_other(tmp_path):
    save(tmp_path / "c", Run({}, as_it_was(moved(*CASES["plain"]))))
    with pytest.raises(RunError, match="is of another model"):
        Checkpoints(tmp_path / "c", num_kept=1).restore(Run({}, constant().init(jnp.ones(3))))
    save(tmp_path / "d", Run({}, {**as_it_was(moved(*CASES["plain"]))._asdict(), "added": {}}))
    with pytest.raises(RunError, match=r"holds beta_state\.added, which this version"):
        Checkpoints(tmp_path / "d", num_kept=1).restore(Run({}, constant().init(jnp.ones(2))))
