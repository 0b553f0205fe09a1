"""A streamed run as a user starts it, in processes of its own: killed, resumed, and nothing left behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import programs as started
import pytest
import tiny
from programs import Stop

from experiments import made_images
from hvae_jax import records

pytestmark = pytest.mark.long

FLAGS = (
    "--config=experiments/digits.py",
    "--config.data.name=tfds:made_images",
    *tiny.TRAINING,
    "--config.data.num_workers=1",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Images of 8 × 8 pixels in colour."""
    folder = tmp_path_factory.mktemp("tfds")
    num_train = tiny.NUM_TRAIN + tiny.NUM_VALID
    made_images.prepare(folder, num_train=num_train, num_test=tiny.NUM_TEST, side=8)
    return folder


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """The program as a user starts it: the processes that it starts begin as it did."""
    command = [sys.executable, "-m", "experiments.run", *FLAGS, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=tiny.ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


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
    environment: dict[str, str], programs: started.Server, data_dir: pathlib.Path, tmp_path: pathlib.Path
):
    # The two are different programs, which round alike as XLA compiles them by default.
    exact = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment = {**environment, **exact}
    where = f"--config.data.data_dir={data_dir}"
    kept, folder = tmp_path / "kept", tmp_path / "streamed"
    flags = *FLAGS, where, "--config.data.streaming=never", f"--workdir={kept}"
    ended = programs.run("run", *flags, environment=exact)
    assert ended.status == 0, ended.err

    streamed = where, "--config.data.streaming=always", f"--workdir={folder}"
    stop = Stop(folder / records.RATES_FILE, num_rows=5)
    process = start(started.with_stops(environment, stop), *streamed)
    assert stop.pid() == process.pid
    others = children(process.pid)
    assert others
    segments = shared_memory([process.pid, *others])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert_all_end(others)
    assert not [file for file in segments if file.exists()]

    stop = Stop(folder / records.RATES_FILE, num_rows=7)
    process = start(started.with_stops(environment, stop), *streamed)
    assert stop.pid() == process.pid
    others = children(process.pid)
    assert others
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=started.DEADLINE_SECONDS)
    assert process.returncode == 0, errors
    assert_all_end(others)
    assert tiny.rows(folder) == tiny.rows(kept)
    results = [records.read_json(one / records.EVALUATION_FILE) for one in (kept, folder)]
    assert results[0] == results[1]
