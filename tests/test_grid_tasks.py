"""A grid as tasks: how it is divided, who is at work, processes on this machine, and what is refused."""

import errno
import fcntl
import os
import signal
import sys
import threading
import time

import programs as started
import pytest
import task_grid
import tiny
from programs import Stop

from experiments import digits_grid, grid_launch
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.files import claims
from hvae_jax.grid import local_tasks, slurm
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import plan as grid_plan
from hvae_jax.training.stopping import StopSignals

ASKED = slurm.Options(
    time="4:00:00",
    partition="gpu",
    gpus_per_task=2,
    cpus_per_task=8,
    mem_gib=1.5,
    parallel_tasks=3,
    signal_s=60,
    extra=("account=me", "--exclusive"),
    setup=("module load cuda",),
)


@pytest.fixture
def members():
    config = digits_grid.get_config().to_dict()
    config["grid"].update(betas=((0.1, 1.0, 10.0), (1.0,)), seeds=(0, 1))
    return grid_members.read_config(config)[1]


def complete(folder, members):
    for member in members:
        member.folder(folder).mkdir(parents=True, exist_ok=True)
        records.write_json(member.folder(folder) / records.EVALUATION_FILE, {})


# The plan


def make_plan(folder, members, chunk_size=0, num_tasks=None):
    return grid_plan.make(folder, members, chunk_size, num_tasks, 1, 0, None)


def test_a_plan_has_as_many_tasks_as_asked_for_or_chunks_of_the_size(tmp_path, members):
    assert make_plan(tmp_path, members, num_tasks=4).chunks == [[0, 1], [2, 3], [4, 5]]
    assert make_plan(tmp_path, members, num_tasks=6).chunk_size == 1
    plan = make_plan(tmp_path, members, chunk_size=4)
    assert plan.names == {"0000": [0, 1, 2, 3], "0004": [4, 5]}
    for given in ({}, {"chunk_size": 2, "num_tasks": 3}):
        with pytest.raises(RunError, match=r"config\.grid\.chunk_size=.* and --tasks=.*: give one of them"):
            make_plan(tmp_path, members, **given)


def test_a_plan_goes_on_with_what_was_begun_without_one(tmp_path, members):
    complete(tmp_path, members[:1])
    (tmp_path / "chunks" / "0002").mkdir(parents=True)
    records.write_json(tmp_path / "chunks" / "0002" / "models.json", [2, 3, 4])
    plan = make_plan(tmp_path, members, chunk_size=2)
    assert plan.chunks == [[2, 3, 4], [1, 5]]
    assert plan.chunk_size == 3


def test_a_plan_is_read_as_it_was_written_and_knows_what_is_left(tmp_path, members):
    plan = make_plan(tmp_path, members, num_tasks=3)
    grid_plan.write(tmp_path, plan)
    assert grid_plan.read(tmp_path) == plan
    complete(tmp_path, members[:3])
    assert grid_plan.unfinished(tmp_path, members, plan) == ["0002", "0004"]


def test_another_division_of_a_grid_that_was_begun_is_refused(tmp_path, members):
    grid_plan.write(tmp_path, make_plan(tmp_path, members, num_tasks=3))
    config, _ = grid_members.read_config(digits_grid.get_config().to_dict())
    options = grid_launch.Options("slurm", 2, 1, None, ASKED)
    with pytest.raises(RunError, match=r"--tasks=2 would make chunks of 3 .* divided into 3 of at most 2"):
        grid_launch.launch(tmp_path, {}, config, members, options, num_steps=1, dry_run=True)


