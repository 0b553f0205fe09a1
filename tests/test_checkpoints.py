import json
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from hvae_jax.errors import RunError
from hvae_jax.training import checkpoints as checkpoints_module
from hvae_jax.training.checkpoints import Checkpoints

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
    with pytest.raises(RunError, match="no checkpoint of step 1; the steps there are: 2, 3"):
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


def restore(folder: pathlib.Path, like) -> tuple:
    """The state and None, or None and what the error says."""
    try:
        return Checkpoints(folder, num_kept=2).restore(like), None
    except RunError as error:
        return None, str(error)


def arrays_file(folder: pathlib.Path) -> pathlib.Path:
    """Where the arrays of a checkpoint are."""
    return max((folder / "default" / "d").iterdir(), key=lambda file: file.stat().st_size)


def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path):
    """Every hundredth byte of the arrays' file in turn: never other numbers without a word."""
    state = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)}
    checkpoints = Checkpoints(tmp_path / "c", num_kept=1)
    checkpoints.save(1, state)
    checkpoints.wait()
    file = arrays_file(tmp_path / "c" / "1")
    content, num_found = file.read_bytes(), 0
    for place in range(0, len(content), 9):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        restored, error = restore(tmp_path / "c", state)
        if restored is None:
            assert "c/1 is damaged" in error
            assert "delete that folder" in error
            num_found += 1
        else:
            np.testing.assert_array_equal(restored["kernel"], state["kernel"])
    assert num_found > 0


def test_a_checksum_tells_states_apart_and_is_checked(tmp_path):
    save(tmp_path / "c")
    sums = [checkpoints_module.checksum(tmp_path / "c", step) for step in (2, 3)]
    assert sums[0] != sums[1]
    assert checkpoints_module.checksum(tmp_path / "c") == sums[1]
    # Of what orbax itself does not notice: another number in the file that says what the state's sum is.
    file = tmp_path / "c" / "3" / "progress" / "metadata"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "checksum": sums[0]}))
    with pytest.raises(RunError, match=r"c/3 is damaged .* delete that folder"):
        Checkpoints(tmp_path / "c", num_kept=2).restore(STATE)
    del content["checksum"], content["progress_checksum"]  # as 0.1.0 wrote it
    file.write_text(json.dumps(content))
    assert int(Checkpoints(tmp_path / "c", num_kept=2).restore(STATE)["step"]) == 3
    assert checkpoints_module.checksum(tmp_path / "c", 3) is None


class Now(NamedTuple):
    step: jnp.ndarray


class Later(NamedTuple):
    step: jnp.ndarray
    added: dict  # holds no array, so that shapes alone do not tell


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", num_kept=1)
    checkpoints.save(1, Later(jnp.zeros(()), {}))
    checkpoints.wait()
    with pytest.raises(RunError, match="holds added, which this version of hvae_jax does not know"):
        checkpoints.restore(Now(jnp.zeros(())))
    assert checkpoints.restore(Later(jnp.zeros(()), {})).added == {}


@pytest.mark.parametrize("damage", ["emptied", "cut", "removed"])
def test_each_file_of_a_checkpoint_is_named_or_not_needed(tmp_path, capfd, damage):
    save(tmp_path / "c", steps=(1,))
    files = sorted(file for file in (tmp_path / "c" / "1").rglob("*") if file.is_file())
    num_named = 0
    for file in files:
        content = file.read_bytes()
        if damage == "removed":
            file.unlink()
        else:
            file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
        restored, error = restore(tmp_path / "c", STATE)
        if restored is None:
            assert "c/1 is damaged" in error
            assert "\n" not in error
            num_named += 1
        else:
            np.testing.assert_array_equal(restored["params"]["kernel"], STATE["params"]["kernel"])
        file.write_bytes(content)
    assert num_named >= 3
    assert capfd.readouterr() == ("", "")
