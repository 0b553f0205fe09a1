"""Slurm: one array task per call through submitit, what the queue says of them, and their requeue."""

import getpass
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hvae_jax.errors import RunError
from hvae_jax.grid.plan import Job

QUEUE_SECONDS = 60.0


class Options(NamedTuple):
    """What an array task asks of Slurm.

    Attributes:
      time: limit, as sbatch writes it: minutes, "4:00:00", "2-00:00:00". A task that reaches it is requeued.
      partition: None takes the cluster's default.
      gpus_per_task, cpus_per_task: 0 and None ask for none in particular.
      mem_gib: of the node; None takes the cluster's default.
      parallel_tasks: at most so many at a time; None for no limit.
      signal_s: before the time limit, when the task is told to save and end.
      extra: further options of sbatch, "account=NAME" or "exclusive".
      setup: shell lines that run before the task.
    """

    time: str
    partition: str | None
    gpus_per_task: int
    cpus_per_task: int | None
    mem_gib: float | None
    parallel_tasks: int | None
    signal_s: int
    extra: tuple[str, ...]
    setup: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """As submitit takes them."""
        extra: dict[str, Any] = {"requeue": True}
        for option in self.extra:
            name, _, value = option.removeprefix("--").partition("=")
            extra[name] = value or True
        given = {
            "time": self.time,
            "partition": self.partition,
            "gpus_per_node": self.gpus_per_task or None,  # one task is one node
            "cpus_per_task": self.cpus_per_task,
            # srun does not take this over from sbatch since Slurm 22.05.
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else None,
            "mem": f"{round(self.mem_gib * 1024)}M" if self.mem_gib else None,
            "array_parallelism": self.parallel_tasks,
            "signal_delay_s": self.signal_s,
            "additional_parameters": extra,
            "setup": list(self.setup) or None,
        }
        return {name: value for name, value in given.items() if value is not None}


def submit(
    folder: pathlib.Path,
    job_name: str,
    options: Options,
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
) -> list[Job]:
    """Submits one array with a task per call of `function`.

    Args:
      folder: for submitit's files and the logs; the nodes must see it under the same path.
      job_name: in the queue.
      options: what each task asks for.
      function: importable on the nodes, from the folder that the command is run in.
      calls: its arguments.

    Returns:
      a job per call.

    Raises:
      RunError: no submitit, no Slurm, or Slurm refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise RunError('--launcher=slurm needs submitit: pip install -e ".[cluster]"') from error
    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.SlurmExecutor(folder.absolute())
        executor.update_parameters(job_name=job_name, **options.parameters())
        jobs = executor.map_array(function, *map(list, zip(*calls, strict=True)))
    except Exception as error:  # submitit's own kinds, and those of the commands it calls
        raise RunError(f"Slurm did not take the tasks: {_reason(error)}") from error
    return [Job("slurm", job.job_id, str(job.paths.stderr)) for job in jobs]


def queue() -> dict[str, str]:
    """State of every job and array task of this user that Slurm knows to be pending, running or ending.

    Raises:
      RunError: there is no answer.
    """
    out = _ask("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i %T")
    return dict(line.split() for line in out.splitlines())


def own_job() -> str:
    """The job, or the task of an array, that this process is; submitit makes no array of a single task."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> None:
    """Puts the task that this process is back into the queue, unless Slurm has already ended it.

    Raises:
      RunError: Slurm refuses.
    """
    job = own_job()
    # Of a job that was cancelled, or that Slurm requeues by itself, it is not ours to decide.
    if _ask("squeue", "--noheader", f"--job={job}", "--format=%T").strip() == "RUNNING":
        _ask("scontrol", "requeue", job)


def _ask(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=QUEUE_SECONDS
        ).stdout
    except FileNotFoundError as error:
        raise RunError(
            f"{command[0]} is not found, but the grid has tasks in Slurm: run this where that cluster is"
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{' '.join(command)} does not work: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What Slurm said, where it said something."""
    text = str(getattr(error, "stderr", None) or error)
    said = re.findall(r"(?:sbatch|squeue|scontrol): error: (.*)", text)
    return "; ".join(said) or " ".join(text.split())[:300]