def test_a_dry_run_tells_what_would_be_submitted(tmp_path, members, capsys):
    config, _ = grid_members.read_config(digits_grid.get_config().to_dict())
    options = grid_launch.Options("slurm", 3, 1, None, ASKED)
    grid_launch.launch(tmp_path / "grid", {}, config, members, options, num_steps=7, dry_run=True)
    out = capsys.readouterr().out
    assert "6 models of 7 steps in 3 chunks of at most 2: 0 complete, 0 at work or queued, 3 to start" in out
    assert "Would submit an array of 3 tasks, for the chunks 0000, 0002, 0004" in out
    wanted = (
        "time=4:00:00 partition=gpu gpus_per_node=2 mem=1536M array_parallelism=3 account=me exclusive=True"
    )
    for option in wanted.split():
        assert option in out
    assert not (tmp_path / "grid").exists()


def test_a_survey_knows_who_is_at_work_and_what_failed(tmp_path, members, monkeypatch):
    plan = make_plan(tmp_path, members, chunk_size=1)
    grid_plan.write(tmp_path, plan)
    complete(tmp_path, members[:1])
    grid_plan.add_jobs(tmp_path, {f"{i:04d}": grid_plan.Job("slurm", f"7_{i}", f"log{i}") for i in range(5)})
    monkeypatch.setattr(slurm, "queue", lambda: {"7_1": "PENDING", "8_0": "RUNNING"})
    grid_plan.TaskRecord(tmp_path, "0002").fail("no such data")
    with claims.claim(grid_members.lock_file(tmp_path, "0003"), "chunk 0003"):
        state = grid_launch.survey(tmp_path, members, plan)
    assert state.unfinished == ["0001", "0002", "0003", "0004", "0005"]
    assert state.alive == {"0001": "pending as job 7_1", "0003": "running"}
    assert state.failed == {
        "0002": "no such data; its log is log2",
        "0004": "it ended without a word; its log is log4",
    }
    assert state.to_start == ["0002", "0004", "0005"]


def test_a_task_that_never_gets_further_is_given_up(tmp_path):
    (tmp_path / "tasks").mkdir()
    record = grid_plan.TaskRecord(tmp_path, "0000")
    checkpoints = tmp_path / "chunks" / "0000" / "checkpoints"
    tries = [record.stop() for _ in range(grid_plan.MAX_IDLE_STARTS - 1)]
    (checkpoints / "40").mkdir(parents=True)
    tries += [record.stop() for _ in range(grid_plan.MAX_IDLE_STARTS)]
    assert all(tries)
    assert not record.stop()
    assert "without getting past step 40; give more time or smaller chunks" in record.read()["error"]


# Claims and signals


def test_what_is_claimed_is_not_claimed_twice_until_it_is_let_go(tmp_path):
    file = tmp_path / "new" / "a.lock"
    assert not claims.is_claimed(file)
    with claims.claim(file, "chunk a"):
        assert claims.is_claimed(file)
        with (
            pytest.raises(claims.Claimed, match=f"chunk a is being worked on by process {os.getpid()} on "),
            claims.claim(file, "chunk a"),
        ):
            pass
    assert not claims.is_claimed(file)
    holding = claims.claim(file, "chunk a")
    holding.__enter__()
    threading.Timer(0.2, holding.__exit__, (None, None, None)).start()
    with claims.claim(file, "chunk a", wait_seconds=60.0):
        pass


@pytest.mark.parametrize("has_description_locks", [True, False])
def test_every_kind_of_lock_keeps_others_out(tmp_path, monkeypatch, has_description_locks):
    if not has_description_locks:
        monkeypatch.setattr(claims, "_has_description_locks", lambda: False)
    file = tmp_path / "a.lock"
    with claims.claim(file, "chunk a"):
        assert claims.is_claimed(file)
        assert claims.holder(file).startswith(f"process {os.getpid()} on ")
        with pytest.raises(claims.Claimed), claims.claim(file, "chunk a"):
            pass
    assert not claims.is_claimed(file)


