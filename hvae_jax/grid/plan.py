"""A grid divided into tasks: which models each trains, decided once and written down.

In the grid's folder:

    tasks/plan.json      what every task must do alike, by whoever it was started
    tasks/jobs.json      as what each chunk was started last, and where that wrote its log
    tasks/0002.json      how the task of the chunk of models 2, 3 … fared; 0002 is the chunk's name
    tasks/0002.lock      held by the process that trains the chunk
    tasks/launch.lock    held by the command that trains the grid itself, or starts tasks
"""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.files import claims
from hvae_jax.grid import run as grid_run
from hvae_jax.grid.folders import is_complete, read_whole
from hvae_jax.grid.members import TASKS_FOLDER, Member, chunk_name, lock_file
from hvae_jax.training.checkpoints import latest_step

PLAN_FILE, JOBS_FILE, LAUNCH_LOCK, MERGE_LOCK = "plan.json", "jobs.json", "launch.lock", "merge.lock"
# A task that was stopped so often without a further checkpoint is not started again by itself.
MAX_IDLE_STARTS = 5
_REPLAN = "delete it once no task is at work: what is left is then divided anew"


class Plan(NamedTuple):
    """Attributes:
    chunk_size: models that a task has room for; all tasks compile the same program.
    num_cpu_devices: that a task splits its CPU into.
    gpus_per_task: that a task must see; 0 for tasks on CPUs.
    baseline: folder of a grid with L = 1 for the figures, or None.
    chunks: numbers of the models of each.
    """

    chunk_size: int
    num_cpu_devices: int
    gpus_per_task: int
    baseline: str | None
    chunks: list[list[int]]

    @property
    def names(self) -> dict[str, list[int]]:
        """The chunks by name."""
        return {chunk_name(chunk): chunk for chunk in self.chunks}


class Job(NamedTuple):
    """Attributes:
    launcher: "local" or "slurm".
    id: of a job of Slurm, "12_3"; empty for a process.
    log: where its errors are.
    """

    launcher: str
    id: str
    log: str


def read(folder: pathlib.Path) -> Plan | None:
    """The plan of a grid, if it has one.

    Raises:
      RunError: it is damaged.
    """
    file = folder / TASKS_FOLDER / PLAN_FILE
    if not file.exists():
        return None
    content = records.read_json(file)
    fields = {"chunk_size": int, "num_cpu_devices": int, "gpus_per_task": int, "chunks": list}
    if not (
        isinstance(content, dict)
        and set(content) == set(Plan._fields)
        and all(type(content[name]) is kind for name, kind in fields.items())
        and all(isinstance(chunk, list) and chunk for chunk in content["chunks"])
        and all(type(number) is int for chunk in content["chunks"] for number in chunk)
    ):
        raise RunError(f"{file} is damaged; {_REPLAN}")
    return Plan(**content)


def current(folder: pathlib.Path, members: Sequence[Member]) -> Plan | None:
    """The plan that a grid is being trained by; None where it has none, or has grown since it was fulfilled.

    Raises:
      RunError: it is damaged.
    """
    plan = read(folder)
    if plan is None or unfinished(folder, members, plan):
        return plan
    planned = {number for chunk in plan.chunks for number in chunk}
    outside = (member for member in members if member.number not in planned)
    return None if any(not is_complete(folder, member) for member in outside) else plan


def launch_lock(folder: pathlib.Path) -> pathlib.Path:
    """That the process holds which trains a grid, or starts its tasks."""
    return folder / TASKS_FOLDER / LAUNCH_LOCK


def write(folder: pathlib.Path, plan: Plan) -> None:
    """Writes the plan down.

    Raises:
      RunError: there is no room, or no permission.
    """
    with contextlib.suppress(OSError):  # the file says why
        (folder / TASKS_FOLDER).mkdir(exist_ok=True)
    records.write_json(folder / TASKS_FOLDER / PLAN_FILE, plan._asdict())


