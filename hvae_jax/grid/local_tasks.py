"""Runs commands as processes of this machine, a few at a time, each with GPUs of its own.

They share the cores: what XLA computes on a CPU depends, in its last digits, on the number of cores that a
process may use, and a task's numbers should be those of a process that has the machine to itself.
"""

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple

from hvae_jax.cores import num_cores
from hvae_jax.errors import RunError

POLL_SECONDS = 0.1


class Task(NamedTuple):
    """Attributes:
    name: for reports.
    command: program and arguments.
    log: file that its output is added to.
    """

    name: str
    command: Sequence[str]
    log: pathlib.Path


class Slots(NamedTuple):
    """Attributes:
    num: tasks at a time.
    gpus: per slot, as CUDA_VISIBLE_DEVICES names them; empty lists for tasks on CPUs.
    """

    num: int
    gpus: list[list[str]]


class _Running(NamedTuple):
    task: Task
    process: subprocess.Popen
    log: IO[str]


def make_slots(num: int | None, cpus_per_task: int, gpus_per_task: int) -> Slots:
    """Divides the GPUs that this process may see.

    Args:
      num: tasks at a time; None takes as many as there are cores for.
      cpus_per_task, gpus_per_task: of each.

    Raises:
      RunError: GPUs without a number of tasks, or more than are to be seen.
    """
    if gpus_per_task and num is None:
        raise RunError(f"--gpus_per_task={gpus_per_task} needs --parallel_tasks: GPUs over GPUs per task")
    num = num or max(1, num_cores() // cpus_per_task)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else [str(i) for i in range(num * gpus_per_task)]
    if len(gpus) < num * gpus_per_task:
        raise RunError(
            f"--parallel_tasks={num} of --gpus_per_task={gpus_per_task} need {num * gpus_per_task} GPUs; "
            f"CUDA_VISIBLE_DEVICES={visible} names {len(gpus)}"
        )

    of_slots = [gpus[i * gpus_per_task : (i + 1) * gpus_per_task] for i in range(num)]
    return Slots(num, of_slots)


def run(
    tasks: Sequence[Task],
    slots: Slots,
    *,
    again_status: int,
    stop_requested: Callable[[], bool],
    stop_seconds: float,
    report: Callable[[Task, str], None],
) -> dict[str, int]:
    """Runs every task to its end.

    Args:
      tasks: to run, in this order.
      slots: how many at a time, and with what.
      again_status: exit status of a task that was asked to stop early and is to be started again.
      stop_requested: asked several times a second; once it says yes, every task is asked to stop and
        none is started.
      stop_seconds: that they have for it.
      report: called with "started", "stopped, starts again", "done" or "failed".

    Returns:
      exit statuses by name, of the tasks that ended.
    """
    waiting = list(tasks)
    running: dict[int, _Running | None] = dict.fromkeys(range(slots.num))
    statuses: dict[str, int] = {}
    try:
        while not stop_requested():
            for slot, one in running.items():
                if one is not None and one.process.poll() is not None:
                    one.log.close()
                    running[slot] = None
                    status = one.process.returncode
                    if status == again_status:
                        report(one.task, "stopped, starts again")
                        waiting.insert(0, one.task)
                    else:
                        report(one.task, "failed" if status else "done")
                        statuses[one.task.name] = status
                if running[slot] is None and waiting:
                    task = waiting.pop(0)
                    running[slot] = _start(task, slots.gpus[slot])
                    report(task, "started")
            if not any(running.values()):
                break
            time.sleep(POLL_SECONDS)
    finally:
        _stop([one for one in running.values() if one is not None], stop_seconds)
    return statuses


def _start(task: Task, gpus: Sequence[str]) -> _Running:
    environment: Mapping[str, str] = os.environ
    if gpus:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log = task.log.open("a", encoding="utf-8")
    # In a session of its own: Ctrl-C reaches this process alone, which then asks the tasks to stop.
    process = subprocess.Popen(
        task.command,
        env=environment,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    return _Running(task, process, log)


def _stop(running: Sequence[_Running], seconds: float) -> None:
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    for one in running:
        try:
            one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        one.log.close()