@pytest.mark.skipif(not hasattr(fcntl, "F_OFD_GETLK"), reason="locks that can be asked about are Linux's")
def test_asking_whether_something_is_claimed_does_not_claim_it(tmp_path):
    file, answers, is_over = tmp_path / "a.lock", [], threading.Event()

    def poll():
        while not is_over.is_set():
            answers.append(claims.is_claimed(file))

    pollers = [threading.Thread(target=poll) for _ in range(2)]
    with claims.claim(file, "chunk a"):
        for poller in pollers:
            poller.start()
        started.wait_for(lambda: True in answers, "it is seen to be claimed")
    for _ in range(300):  # none is refused
        with claims.claim(file, "chunk a"):
            pass
    is_over.set()
    for poller in pollers:
        poller.join()
    assert {True, False} <= set(answers)


def test_a_claim_on_a_full_disk_holds_and_one_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(claims.os, "write", full)
    with claims.claim(tmp_path / "a.lock", "chunk a"):
        assert claims.is_claimed(tmp_path / "a.lock")
    with pytest.raises(RunError, match=r"a\.lock/b\.lock cannot be written: (Not a directory|File exists)"):
        claims.claim(tmp_path / "a.lock" / "b.lock", "chunk b").__enter__()


def test_signals_are_a_question_and_cut_short_who_does_not_ask():
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        cut_short = threading.Event()
        with StopSignals(cut_short.set, seconds=0.1) as signals:
            assert not signals.requested()
            os.kill(os.getpid(), number)
            started.wait_for(signals.requested, "the signal is seen")
            assert cut_short.wait(60.0)
    with StopSignals(cut_short.clear, seconds=60.0) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        started.wait_for(signals.requested, "the signal is seen")
    assert cut_short.is_set(), "who ends in time is not cut short"
    assert signal.getsignal(signal.SIGTERM) is before


# Processes of this machine


def run_commands(tmp_path, codes, num, stop_requested=lambda: False, stop_seconds=30.0):
    tasks = [
        local_tasks.Task(f"t{i}", [sys.executable, "-c", code], tmp_path / f"t{i}.log")
        for i, code in enumerate(codes)
    ]
    slots, told = local_tasks.make_slots(num, 1, 0), []
    statuses = local_tasks.run(
        tasks,
        slots,
        again_status=75,
        stop_requested=stop_requested,
        stop_seconds=stop_seconds,
        report=lambda task, what: told.append((task.name, what)),
    )
    return statuses, told


def test_tasks_run_a_few_at_a_time_and_again_when_they_were_stopped(tmp_path):
    once = tmp_path / "once"
    again = f"import pathlib, sys; once = pathlib.Path({str(once)!r}); there = once.exists(); once.touch()"
    again += "; sys.exit(75 * (not there))"
    statuses, told = run_commands(tmp_path, ["print('hello')", "raise SystemExit(3)", again], num=1)
    assert statuses == {"t0": 0, "t1": 3, "t2": 0}
    assert [f"{name} {what}" for name, what in told] == [
        *("t0 started", "t0 done", "t1 started", "t1 failed", "t2 started"),
        *("t2 stopped, starts again", "t2 started", "t2 done"),
    ]
    assert (tmp_path / "t0.log").read_text() == "hello\n"


def test_a_wish_to_stop_reaches_the_tasks(tmp_path):
    wait = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: exit(print('saved')))\n"
    wait += "print('ready', flush=True)\ntime.sleep(600)"
    log = tmp_path / "t0.log"
    start = time.monotonic()
    statuses, _ = run_commands(tmp_path, [wait, wait], 1, lambda: log.exists() and "ready" in log.read_text())
    assert statuses == {}
    assert "saved" in log.read_text()
    assert not (tmp_path / "t1.log").exists()
    assert time.monotonic() - start < 300


