"""Starts the tasks of a grid, as processes of this machine or in Slurm, and tells how they fare."""

import hashlib
import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import grid_results, grid_task
from hvae_jax.errors import RunError
from hvae_jax.files import claims
from hvae_jax.grid import folders, local_tasks, slurm
from hvae_jax.grid import plan as grid_plan
from hvae_jax.grid.members import TASKS_FOLDER, GridConfig, Member
from hvae_jax.grid.plan import Job, Plan, TaskRecord
from hvae_jax.training.stopping import STOP_SECONDS, StopSignals

# The flags that each launcher reads.
_OF_TASKS = ("tasks", "parallel_tasks", "gpus_per_task", "cpus_per_task")
LAUNCHERS = {
    "here": (),
    "local": _OF_TASKS,
    "slurm": (*_OF_TASKS, "partition", "time", "mem_gib", "signal_s", "sbatch", "setup"),
}


class Options(NamedTuple):
    """Attributes:
    launcher: "local" or "slurm".
    num_tasks: to divide the grid into; None where the config's chunk size does.
    num_cpu_devices: that a task splits its CPU into.
    baseline: see `grid_plan.Plan`.
    slurm: what each task asks of Slurm; locally the numbers of cores, GPUs and tasks at a time count.
    """

    launcher: str
    num_tasks: int | None
    num_cpu_devices: int
    baseline: str | None
    slurm: slurm.Options


class State(NamedTuple):
    """Attributes:
    unfinished: chunks with models that are not complete.
    alive: of them those at work or in the queue, and as what.
    failed: those that were started and ended, and what is known of it.
    """

    unfinished: list[str]
    alive: dict[str, str]
    failed: dict[str, str]

    @property
    def to_start(self) -> list[str]:
        """Chunks that nobody is at work on."""
        return [name for name in self.unfinished if name not in self.alive]


def check_flags(launcher: str, given: Collection[str]) -> None:
    """Raises RunError for a flag that the launcher does not read, and for one that it needs."""
    for name in sorted(set(given) - set(LAUNCHERS[launcher])):
        needed = " or ".join(f"--launcher={other}" for other, names in LAUNCHERS.items() if name in names)
        raise RunError(f"--{name} needs {needed}; --launcher={launcher} does not read it")
    if launcher == "slurm" and "time" not in given:
        raise RunError(
            "--launcher=slurm needs --time, the limit of each task, for example --time=4:00:00; a task that "
            "reaches it saves, and goes on where it was when Slurm starts it again"
        )