def make(
    folder: pathlib.Path,
    members: Sequence[Member],
    chunk_size: int,
    num_tasks: int | None,
    num_cpu_devices: int,
    gpus_per_task: int,
    baseline: str | None,
) -> Plan:
    """A plan for what is left of a grid.

    Args:
      folder: of the grid; it need not exist.
      members: all models.
      chunk_size: models of a chunk; 0 where `num_tasks` says it.
      num_tasks: to divide the models into; None where `chunk_size` says it.
      num_cpu_devices, gpus_per_task, baseline: see `Plan`.

    Raises:
      RunError: neither or both of the numbers.
    """
    if bool(chunk_size) == bool(num_tasks):
        raise RunError(
            f"config.grid.chunk_size={chunk_size} and --tasks={num_tasks}: give one of them, the models of a "
            "task or the number of tasks; this machine's memory says nothing about that of theirs"
        )
    chunk_size = chunk_size or -(-len(members) // (num_tasks or 1))
    chunks = grid_run.plan_chunks(folder, members, chunk_size)
    numbers = [[member.number for member in chunk] for chunk in chunks]
    room = max([chunk_size, *map(len, numbers)])
    return Plan(room, num_cpu_devices, gpus_per_task, baseline, numbers)


def chunks(folder: pathlib.Path, members: Sequence[Member], plan: Plan) -> dict[str, list[Member]]:
    """The models of each chunk, by its name.

    Raises:
      RunError: the plan has models that the grid lacks.
    """
    by_number = {member.number: member for member in members}
    if unknown := sorted({number for chunk in plan.chunks for number in chunk} - set(by_number)):
        file = folder / TASKS_FOLDER / PLAN_FILE
        raise RunError(f"{file} is damaged: the grid has no model {unknown[0]}; {_REPLAN}")
    return {name: [by_number[number] for number in numbers] for name, numbers in plan.names.items()}


def unfinished(folder: pathlib.Path, members: Sequence[Member], plan: Plan) -> list[str]:
    """Names of the chunks with models that are not complete."""
    return [
        name
        for name, chunk in chunks(folder, members, plan).items()
        if not all(is_complete(folder, member) for member in chunk)
    ]


def is_running(folder: pathlib.Path, name: str) -> bool:
    """Whether a process holds the chunk."""
    return claims.is_claimed(lock_file(folder, name))


def read_jobs(folder: pathlib.Path) -> dict[str, Job]:
    """The newest job of each chunk that was ever started.

    Raises:
      RunError: the list is damaged.
    """
    file = folder / TASKS_FOLDER / JOBS_FILE
    if not file.exists():
        return {}
    content = records.read_json(file)
    if not (
        isinstance(content, dict)
        and all(isinstance(job, dict) and set(job) == set(Job._fields) for job in content.values())
    ):
        raise RunError(f"{file} is damaged; delete it once no task of the grid is in the queue or at work")
    return {name: Job(**job) for name, job in content.items()}


def add_jobs(folder: pathlib.Path, jobs: Mapping[str, Job]) -> None:
    """Notes what was started."""
    content = {name: job._asdict() for name, job in {**read_jobs(folder), **jobs}.items()}
    records.write_json(folder / TASKS_FOLDER / JOBS_FILE, content)


class TaskRecord:
    """How a chunk's task fared: written by the task, read by the command that starts tasks."""

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self._file = folder / TASKS_FOLDER / f"{name}.json"
        self._chunk_folder = folder / grid_run.CHUNKS_FOLDER / name

    def read(self) -> dict[str, Any]:
        """`error` (None, or one line), `step` of the newest checkpoint, `idle_starts` without a newer one."""
        return {"error": None, "step": 0, "idle_starts": 0} | (read_whole(self._file) or {})

    def fail(self, error: str) -> None:
        """Notes the error that ended the task."""
        records.write_json(self._file, {**self.read(), "error": error})

    def start(self) -> None:
        """Forgets an earlier error."""
        if self._file.exists():
            records.write_json(self._file, {**self.read(), "error": None})

    def stop(self) -> bool:
        """Notes that the task was stopped early; whether it gets further from start to start."""
        step = latest_step(self._chunk_folder) or 0
        before = self.read()
        idle_starts = 0 if step > before["step"] else before["idle_starts"] + 1
        record = {"error": None, "step": step, "idle_starts": idle_starts}
        records.write_json(self._file, record)
        if idle_starts < MAX_IDLE_STARTS:
            return True
        self.fail(
            f"stopped {idle_starts} times without getting past step {step}; give more time or smaller chunks"
        )
        return False
