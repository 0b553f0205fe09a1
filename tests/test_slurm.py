"""A grid as tasks of a real Slurm of one node, which the test starts; `.ci/run` installs it where it can."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import numpy as np
import pytest
import services
import slurm_node
import task_grid

from hvae_jax import records


@pytest.fixture(scope="module")
def node(environment):
    """The environment in which Slurm's commands and the programs of this project work."""
    reason = slurm_node.missing()
    if reason:
        services.leave_out(
            f"a grid on Slurm was not tested: {reason}", "as root on Debian: apt-get install slurm-wlm munge"
        )
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's folders are too deep for sockets
    try:
        with slurm_node.start(folder, environment) as node:
            yield node
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def queue(node):
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    out = subprocess.run(command, env=node, capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in out.splitlines())


def test_a_grid_with_preempted_requeued_and_killed_tasks_ends_in_the_same_table(node, tmp_path):
    grid = task_grid.make_arguments(tmp_path)
    folder, alone = tmp_path / "slurm", tmp_path / "alone"
    on_slurm = (*grid, f"--workdir={folder}", "--launcher=slurm", "--tasks=4", "--time=30")

    out, _ = task_grid.finish(task_grid.start(node, *on_slurm, "--cpus_per_task=1"))
    assert f"4 models of {task_grid.NUM_STEPS} steps in 4 chunks of at most 1: 0 complete" in out
    assert "Submitted job 1 with 4 tasks" in out
    assert queue(node).keys() == {"1_0", "1_1", "1_2", "1_3"}

    def log_of(job: str) -> str:
        file = folder / "tasks" / "slurm" / f"{job}_0_log.out"
        return file.read_text() if file.exists() else ""

    # One is told that its time ends, Slurm takes back another, a third dies.
    task_grid.wait_for(lambda: task_grid.is_training(folder, 0), "the first task trains")
    with subprocess.Popen(["scancel", "--signal=USR1", "1_0"], env=node) as scancel:
        task_grid.wait_for(lambda: task_grid.is_training(folder, 1), "the second task trains")
        subprocess.run(["scontrol", "requeue", "1_1"], env=node, check=True)
        task_grid.wait_for(lambda: "asked to stop" in log_of("1_0"), "the first task stops")
        scancel.kill()  # which goes on to signal a job that is being requeued
    # While all are at work or in the queue: the third waits until it has been looked for, then it dies.
    look = task_grid.start(node, *on_slurm)
    task_grid.wait_for(lambda: task_grid.is_training(folder, 2), "the third task trains")
    third = task_grid.pid_of_task(folder, "0002")
    os.kill(third, signal.SIGSTOP)
    out, _ = task_grid.finish(look)
    assert "chunk 0000 is " in out
    assert "it is not started twice" in out
    assert "Nothing was started" in out
    os.kill(third, signal.SIGKILL)
    task_grid.wait_for(lambda: not queue(node), "all tasks end")
    assert not (folder / "grid.csv").exists()

    out, err = task_grid.finish(task_grid.start(node, *on_slurm))
    assert "3 complete, 0 at work or queued, 1 to start" in out
    log = folder / "tasks" / "slurm" / "1_2_0_log.err"
    assert f"chunk 0002 did not finish: it ended without a word; its log is {log}" in err
    assert log.exists()
    alone_process = task_grid.start(node, *grid, f"--workdir={alone}", "--config.grid.chunk_size=0")
    task_grid.wait_for(lambda: not queue(node), "the task that died ends")
    task_grid.finish(alone_process)

    for i in range(4):
        print(log_of(f"1_{i}"))  # for the record
    for i in (0, 1):
        assert "asked to stop; saved at step" in log_of(f"1_{i}")
        assert log_of(f"1_{i}").count(f"job 1_{i} on") == 2, "requeued once"
        record = records.read_json(folder / "tasks" / f"000{i}.json")
        assert 0 < record["step"] < task_grid.NUM_STEPS, "went on from there"
        assert record["idle_starts"] == 0
    assert (folder / "grid.csv").read_bytes() == (alone / "grid.csv").read_bytes()
    assert sorted(file.name for file in (folder / "figures").iterdir()) == sorted(
        file.name for file in (alone / "figures").iterdir()
    )
    for model in range(4):
        log, wanted = (records.load(one / "models" / f"{model:04d}") for one in (folder, alone))
        for name in ("step", "loss_nats", "rates_nats", "grad_norm"):
            np.testing.assert_array_equal(log[name], wanted[name])


def test_what_slurm_refuses_is_one_line(node, tmp_path):
    grid = (*task_grid.make_arguments(tmp_path), f"--workdir={tmp_path / 'grid'}", "--launcher=slurm")
    start = time.monotonic()
    process = task_grid.start(node, *grid, "--tasks=2", "--time=30", "--partition=absent")
    _, err = task_grid.finish(process, status=1)
    assert "error: Slurm did not take the tasks: " in err
    assert "invalid partition specified: absent" in err
    assert time.monotonic() - start < task_grid.DEADLINE_SECONDS
