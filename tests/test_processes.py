"""One run over several processes, as a user starts them."""

import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_run import rows

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.training import processes

ROOT = pathlib.Path(__file__).parents[1]
# 60 steps of the digits model.
SHORT = (
    "--config=experiments/digits.py",
    "--config.training.num_epochs=3.06",
    "--config.training.log_every_steps=10",
    "--config.training.eval_every_steps=20",
    "--config.training.checkpoint_every_steps=20",
    "--config.evaluation.num_samples=1",
    "--config.evaluation.num_importance_samples=2",
)
# Twice `processes.HEARTBEAT_SECONDS`, after which a lost process is given up.
SOON_S = 60


def start(environment, num_devices: int, *arguments: str) -> subprocess.Popen:
    devices = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**environment, "XLA_FLAGS": f"{environment['XLA_FLAGS']} {devices}"}
    command = [sys.executable, "-m", "experiments.run", *SHORT, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def start_two(environment, *arguments: str) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", *arguments)
    return [start(environment, 2, *common, f"--process_id={i}") for i in range(2)]


def ended(*processes: subprocess.Popen) -> list[str]:
    """What each wrote, having gone well."""
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [out for out, _ in outputs]


@pytest.fixture(scope="module")
def one(environment, tmp_path_factory) -> pathlib.Path:
    """The folder of one process with four devices."""
    folder = tmp_path_factory.mktemp("one") / "run"
    ended(start(environment, 4, f"--workdir={folder}"))
    return folder


@pytest.fixture(scope="module")
def two(environment, tmp_path_factory) -> pathlib.Path:
    """The folder of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("two") / "run"
    out = ended(*start_two(environment, f"--workdir={folder}"))
    assert "Test split" in out[0]
    assert "Test split" not in out[1]
    return folder


def assert_alike(folder: pathlib.Path, wanted: pathlib.Path) -> None:
    for split in ("train", "valid"):
        log, log_wanted = records.load(folder, split), records.load(wanted, split)
        assert log["step"].tolist() == log_wanted["step"].tolist()
        for name in ("distortion_nats", "rates_nats"):
            np.testing.assert_allclose(log[name], log_wanted[name], rtol=2e-3, atol=2e-4)
    test, test_wanted = (records.read_json(f / "evaluation.json")["test"] for f in (folder, wanted))
    assert test["num_images"] == test_wanted["num_images"]
    np.testing.assert_allclose(test["rates_nats"], test_wanted["rates_nats"], rtol=2e-3, atol=2e-4)


def test_two_processes_give_the_rates_of_one(one, two):
    assert_alike(two, one)
    assert {entry.name for entry in two.iterdir()} == {entry.name for entry in one.iterdir()}


def cut(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """A copy of a run as it was at step 40."""
    shutil.copytree(folder, to)
    shutil.rmtree(to / "checkpoints" / "60")
    (to / "evaluation.json").unlink()
    return to


def test_each_resumes_what_the_other_began(environment, one, two, tmp_path):
    ended(*start_two(environment, f"--workdir={cut(one, tmp_path / 'one')}"))
    assert rows(tmp_path / "one")[:6] == rows(one)[:6]
    assert_alike(tmp_path / "one", one)
    ended(start(environment, 4, f"--workdir={cut(two, tmp_path / 'two')}"))
    assert rows(tmp_path / "two")[:6] == rows(two)[:6]
    assert_alike(tmp_path / "two", two)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_the_run_resumes(environment, two, tmp_path, victim):
    folder = tmp_path / "run"
    pair = start_two(environment, f"--workdir={folder}")
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "20").exists():
        assert [process.poll() for process in pair] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    pair[victim].send_signal(signal.SIGKILL)
    _, errors = pair[1 - victim].communicate(timeout=SOON_S)
    pair[victim].communicate()
    assert pair[1 - victim].returncode == 1
    assert_one_error(errors, "lost another process of this run")
    assert not (folder / "evaluation.json").exists()
    ended(*start_two(environment, f"--workdir={folder}"))
    assert rows(folder) == rows(two)


def assert_one_error(errors: str, message: str) -> None:
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, errors
    assert message in lines[0]
    assert "Traceback" not in errors


def test_what_one_process_finds_wrong_ends_all(environment, tmp_path):
    pair = start_two(environment, f"--workdir={tmp_path / 'run'}", "--config.training.batch_size=66")
    for process in pair:
        _, errors = process.communicate(timeout=SOON_S)
        assert process.returncode == 1
        assert_one_error(errors, "batch_size=66 cannot be divided over 4 devices")
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_is_not_there(environment, tmp_path):
    flags = ("--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--start_timeout_s=3")
    process = start(environment, 1, *flags, f"--workdir={tmp_path / 'run'}")
    _, errors = process.communicate(timeout=SOON_S)
    assert process.returncode == 1
    assert_one_error(errors, "not all processes came together within 3 s")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", 2, 2), "--process_id=2 must be 0 to 1"),
        (("host:1", 2, -1), "--process_id=-1 must be 0 to 1"),
        (("host:1", 0, 0), "--num_processes=0 must be at least 1"),
        (("host:1", 2, None), "also needs --process_id"),
        (("host:1", None, 0), "also needs --num_processes"),
        (("host", 2, 0), "--coordinator=host must be HOST:PORT"),
        ((None, 2, None), "--num_processes=2 needs --coordinator"),
        (("auto", None, 1), "--process_id=1 needs --coordinator"),
    ],
)
def test_flags_that_do_not_fit_together(arguments, message):
    with pytest.raises(RunError, match=message):
        processes.start(*arguments)


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    assert processes.start(None, None, None) == processes.start("host:1", 1, 0) == processes.count() == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "only-one")
    assert processes.start(None, None, None) == 1
