"""Runs that are cut short or go on, and those that must not: bit for bit, or one line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity
from linear_runs import short, train_linear

from hvae_jax import betas, records, training
from hvae_jax.errors import RunError, Stopped
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import batches, checkpoints, loop
from hvae_jax.training.checkpoints import Checkpoints


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    images, config = linear_gaussian.data(64), short(17)
    whole = train_linear(tmp_path / "whole", config, images)

    def stop(row):
        if row["step"] == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_linear(tmp_path / "cut", config, images, reports=[stop])
    resumed = train_linear(tmp_path / "cut", config, images)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows_without_speed(tmp_path / "cut") == rows_without_speed(tmp_path / "whole")
    assert [row["step"] for row in rows_without_speed(tmp_path / "cut")] == [5, 10, 15, 17]


def test_a_run_stopped_on_request_goes_on_bit_for_bit(tmp_path, monkeypatch):
    # No time is short enough for two steps, so every call is one step.
    monkeypatch.setattr(loop, "CALL_SECONDS", 0.0)
    images, config = linear_gaussian.data(64), short(17)
    whole = train_linear(tmp_path / "whole", config, images)
    # Between two rows; where a row is due, a checkpoint too; after the last step.
    for at_step, after in ((3, 3), (10, 7), (17, 7)):
        calls = iter(range(1, 18))
        with pytest.raises(Stopped) as stopped:
            train_linear(
                tmp_path / "cut", config, images, stop_requested=lambda a=after, c=calls: next(c) == a
            )
        assert stopped.value.step == Checkpoints(tmp_path / "cut" / "checkpoints", 2).latest_step() == at_step
    resumed = train_linear(tmp_path / "cut", config, images)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows_without_speed(tmp_path / "cut") == rows_without_speed(tmp_path / "whole")


def validated(folder, num_steps: int, stop_requested=lambda: False, **changes):
    """A run that validates; every 10 steps, and at its end."""
    images, config = linear_gaussian.data(64), short(num_steps, eval_every_steps=10, **changes)
    control = betas.constant()
    terms = jax.device_get(LayerwiseTerms(jnp.full(8, 2.0), jnp.ones((8, 2))))
    return training.train(
        folder,
        training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config),
        linear_gaussian.terms_fn,
        batches.ResidentBatches(images, config),
        preprocess_fn=identity,
        control=control,
        config=config,
        validate=lambda params: terms,
        stop_requested=stop_requested,
    )


@pytest.mark.long
def test_a_run_that_goes_on_equals_one_that_was_planned_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CALL_SECONDS", 0.0)
    whole = validated(tmp_path / "whole", 33, checkpoint_every_steps=10, num_checkpoints=9)
    # It ends between two rows; where a row is due, but no validation and no checkpoint; it is stopped.
    cut = tmp_path / "cut"
    for num_steps in (3, 15, 17):
        validated(cut, num_steps, checkpoint_every_steps=10, num_checkpoints=9)
        assert records.load(cut)["step"][-1] == records.load(cut, "valid")["step"][-1] == num_steps
    calls = iter(range(99))
    with pytest.raises(Stopped):
        validated(cut, 33, lambda: next(calls) == 2, checkpoint_every_steps=10, num_checkpoints=9)
    gone_on = validated(cut, 33, checkpoint_every_steps=10, num_checkpoints=9)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(gone_on), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows_without_speed(cut) == rows_without_speed(tmp_path / "whole")
    steps = [Checkpoints(folder / "checkpoints", 9).folder for folder in (cut, tmp_path / "whole")]
    assert [checkpoints.steps_of(folder) for folder in steps] == [[10, 20, 30, 33]] * 2
    with pytest.raises(RunError, match=r"num_epochs=4.0 is 16 steps, and .* has a checkpoint of step 33"):
        validated(cut, 16)


@pytest.mark.parametrize("content", ["half", "", None])
def test_a_rate_log_that_lacks_rows_is_not_gone_on_with(tmp_path, content):
    images, file = linear_gaussian.data(64), tmp_path / records.RATES_FILE
    train_linear(tmp_path, short(17), images)
    text = file.read_text()
    if content is None:
        file.unlink()
    else:
        file.write_text(text[: len(text) // 2] if content else "")
    for num_steps in (17, 25):
        with pytest.raises(
            RunError, match=r"rates\.jsonl .* the run had logged step 1[57]: rows are missing"
        ):
            train_linear(tmp_path, short(num_steps), images)
    file.write_text(text)
    train_linear(tmp_path, short(17), images)
    assert file.read_text() == text


def test_progress_of_a_newer_version_is_refused(tmp_path):
    images = linear_gaussian.data(64)
    state = train_linear(tmp_path, short(5), images)
    newer = Checkpoints(tmp_path / "checkpoints", 2)
    newer.save(6, state, {"logged": 5, "added": 1})
    newer.wait()
    with pytest.raises(RunError, match="holds added, which this version of hvae_jax does not know"):
        train_linear(tmp_path, short(17), images)


def rows_without_speed(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / records.RATES_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def test_not_a_number_in_the_data_names_the_step_and_keeps_the_checkpoint(tmp_path):
    images, config = linear_gaussian.data(64), short(40)
    order = batches.batch_indices(config.seed, 64, 16, 0, 12)
    first_seen = order[11, 0]  # the first epoch ends at step 4, so poison an image only from then on
    assert first_seen in order[:4]
    train_linear(tmp_path, dataclasses.replace(config, num_epochs=10 / 4), images)
    images[first_seen] = np.nan
    seen_at = 10 + int(
        np.argmax((batches.batch_indices(config.seed, 64, 16, 10, 4) == first_seen).any(axis=1))
    )
    with pytest.raises(RunError, match=f"not finite at step {seen_at + 1}; checkpoint 10 is kept"):
        train_linear(tmp_path, config, images)
    assert Checkpoints(tmp_path / "checkpoints", 2).latest_step() == 10
    assert records.load(tmp_path)["step"].tolist() == [5, 10]


def test_a_learning_rate_that_diverges_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"not finite at step \d+; .*learning_rate"):
        train_linear(tmp_path, short(200, learning_rate=1e3), linear_gaussian.data(64))