def test_slots_have_gpus_of_their_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert local_tasks.make_slots(None, 1, 0).num == 4
    assert local_tasks.make_slots(None, 8, 0).num == 1
    slots = local_tasks.make_slots(2, 2, 2)
    assert slots == (2, [["4", "5"], ["6", "7"]])
    with pytest.raises(RunError, match="need 6 GPUs; CUDA_VISIBLE_DEVICES=4,5,6,7 names 4"):
        local_tasks.make_slots(3, 1, 2)
    with pytest.raises(RunError, match="--gpus_per_task=1 needs --parallel_tasks"):
        local_tasks.make_slots(None, 1, 1)


@pytest.mark.long
def test_local_tasks_one_of_which_dies_end_in_the_table_of_one_process(
    programs, finished_grid, tiny_data, tmp_path
):
    folder = tmp_path / "local"
    flags = (*tiny.grid_flags(tiny_data, folder), "--launcher=local", "--cpu_devices=2")
    local = (*flags, "--tasks=2", "--parallel_tasks=2")
    first, second = (Stop(task_grid.log_of(folder, model), num_rows=1) for model in (0, 2))

    process = programs.start("grid", *local, environment=started.with_stops({}, first, second))
    os.kill(second.pid(), signal.SIGKILL)
    for number in (signal.SIGUSR1, signal.SIGCONT):
        os.kill(first.pid(), number)
    status, out, err = process.wait()
    assert status == 1
    assert "chunk 0002 failed" in out
    assert "chunk 0000 stopped, starts again" in out
    assert "chunk 0000 done" in out
    log = folder / "tasks" / "local" / "0002.log"
    assert f"1 of 2 tasks did not finish: chunk 0002: it ended without a word; its log is {log}" in err
    assert log.exists()

    status, out, err = programs.run("grid", *local)
    assert status == 0, err
    assert "1 complete, 0 at work or queued, 1 to start" in out
    assert f"4 models trained, 0 diverged. Everything is in {folder}" in out
    task_grid.assert_same(folder, finished_grid)


# Refusals


def test_slurm_without_submitit_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match=r'needs submitit: pip install -e "\.\[cluster\]"'):
        slurm.submit(tmp_path, "name", ASKED, print, [("a", "b")])


def test_what_sbatch_is_given(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("srun", ""), ("sbatch", f"cp $1 {tmp_path}/script; echo Submitted batch job 7")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    jobs = slurm.submit(tmp_path / "files", "name", ASKED, print, [("a", "b"), ("c", "d")])
    assert [job.id for job in jobs] == ["7_0", "7_1"]
    assert jobs[1].log == str(tmp_path / "files" / "7_1_0_log.err")
    script = (tmp_path / "script").read_text()
    wanted = (
        "account=me exclusive requeue time=4:00:00 partition=gpu gpus-per-node=2 mem=1536M cpus-per-task=8"
    )
    for option in [
        *wanted.split(),
        "cpus-per-task=8",
        "array=0-1%2",
        "signal=USR2@60",
        "open-mode=append",
        "job-name=name",
    ]:
        assert f"#SBATCH --{option}\n" in script, script
    assert "\nmodule load cuda\n" in script
    assert "srun" in script
    assert " --cpus-per-task=8 " in script


def test_slurm_where_there_is_none_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match='Slurm did not take the tasks: Could not detect "srun"'):
        slurm.submit(tmp_path, "name", ASKED, print, [("a", "b")])
    with pytest.raises(RunError, match="squeue is not found, but the grid has tasks in Slurm"):
        slurm.queue()


@pytest.mark.parametrize(
    ("launcher", "given", "message"),
    [
        ("here", {"tasks"}, "--tasks needs --launcher=local or --launcher=slurm; --launcher=here does not"),
        ("local", {"tasks", "time"}, "--time needs --launcher=slurm; --launcher=local does not read it"),
        ("slurm", {"tasks"}, "--launcher=slurm needs --time"),
    ],
)
def test_flags_of_another_launcher_are_refused(launcher, given, message):
    with pytest.raises(RunError, match=message):
        grid_launch.check_flags(launcher, given)
