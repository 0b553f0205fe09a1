"""A grid of four small models for tests that train it as tasks, and how its programs are started."""

import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import small_grid

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 1968
DEADLINE_SECONDS = 400.0


def make_arguments(folder: pathlib.Path) -> list[str]:
    """Flags of the grid, with data in `folder`: some seconds of training, one checkpoint at the end."""
    return [
        "--config=experiments/digits_grid.py",
        f"--config.data.name=npz:{small_grid.write_data(folder)}",
        "--config.data.num_valid=60",
        "--config.model.channels=4",
        "--config.model.latent_shapes=((2,2,2),(3,))",
        "--config.grid.betas=((0.3,3.0),(1.0,))",
        "--config.grid.seeds=(0,1)",
        "--config.training.num_epochs=700.0",
        "--config.training.log_every_steps=100",
        "--config.training.eval_every_steps=1000",
        "--config.training.checkpoint_every_steps=1000000",
        "--config.evaluation.num_samples=2",
        "--config.evaluation.num_importance_samples=2",
    ]


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    """`experiments.grid`, as a user starts it."""
    command = [sys.executable, "-m", "experiments.grid", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, status: int = 0) -> tuple[str, str]:
    """Its output and its errors, once it has ended with that status."""
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == status, out + err
    return out, err


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Returns when the condition holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_training(folder: pathlib.Path, model: int) -> bool:
    """Whether a model's log has a row."""
    log = folder / "models" / f"{model:04d}" / "rates.jsonl"
    return log.exists() and log.read_text().count("\n") > 0


def pid_of_task(folder: pathlib.Path, name: str) -> int:
    """The process that trains a chunk."""
    return int((folder / "tasks" / f"{name}.lock").read_text().split()[1])
