"""The smallest run and grid that programs train in tests, and one undisturbed folder of each, made once.

What they have in common is compiled once for all tests: give programs these flags before flags of your own.
"""

import fcntl
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from hvae_jax.files import rate_log

ROOT = pathlib.Path(__file__).parents[1]
# Three batches and a bit of each epoch; the last interval is cut short.
NUM_STEPS, BATCH_SIZE, LOG_EVERY, EVAL_EVERY = 25, 16, 4, 8
NUM_TRAIN, NUM_VALID, NUM_TEST = 64, 8, 24
TRAINING = (
    f"--config.data.num_valid={NUM_VALID}",
    "--config.model.channels=2",
    "--config.model.num_stages=1",
    "--config.model.latent_shapes=((4,4,1),(2,))",
    f"--config.training.batch_size={BATCH_SIZE}",
    f"--config.training.num_epochs={NUM_STEPS * BATCH_SIZE / NUM_TRAIN}",
    "--config.training.learning_rate=0.01",
    f"--config.training.log_every_steps={LOG_EVERY}",
    f"--config.training.eval_every_steps={EVAL_EVERY}",
    f"--config.training.checkpoint_every_steps={LOG_EVERY}",
    "--config.evaluation.num_samples=4",
    "--config.evaluation.num_importance_samples=16",
)


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """Images of 8×8, one half bright or the other, in noise, as a file in `folder`."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, num in (("train", NUM_TRAIN + NUM_VALID), ("test", NUM_TEST)):
        labels = np.arange(num) % 2
        images = generator.integers(0, 150, (num, 8, 8))
        images[labels == 0, :4] += 100
        images[labels == 1, 4:] += 100
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(folder / "tiny.npz", **arrays)
    return folder / "tiny.npz"


def run_flags(data_file: pathlib.Path, folder: pathlib.Path) -> tuple[str, ...]:
    """Of a run that is the last model of the grid."""
    return (
        "--config=experiments/digits.py",
        f"--config.data.name=npz:{data_file}",
        *TRAINING,
        "--config.objective.betas=(3.0,1.0)",
        "--config.training.seed=1",
        f"--workdir={folder}",
    )


def grid_flags(data_file: pathlib.Path, folder: pathlib.Path) -> tuple[str, ...]:
    """Of a grid of four models."""
    return (
        "--config=experiments/digits_grid.py",
        f"--config.data.name=npz:{data_file}",
        *TRAINING,
        "--config.grid.betas=((0.3,3.0),(1.0,))",
        "--config.grid.seeds=(0,1)",
        f"--workdir={folder}",
    )


def start_anew(
    environment: dict[str, str], program: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """A program run to its end exactly as a user does it, imports and all."""
    command = [sys.executable, "-m", f"experiments.{program}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def make_once(folder: pathlib.Path, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """`folder / name`, made by whichever process of these tests needs it first; the others wait."""
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / f"{name}.done"
        if not done.exists():
            make(folder / name)
            done.touch()
    return folder / name


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """A run's log without what depends on the machine; empty where there is none."""
    file = folder / rate_log.RATES_FILE
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in lines]


def assert_one_error(ended: Any, message: str) -> None:
    """That a program ended with status 1 and one line that says so."""
    assert ended.status == 1, ended
    errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ended.err
    assert message in errors[0]
    assert "Traceback" not in ended.err