def launch(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    grid_config: GridConfig,
    members: list[Member],
    options: Options,
    num_steps: int,
    dry_run: bool,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Starts what is left of a grid and is not at work already; merges its table if nothing is left.

    Args:
      folder: of the grid; it may be there or not.
      config: of the grid.
      grid_config, members: what it describes.
      options: how to start it.
      num_steps: of each model.
      dry_run: say what would be done and do nothing.
      data: `Dataset.describe()`.

    Raises:
      RunError: a division other than the one that was begun with, Slurm refuses, another process is
        starting tasks of the same grid, or, locally, a task failed.
    """
    folders.check(folder, config, members, data)
    members = folders.number(folder, members)
    folders.check_models(folder, members)
    plan = _plan(folder, grid_config, members, options)
    slots = None
    if options.launcher == "local":
        asked = options.slurm
        slots = local_tasks.make_slots(asked.parallel_tasks, asked.cpus_per_task or 1, asked.gpus_per_task)
    if dry_run:
        state = survey(folder, members, plan)
        _describe(folder, plan, state, len(members), num_steps)
        print(_intent(options, slots, state.to_start))
        return
    with claims.claim(grid_plan.launch_lock(folder), f"the grid in {folder}"):
        members = folders.open_grid(folder, config, members, data)
        plan = _plan(folder, grid_config, members, options)
        if plan != grid_plan.read(folder):
            grid_plan.write(folder, plan)
        state = survey(folder, members, plan)
        _describe(folder, plan, state, len(members), num_steps)
        if not state.unfinished:
            grid_task.merge(folder, plan, grid_config, members)
        elif not state.to_start:
            print("Nothing was started. When the last chunk is complete, its task writes the table.")
        elif slots is not None:
            _run_here(folder, members, plan, slots, state.to_start)
        else:
            _submit(folder, options.slurm, state.to_start)


def survey(folder: pathlib.Path, members: Sequence[Member], plan: Plan) -> State:
    """How the chunks fare, from the disk, the locks and, where there are jobs of Slurm, its queue.

    Raises:
      RunError: Slurm does not answer.
    """
    unfinished = grid_plan.unfinished(folder, members, plan)
    jobs = {name: job for name, job in grid_plan.read_jobs(folder).items() if name in unfinished}
    queue = slurm.queue() if any(job.launcher == "slurm" for job in jobs.values()) else {}
    alive, failed = {}, {}
    for name in unfinished:
        job = jobs.get(name)
        if job and job.id in queue:
            alive[name] = f"{queue[job.id].lower()} as job {job.id}"
        elif grid_plan.is_running(folder, name):
            alive[name] = "running"
        elif job:
            error = TaskRecord(folder, name).read()["error"] or "it ended without a word"
            failed[name] = f"{error}; its log is {job.log}"
    return State(unfinished, alive, failed)


def _plan(folder: pathlib.Path, grid_config: GridConfig, members: Sequence[Member], options: Options) -> Plan:
    plan = grid_plan.current(folder, members)
    if plan is None:
        return grid_plan.make(
            folder,
            members,
            grid_config.chunk_size,
            options.num_tasks,
            options.num_cpu_devices,
            options.slurm.gpus_per_task,
            options.baseline,
        )
    wanted = -(-len(members) // options.num_tasks) if options.num_tasks else plan.chunk_size
    if wanted != plan.chunk_size and plan.chunks:
        raise RunError(
            f"--tasks={options.num_tasks} would make chunks of {wanted} models, but the grid in {folder} was "
            f"divided into {len(plan.chunks)} of at most {plan.chunk_size}; leave --tasks out, or give "
            "another --workdir"
        )
    return plan


def _describe(folder: pathlib.Path, plan: Plan, state: State, num_models: int, num_steps: int) -> None:
    num_done = len(plan.chunks) - len(state.unfinished)
    print(
        f"{num_models} models of {num_steps} steps in {len(plan.chunks)} chunks of at most {plan.chunk_size}"
        f": {num_done} complete, {len(state.alive)} at work or queued, {len(state.to_start)} to start"
    )
    for name, what in state.alive.items():
        print(f"chunk {name} is {what}; it is not started twice")
    for name, why in state.failed.items():
        print(f"chunk {name} did not finish: {why}", file=sys.stderr)


def _intent(options: Options, slots: local_tasks.Slots | None, names: Sequence[str]) -> str:
    if not names:
        return "Would start nothing"
    tasks = f"{len(names)} tasks, for the chunks {', '.join(names)}"
    if slots is not None:
        return f"Would run {tasks}, {slots.num} at a time"
    parameters = options.slurm.parameters()
    further = parameters.pop("additional_parameters")
    shown = {**parameters, **further}
    return f"Would submit an array of {tasks}: " + ", ".join(f"{key}={value}" for key, value in shown.items())


def _submit(folder: pathlib.Path, options: slurm.Options, names: Sequence[str]) -> None:
    tasks_folder = folder.absolute() / TASKS_FOLDER / "slurm"
    # Two grids whose folders have the same name are told apart in the queue.
    job_name = f"{folder.name}-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:6]}"
    calls = [(str(folder.absolute()), name) for name in names]
    jobs = slurm.submit(tasks_folder, job_name, options, grid_task.run_in_slurm, calls)
    grid_plan.add_jobs(folder, dict(zip(names, jobs, strict=True)))
    array = jobs[0].id.split("_")[0]
    print(
        f"Submitted job {array} with {len(jobs)} tasks; squeue --job={array} shows them, their logs are in "
        f"{tasks_folder}. The task that completes the last chunk writes {folder / 'grid.csv'}; the same "
        "command tells how they fare, and submits again what failed."
    )


def _run_here(
    folder: pathlib.Path, members: list[Member], plan: Plan, slots: local_tasks.Slots, names: Sequence[str]
) -> None:
    command = [sys.executable, "-m", "experiments.grid_task", str(folder)]
    logs = {name: folder / TASKS_FOLDER / "local" / f"{name}.log" for name in names}
    tasks = [local_tasks.Task(name, [*command, name], logs[name]) for name in names]
    grid_plan.add_jobs(folder, {name: Job("local", "", str(logs[name])) for name in names})

    def report(task: local_tasks.Task, what: str) -> None:
        print(f"chunk {task.name} {what}" + (f"; log: {task.log}" * (what == "started")), flush=True)

    with StopSignals() as signals:
        local_tasks.run(
            tasks,
            slots,
            again_status=grid_task.STOPPED_STATUS,
            stop_requested=signals.requested,
            stop_seconds=STOP_SECONDS + 5.0,
            report=report,
        )
        stopped = signals.requested()
    if stopped:
        raise RunError("stopped, and the tasks with it; the same command resumes them")
    state = survey(folder, members, plan)
    if state.failed:
        failures = "; ".join(f"chunk {name}: {why}" for name, why in state.failed.items())
        raise RunError(f"{len(state.failed)} of {len(names)} tasks did not finish: {failures}")
    if state.unfinished:
        print(
            f"Other processes are at work on {', '.join(state.unfinished)}; the last to end writes the table"
        )
    else:
        print(grid_results.describe(folder))
