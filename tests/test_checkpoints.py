import jax.numpy as jnp
import numpy as np
import pytest

from hvae_jax.checkpoints import Checkpoints
from hvae_jax.errors import RunError

STATE = {"params": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.asarray(3, jnp.int32)}


def save(folder, steps=(1, 2, 3)) -> None:
    checkpoints = Checkpoints(folder, num_kept=2)
    for step in steps:
        checkpoints.save(step, {**STATE, "step": jnp.asarray(step, jnp.int32)})
    checkpoints.wait()
    checkpoints.close()


def test_a_state_comes_back_and_only_the_newest_are_kept(tmp_path):
    save(tmp_path / "c")
    checkpoints = Checkpoints(tmp_path / "c", num_kept=2)
    assert checkpoints.latest_step() == 3
    restored = checkpoints.restore(STATE)
    np.testing.assert_array_equal(restored["params"]["kernel"], STATE["params"]["kernel"])
    assert int(checkpoints.restore(STATE, step=2)["step"]) == 2
    with pytest.raises(RunError, match="no checkpoint of step 1"):
        checkpoints.restore(STATE, step=1)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", num_kept=2)
    assert checkpoints.latest_step() is None
    with pytest.raises(RunError, match="holds no checkpoint"):
        checkpoints.restore(STATE)


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_still_loads(tmp_path):
    save(tmp_path / "c")
    for file in (tmp_path / "c" / "3").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoints = Checkpoints(tmp_path / "c", num_kept=2)
    with pytest.raises(RunError, match=r"c/3 is damaged .* resume from step 2"):
        checkpoints.restore(STATE)
    assert int(checkpoints.restore(STATE, step=2)["step"]) == 2


def test_a_checkpoint_of_another_model_is_one_line(tmp_path):
    save(tmp_path / "c")
    other = {**STATE, "params": {"kernel": jnp.zeros((4, 3))}}
    with pytest.raises(RunError, match="is of another model") as error:
        Checkpoints(tmp_path / "c", num_kept=2).restore(other)
    assert "\n" not in str(error.value)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(RunError, match="cannot be used for checkpoints"):
        Checkpoints(tmp_path / "c", num_kept=2)
    assert (tmp_path / "c").read_text() == "mine"
