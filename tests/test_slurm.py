"""A grid as tasks of a real Slurm of one node, which the test starts; `.ci/run` installs it where it can."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

import programs as started
import pytest
import services
import slurm_node
import task_grid
import tiny
from programs import Stop

from hvae_jax import records

pytestmark = pytest.mark.long


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


def test_a_grid_with_preempted_requeued_and_killed_tasks_ends_in_the_same_table(
    node, programs, finished_grid, tiny_data, tmp_path
):
    folder = tmp_path / "slurm"
    flags = (*tiny.grid_flags(tiny_data, folder), "--launcher=slurm", "--tasks=4", "--time=30")
    first, second, third = stops = [Stop(task_grid.log_of(folder, i), num_rows=1) for i in range(3)]

    def launch(**variables: str) -> started.Ended:
        return programs.run(
            "grid", *flags, "--cpus_per_task=1", "--cpu_devices=2", environment={**node, **variables}
        )

    status, out, err = launch(**started.with_stops({}, *stops))
    assert status == 0, err
    assert f"4 models of {tiny.NUM_STEPS} steps in 4 chunks of at most 1: 0 complete" in out
    assert "Submitted job 1 with 4 tasks" in out
    assert queue(node).keys() == {"1_0", "1_1", "1_2", "1_3"}

    def log_of(job: str) -> str:
        file = folder / "tasks" / "slurm" / f"{job}_0_log.out"
        return file.read_text() if file.exists() else ""

    # One is told that its time ends, Slurm takes back another, a third dies.
    first_pid, second_pid = first.pid(), second.pid()
    with subprocess.Popen(["scancel", "--signal=USR1", "1_0"], env=node) as scancel:
        subprocess.run(["scontrol", "requeue", "1_1"], env=node, check=True)
        wait_for_signal(first_pid, signal.SIGUSR1)
        wait_for_signal(second_pid, signal.SIGTERM)
        os.kill(first_pid, signal.SIGCONT)
        os.kill(second_pid, signal.SIGCONT)
        started.wait_for(lambda: "asked to stop" in log_of("1_0"), "the first task stops")
        scancel.kill()  # which goes on to signal a job that is being requeued
    # While all are at work or in the queue: the third is stopped until it has been looked for, then it dies.
    third_pid = third.pid()
    out = launch().out
    assert "chunk 0000 is " in out
    assert "it is not started twice" in out
    assert "Nothing was started" in out
    os.kill(third_pid, signal.SIGKILL)
    started.wait_for(lambda: not queue(node), "all tasks end")
    assert not (folder / "grid.csv").exists()

    status, out, err = launch()
    assert status == 0, err
    assert "3 complete, 0 at work or queued, 1 to start" in out
    log = folder / "tasks" / "slurm" / "1_2_0_log.err"
    assert f"chunk 0002 did not finish: it ended without a word; its log is {log}" in err
    assert log.exists()
    started.wait_for(lambda: not queue(node), "the task that died ends")

    for i in range(4):
        print(log_of(f"1_{i}"))  # for the record
    for i in (0, 1):
        assert "asked to stop; saved at step" in log_of(f"1_{i}")
        assert log_of(f"1_{i}").count(f"job 1_{i} on") == 2, "requeued once"
        record = records.read_json(folder / "tasks" / f"000{i}.json")
        assert 0 < record["step"] < tiny.NUM_STEPS, "went on from there"
        assert record["idle_starts"] == 0
    task_grid.assert_same(folder, finished_grid)


def wait_for_signal(pid: int, number: int) -> None:
    """Returns when a stopped process has been sent it, or has been woken."""

    def has_it() -> bool:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
        return bool(pending >> (number - 1) & 1) or fields["State"].split()[0] != "T"

    started.wait_for(has_it, f"process {pid} is sent signal {number}")


def test_what_slurm_refuses_is_one_line(node, programs, tiny_data, tmp_path):
    flags = (*tiny.grid_flags(tiny_data, tmp_path / "grid"), "--launcher=slurm", "--tasks=2", "--time=30")
    ended = programs.run("grid", *flags, "--partition=absent", environment=node)
    tiny.assert_one_error(ended, "error: Slurm did not take the tasks: ")
    assert "invalid partition specified: absent" in ended.err
