"""A streamed run as a user starts it, in processes of its own: killed, resumed, and nothing left behind."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import made_images
from hvae_jax import records

ROOT = pathlib.Path(__file__).parents[1]
# 40 steps over 8 × 8 images in colour.
SHORT = (
    "--config=experiments/digits.py",
    "--config.data.name=tfds:made_images",
    "--config.data.num_valid=64",
    "--config.data.num_workers=1",
    "--config.training.num_epochs=10.0",
    "--config.training.log_every_steps=5",
    "--config.training.eval_every_steps=20",
    "--config.training.checkpoint_every_steps=5",
    "--config.evaluation.num_samples=2",
    "--config.evaluation.num_importance_samples=2",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tfds")
    made_images.prepare(folder, num_train=320, num_test=70, side=8)
    return folder


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.run", *SHORT, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors


def rows(folder: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / records.RATES_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in lines]


def wait_for_rows(folder: pathlib.Path, number: int, process: subprocess.Popen[str]) -> None:
    log, deadline = folder / records.RATES_FILE, time.monotonic() + 400
    while not (log.exists() and log.read_text().count("\n") >= number):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """Processes that `pid` has started, grain's and those that multiprocessing needs."""
    listed = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]


def shared_memory(pids: list[int]) -> set[pathlib.Path]:
    """Segments that the processes have open, whose files outlive them unless somebody removes these."""
    links = (link for pid in pids for link in pathlib.Path(f"/proc/{pid}/fd").glob("*"))
    return {file for file in (link.resolve() for link in links) if file.parent == pathlib.Path("/dev/shm")}


def assert_all_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_streamed_run_that_is_killed_ends_as_one_that_is_not_and_not_streamed(
    environment: dict[str, str], data_dir: pathlib.Path, tmp_path: pathlib.Path
):
    where = f"--config.data.data_dir={data_dir}"
    kept = start(environment, where, "--config.data.streaming=never", f"--workdir={tmp_path / 'kept'}")
    finish(kept)

    streamed = where, "--config.data.streaming=always", f"--workdir={tmp_path / 'streamed'}"
    process = start(environment, *streamed)
    wait_for_rows(tmp_path / "streamed", 3, process)
    started = children(process.pid)
    assert started
    segments = shared_memory([process.pid, *started])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert_all_end(started)
    assert not [file for file in segments if file.exists()]

    process = start(environment, *streamed)
    wait_for_rows(tmp_path / "streamed", 4, process)
    started = children(process.pid)
    finish(process)
    assert_all_end(started)
    assert rows(tmp_path / "streamed") == rows(tmp_path / "kept")
    results = [records.read_json(tmp_path / name / records.EVALUATION_FILE) for name in ("kept", "streamed")]
    assert results[0] == results[1]
