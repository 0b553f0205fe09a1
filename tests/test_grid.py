"""The grid program as a user runs it, in processes of its own."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hvae_jax import experiment, records
from hvae_jax.grid import table as grid_table

ROOT = pathlib.Path(__file__).parents[1]
# Four models of 59 steps.
TINY = (
    "--config=experiments/digits_grid.py",
    "--config.grid.betas=((0.3,3.0),(1.0,))",
    "--config.grid.seeds=(0,1)",
    "--config.grid.chunk_size=2",
    "--config.training.num_epochs=3.05",
    "--config.training.log_every_steps=20",
    "--config.training.eval_every_steps=20",
    "--config.training.checkpoint_every_steps=20",
    "--config.evaluation.num_samples=2",
    "--config.evaluation.num_importance_samples=2",
)


def start(environment, program, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", f"experiments.{program}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory) -> pathlib.Path:
    """The folder of a grid that went through."""
    folder = tmp_path_factory.mktemp("grids") / "finished"
    finish(start(environment, "grid", *TINY, f"--workdir={folder}"))
    return folder


def test_a_grid_leaves_everything_it_promises(finished):
    names = {"config.json", "versions.json", "data.json", "models.json", "grid.csv", "timing.csv"}
    names |= {"figures", "models", "tasks"}
    assert {entry.name for entry in finished.iterdir()} == names
    assert sorted(entry.name for entry in (finished / "models").iterdir()) == ["0000", "0001", "0002", "0003"]
    for model in (finished / "models").iterdir():
        wanted = {
            "config.json",
            "versions.json",
            "data.json",
            "run.lock",
            "rates.jsonl",
            "checkpoints",
            "evaluation.json",
            "timing.json",
        }
        assert {entry.name for entry in model.iterdir()} == wanted
        assert records.load(model)["step"].tolist() == [20, 40, 59]
        assert records.load(model, "valid")["step"].tolist() == [20, 40, 59]
    table = grid_table.load(finished, "valid")
    assert table["rates_nats"].shape == (2, 1, 2, 2)
    assert (table["status"] == "ok").all()
    total = table["distortion_nats"] + table["rates_nats"].sum(axis=-1)
    np.testing.assert_allclose(table["elbo_nats"], -total, rtol=1e-6)
    assert (table["rates_nats"][0, ..., 0] > table["rates_nats"][1, ..., 0]).all()  # β_1 = 0.3 and 3
    assert (table["wall_s"] > 0).all()


def test_a_killed_grid_resumes_to_the_same_table_byte_for_byte(environment, finished, tmp_path):
    folder = tmp_path / "grid"
    process = start(environment, "grid", *TINY, f"--workdir={folder}")
    log = folder / "models" / "0002" / "rates.jsonl"  # of the second chunk
    deadline = time.monotonic() + 250
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first_chunk = (folder / "models" / "0000" / "evaluation.json").stat().st_mtime_ns
    assert not (folder / "models" / "0003" / "evaluation.json").exists()

    finish(start(environment, "grid", *TINY, f"--workdir={folder}"))
    assert (folder / "grid.csv").read_bytes() == (finished / "grid.csv").read_bytes()
    assert (folder / "models" / "0000" / "evaluation.json").stat().st_mtime_ns == first_chunk
    for number in range(4):
        log, wanted = (records.load(f / "models" / f"{number:04d}") for f in (folder, finished))
        np.testing.assert_array_equal(log["rates_nats"], wanted["rates_nats"])


def test_a_model_of_a_grid_is_what_experiments_run_makes_of_its_config(environment, finished, tmp_path):
    number = "0003"  # β = (3, 1), seed 1
    changes = [argument for argument in TINY if "--config.grid" not in argument][1:]
    changes += ["--config.objective.betas=(3.0,1.0)", "--config.training.seed=1"]
    finish(start(environment, "run", "--config=experiments/digits.py", *changes, f"--workdir={tmp_path}"))
    model = finished / "models" / number
    assert (model / "config.json").read_text() == (tmp_path / "config.json").read_text()
    for split in ("train", "valid"):
        log, wanted = records.load(model, split), records.load(tmp_path, split)
        for name in ("loss_nats", "distortion_nats", "rates_nats", "betas", "bits_per_dim"):
            np.testing.assert_allclose(log[name], wanted[name], rtol=1e-3, atol=1e-5)
    ours, wanted = (records.read_json(f / "evaluation.json")["test"] for f in (model, tmp_path))
    np.testing.assert_allclose(ours["rates_nats"], wanted["rates_nats"], rtol=1e-3, atol=1e-5)
    state = experiment.restore(experiment.from_folder(model), model)
    assert int(state.step) == 59


def test_a_dry_run_tells_and_writes_nothing(environment, tmp_path):
    folder = tmp_path / "grid"
    out = finish(start(environment, "grid", *TINY, f"--workdir={folder}", "--dry_run"))
    assert "4 models of 59 steps in 2 chunks of at most 2" in out
    assert "GiB" in out
    assert "model-steps/s" in out
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.latent_shapes=((2,2,16),)"], "is over 2 layers but the model has 1"),
        (["--config.grid.memory_gib=0.01"], "config.grid.memory_gib=0.01 allows 0.01 GiB"),
        (["--baseline=nowhere"], "--baseline=nowhere: nowhere/config.json does not exist"),
        (["--cpu_devices=1000000000"], "--cpu_devices=1000000000: 1000000000 is not an integer in the range"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(environment, tmp_path, arguments, message):
    process = start(environment, "grid", *TINY, f"--workdir={tmp_path / 'grid'}", *arguments)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert [line for line in err.splitlines() if line.startswith("error:") and message in line]
    assert not (tmp_path / "grid").exists()
