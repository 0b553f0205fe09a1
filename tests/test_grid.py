"""The grid program as a user runs it, in processes of its own."""

import signal

import numpy as np
import tiny
from programs import Stop

from hvae_jax import experiment, records
from hvae_jax.grid import table as grid_table


def test_a_grid_leaves_everything_it_promises(finished_grid):
    names = {"config.json", "versions.json", "data.json", "models.json", "grid.csv", "timing.csv"}
    names |= {"figures", "models", "tasks"}
    assert {entry.name for entry in finished_grid.iterdir()} == names
    models = sorted((finished_grid / "models").iterdir())
    assert [entry.name for entry in models] == ["0000", "0001", "0002", "0003"]
    for model in models:
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
        assert records.load(model)["step"].tolist() == [4, 8, 12, 16, 20, 24, 25]
        assert records.load(model, "valid")["step"].tolist() == [8, 16, 24, 25]
    table = grid_table.load(finished_grid, "valid")
    assert table["rates_nats"].shape == (2, 1, 2, 2)
    assert (table["status"] == "ok").all()
    total = table["distortion_nats"] + table["rates_nats"].sum(axis=-1)
    np.testing.assert_allclose(table["elbo_nats"], -total, rtol=1e-6)
    assert (table["rates_nats"][0, ..., 0] > table["rates_nats"][1, ..., 0]).all()  # β_1 = 0.3 and 3
    assert (table["wall_s"] > 0).all()


def test_a_killed_grid_resumes_to_the_same_table_byte_for_byte(programs, finished_grid, tiny_data, tmp_path):
    folder = tmp_path / "grid"
    flags = (*tiny.grid_flags(tiny_data, folder), "--config.grid.chunk_size=2")
    stop = Stop(folder / "models" / "0002" / "rates.jsonl", num_rows=5)  # of the second chunk
    process = programs.start("grid", *flags, stop=stop)
    assert stop.pid() == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    first_chunk = (folder / "models" / "0000" / "evaluation.json").stat().st_mtime_ns
    assert not (folder / "models" / "0003" / "evaluation.json").exists()

    ended = programs.run("grid", *flags)
    assert ended.status == 0, ended.err
    assert (folder / "grid.csv").read_bytes() == (finished_grid / "grid.csv").read_bytes()
    assert (folder / "models" / "0000" / "evaluation.json").stat().st_mtime_ns == first_chunk
    for number in range(4):
        log, wanted = (records.load(f / "models" / f"{number:04d}") for f in (folder, finished_grid))
        np.testing.assert_array_equal(log["rates_nats"], wanted["rates_nats"])


def test_a_model_of_a_grid_is_what_experiments_run_makes_of_its_config(finished_grid, finished_run):
    model = finished_grid / "models" / "0003"  # β = (3, 1), seed 1
    assert (model / "config.json").read_text() == (finished_run / "config.json").read_text()
    for split in ("train", "valid"):
        log, wanted = records.load(model, split), records.load(finished_run, split)
        for name in ("loss_nats", "distortion_nats", "rates_nats", "betas", "bits_per_dim"):
            np.testing.assert_allclose(log[name], wanted[name], rtol=1e-3, atol=1e-5)
    ours, wanted = (records.read_json(f / "evaluation.json")["test"] for f in (model, finished_run))
    np.testing.assert_allclose(ours["rates_nats"], wanted["rates_nats"], rtol=1e-3, atol=1e-5)
    state = experiment.restore(experiment.from_folder(model), model)
    assert int(state.step) == tiny.NUM_STEPS


def test_a_dry_run_tells_and_writes_nothing(programs, tiny_data, tmp_path):
    folder = tmp_path / "grid"
    flags = (*tiny.grid_flags(tiny_data, folder), "--config.grid.chunk_size=2")
    ended = programs.run("grid", *flags, "--dry_run")
    assert ended.status == 0, ended.err
    assert f"4 models of {tiny.NUM_STEPS} steps in 2 chunks of at most 2" in ended.out
    assert "GiB" in ended.out
    assert "model-steps/s" in ended.out
    assert not folder.exists()
