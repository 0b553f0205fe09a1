"""The program as a user runs it, in processes of its own."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hvae_jax import records

ROOT = pathlib.Path(__file__).parents[1]
# 120 steps of the digits model.
SHORT = (
    "--config.training.num_epochs=6.2",
    "--config.training.log_every_steps=20",
    "--config.training.eval_every_steps=40",
    "--config.training.checkpoint_every_steps=20",
    "--config.evaluation.num_samples=2",
    "--config.evaluation.num_importance_samples=10",
)


def start(environment, *arguments: str, limit: str = "true") -> subprocess.Popen:
    """The program in the background; `limit` is a shell command that goes before it."""
    program = [sys.executable, "-m", "experiments.run", *arguments]
    command = ["bash", "-c", f'{limit} && exec "$@"', "bash", *program]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def run_digits(
    environment, workdir: pathlib.Path, *arguments: str, limit: str = "true"
) -> subprocess.CompletedProcess:
    arguments = ("--config=experiments/digits.py", f"--workdir={workdir}", *SHORT, *arguments)
    process = start(environment, *arguments, limit=limit)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def with_devices(environment: dict[str, str], number: int) -> dict[str, str]:
    devices = f"--xla_force_host_platform_device_count={number}"
    return {**environment, "XLA_FLAGS": f"{environment['XLA_FLAGS']} {devices}"}


def rows(folder: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / records.RATES_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in lines]


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory) -> pathlib.Path:
    """The folder of a run that went through."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    result = run_digits(environment, folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_run_leaves_everything_it_promises(finished):
    names = {"config.json", "versions.json", "data.json", "rates.jsonl", "checkpoints", "evaluation.json"}
    names |= {"figures", "run.lock"}
    assert {entry.name for entry in finished.iterdir()} == names
    figures = {file.name for file in (finished / "figures").iterdir()}
    assert figures == {"training.png", "rate_distortion.png", "reconstructions.png", "samples.png"}
    test = records.read_json(finished / "evaluation.json")["test"]
    assert test["num_images"] == 360
    assert test["negative_elbo_nats"] == pytest.approx(
        test["distortion_nats"] + sum(test["rates_nats"]), rel=1e-6
    )
    assert test["bits_per_dim"] == pytest.approx(test["negative_elbo_nats"] / (64 * np.log(2)), rel=1e-6)
    # The importance-weighted bound is the tighter one.
    assert test["negative_importance_weighted_bound_nats"] < test["negative_elbo_nats"]
    log = records.load(finished)
    assert log["step"].tolist() == [20, 40, 60, 80, 100, 120, 121]
    assert log["loss_nats"][-1] < log["loss_nats"][0]
    assert records.load(finished, "valid")["step"].tolist() == [40, 80, 120, 121]


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(environment, finished, tmp_path):
    arguments = ("--config=experiments/digits.py", f"--workdir={tmp_path / 'run'}", *SHORT)
    process = start(environment, *arguments)
    log = tmp_path / "run" / "rates.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "evaluation.json").exists()

    result = run_digits(environment, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert rows(tmp_path / "run") == rows(finished)
    assert records.read_json(tmp_path / "run" / "evaluation.json") == records.read_json(
        finished / "evaluation.json"
    )


def test_signals_end_it_as_of_a_checkpoint_of_that_very_step(environment, finished, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--config=experiments/digits.py", f"--workdir={folder}", *SHORT)
    # While it compiles, it ends at once; while it trains, it saves.
    for number, is_there in (
        (signal.SIGINT, lambda: (folder / "data.json").exists()),
        (signal.SIGTERM, lambda: rows(folder)[2:] if (folder / "rates.jsonl").exists() else False),
    ):
        process = start(environment, *arguments)
        deadline = time.monotonic() + 200
        while not is_there():
            assert process.poll() is None, "finished before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        result = subprocess.CompletedProcess(arguments, process.returncode, out, err)
        if number == signal.SIGINT:
            assert_one_error(result, "stopped; the same command resumes from the last checkpoint")
            assert not (folder / "rates.jsonl").exists()
        else:
            assert_one_error(result, "stopped at step ")
            step = int(err.split("stopped at step ")[1].split(";")[0])
            assert (folder / "checkpoints" / str(step)).is_dir()
    resumed = run_digits(environment, folder)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(folder) == rows(finished)


def test_four_devices_give_the_rates_of_one(environment, finished, tmp_path):
    four = with_devices(environment, 4)
    result = run_digits(four, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    for split in ("train", "valid"):
        one, many = records.load(finished, split), records.load(tmp_path / "run", split)
        # Sums in another order: the difference grows with the steps, from the last float digit on.
        for name in ("distortion_nats", "rates_nats"):
            np.testing.assert_allclose(many[name], one[name], rtol=2e-3, atol=2e-4)
    one, many = (records.read_json(f / "evaluation.json")["test"] for f in (finished, tmp_path / "run"))
    np.testing.assert_allclose(many["rates_nats"], one["rates_nats"], rtol=2e-3, atol=2e-4)


def test_three_devices_do_not_divide_the_batch(environment, tmp_path):
    three = with_devices(environment, 3)
    result = run_digits(three, tmp_path / "run")
    assert_one_error(result, "config.training.batch_size=64 cannot be divided over 3 devices")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.objective.betas=(1.0,2.0,3.0)"], "has 3 entries but the model has 2 layers"),
        (["--config.model.chanels=3"], "chanels"),
        (["--config.data.name=mmnist"], "config.data.name='mmnist'"),
        (["--config.training.batch_size=many"], "batch_size"),
        (["--confg=x.py"], "confg"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(environment, tmp_path, arguments, message):
    assert_one_error(run_digits(environment, tmp_path / "run", *arguments), message)
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_not_there(environment):
    process = start(environment, "--config=experiments/nothing.py")
    out, err = process.communicate(timeout=120)
    result = subprocess.CompletedProcess([], process.returncode, out, err)
    assert_one_error(result, "experiments/nothing.py")


def test_a_workdir_with_another_config_is_refused_and_left_alone(environment, finished):
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    result = run_digits(environment, finished, "--config.objective.betas=(1.0,4.0)")
    assert_one_error(result, "config.objective.betas is [1.0, 1.0] there and [1.0, 4.0] here")
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*")}


def test_a_disk_that_is_full_keeps_the_earlier_checkpoint(environment, finished, tmp_path):
    folder = tmp_path / "run"
    # A first run that ends early leaves a checkpoint; the second may not write files of any size.
    process = start(environment, "--config=experiments/digits.py", f"--workdir={folder}", *SHORT)
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "40").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    result = run_digits(environment, folder, limit="ulimit -f 40")  # KiB
    assert_one_error(result, "cannot be written")
    resumed = run_digits(environment, folder)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(folder) == rows(finished)


def test_a_truncated_checkpoint_says_what_to_delete(environment, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for file in (folder / "checkpoints" / "121" / "default").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert_one_error(run_digits(environment, folder), "delete that folder")
    shutil.rmtree(folder / "checkpoints" / "121")
    assert run_digits(environment, folder).returncode == 0
    assert rows(folder) == rows(finished)


def assert_one_error(result: subprocess.CompletedProcess, message: str) -> None:
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert "Traceback" not in result.stderr
