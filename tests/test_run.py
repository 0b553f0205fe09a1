"""The program as a user runs it, in processes of its own."""

import pathlib
import shutil
import signal

import numpy as np
import programs as started
import pytest
import tiny
from programs import Stop
from tiny import assert_one_error, rows

from hvae_jax import records


def test_a_run_leaves_everything_it_promises(finished_run):
    names = {"config.json", "versions.json", "data.json", "rates.jsonl", "checkpoints", "evaluation.json"}
    names |= {"figures", "run.lock"}
    assert {entry.name for entry in finished_run.iterdir()} == names
    figures = {file.name for file in (finished_run / "figures").iterdir()}
    assert figures == {"training.png", "rate_distortion.png", "reconstructions.png", "samples.png"}
    test = records.read_json(finished_run / "evaluation.json")["test"]
    assert test["num_images"] == tiny.NUM_TEST
    assert test["negative_elbo_nats"] == pytest.approx(
        test["distortion_nats"] + sum(test["rates_nats"]), rel=1e-6
    )
    assert test["bits_per_dim"] == pytest.approx(test["negative_elbo_nats"] / (64 * np.log(2)), rel=1e-6)
    # The importance-weighted bound is the tighter one.
    assert test["negative_importance_weighted_bound_nats"] < test["negative_elbo_nats"]
    log = records.load(finished_run)
    assert log["step"].tolist() == [4, 8, 12, 16, 20, 24, 25]
    assert log["loss_nats"][-1] < log["loss_nats"][0]
    assert records.load(finished_run, "valid")["step"].tolist() == [8, 16, 24, 25]


def test_stopped_in_every_way_and_resumed_it_equals_an_uninterrupted_run_bit_for_bit(
    programs, finished_run, tiny_data, tmp_path
):
    folder = tmp_path / "run"
    flags = tiny.run_flags(tiny_data, folder)
    checkpoints, log, wanted = folder / "checkpoints", folder / "rates.jsonl", rows(finished_run)

    def steps() -> list[int]:
        return sorted(int(entry.name) for entry in checkpoints.iterdir() if entry.name.isdigit())

    # While it compiles, Ctrl-C ends it at once.
    process = programs.start("run", *flags)
    started.wait_for((folder / "data.json").exists, "the run has opened its folder")
    process.send_signal(signal.SIGINT)
    assert_one_error(process.wait(30.0), "stopped; the same command resumes from the last checkpoint")
    assert not log.exists()

    # Killed, it leaves what it had.
    stop = Stop(log, num_rows=6)
    process = programs.start("run", *flags, stop=stop)
    assert stop.pid() == process.pid
    process.send_signal(signal.SIGKILL)
    assert process.wait().status == -signal.SIGKILL
    assert rows(folder) == wanted[:6]
    assert not (folder / "evaluation.json").exists()

    # A checkpoint that is damaged is named.
    newest = steps()[-1]
    for file in (checkpoints / str(newest) / "default").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert_one_error(programs.run("run", *flags), "delete that folder")
    shutil.rmtree(checkpoints / str(newest))

    # On a disk that is full, the earlier checkpoint stays.
    newest = steps()[-1]
    assert_one_error(programs.run("run", *flags, largest_file=5000), "cannot be written")
    assert newest in steps()

    # While it trains, SIGTERM has it save that very step.
    stop = Stop(log, num_rows=8)
    process = programs.start("run", *flags, stop=stop)
    assert stop.pid() == process.pid
    process.send_signal(signal.SIGTERM)
    ended = process.wait(30.0)
    assert_one_error(ended, "stopped at step ")
    assert int(ended.err.split("stopped at step ")[1].split(";")[0]) == steps()[-1]

    ended = programs.run("run", *flags)
    assert ended.status == 0, ended.err
    assert rows(folder) == wanted
    assert records.read_json(folder / "evaluation.json") == records.read_json(
        finished_run / "evaluation.json"
    )


def test_a_start_as_a_user_types_it_ends_in_one_line(environment):
    ended = tiny.start_anew(environment, "run", "--config=experiments/nothing.py")
    assert_one_error(
        started.Ended(ended.returncode, ended.stdout, ended.stderr), "experiments/nothing.py: there is no"
    )


def test_a_workdir_with_another_config_is_refused_and_left_alone(programs, finished_run, tiny_data):
    def look() -> dict[pathlib.Path, int]:
        return {file: file.stat().st_mtime_ns for file in finished_run.rglob("*")}

    before = look()
    flags = (*tiny.run_flags(tiny_data, finished_run), "--config.training.seed=2")
    assert_one_error(programs.run("run", *flags), "config.training.seed is 1 there and 2 here")
    assert before == look()
