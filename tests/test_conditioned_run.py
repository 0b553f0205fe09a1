"""A conditioned run as a user starts it, asked afterwards, and the grid that it gives without training."""

import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny

from experiments import grid_from_model
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.grid import table

pytestmark = pytest.mark.long

FLAGS = (
    "--config=experiments/digits_conditioned.py",
    *tiny.TRAINING,
    "--config.objective.marked_betas=((0.1,10.0),(10.0,0.1))",
    "--config.training.learning_rate_warmup_steps=0",
)


@pytest.fixture(scope="module")
def finished(programs, tiny_data, tmp_path_factory) -> pathlib.Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "conditioned"
    ended = programs.run("run", *FLAGS, f"--config.data.name=npz:{tiny_data}", f"--workdir={folder}")
    assert ended.status == 0, ended.err
    return folder


def test_the_log_has_marked_betas_and_the_means_of_draws(finished):
    train, valid = records.load(finished), records.load(finished, "valid")
    assert valid["marked_rates_nats"].shape == (len(valid["step"]), 2, 2)
    np.testing.assert_array_equal(valid["marked_betas"][-1], [[0.1, 10.0], [10.0, 0.1]])
    np.testing.assert_array_equal(valid["betas"][-1], [1.0, 1.0])
    np.testing.assert_allclose(train["betas"][-1], [(12.6 - 0.08) / np.log(12.6 / 0.08)] * 2)


def test_runs_are_seeds_of_one_model_unless_something_else_differs(finished, tmp_path):
    config = records.config_of(finished)
    runs: list[pathlib.Path] = []
    builts: list[Any] = []
    for seed, pace, rate in ((0, 100, 1e-3), (1, 200, 1e-3), (2, 100, 2e-3)):
        training = {**config["training"], "seed": seed, "eval_every_steps": pace, "learning_rate": rate}
        (tmp_path / str(seed)).mkdir()
        records.write_json(tmp_path / str(seed) / "config.json", {**config, "training": training})
        runs.append(tmp_path / str(seed))
        builts.append(SimpleNamespace(beta_range=(), training=SimpleNamespace(seed=seed)))
    grid_from_model.check_runs("runs", runs[:2], builts[:2])
    with pytest.raises(RunError, match=r"differ in config\.training\.learning_rate$"):
        grid_from_model.check_runs("runs", runs, builts)
    with pytest.raises(RunError, match=r"the runs have the seeds \[0, 0\]"):
        grid_from_model.check_runs("runs", runs[:1] * 2, builts[:1] * 2)


def test_it_is_asked_and_makes_a_grid_without_training(finished, programs, tmp_path):
    out = tmp_path / "answer.json"
    flags = (f"--workdir={finished}", f"--pictures={tmp_path}", f"--out={out}")
    ended = programs.run("ask", *flags, "--betas=0.3,3.0")
    assert ended.status == 0, ended.err
    there = records.read_json(out)
    assert there["betas"] == [0.3, 3.0]
    assert len(list(tmp_path.glob("*.png"))) == 2
    ended = programs.run("ask", *flags, f"--targets_nats={','.join(map(str, there['valid_rates_nats']))}")
    assert ended.status == 0, ended.err
    answer = records.read_json(out)
    assert not answer["out_of_reach"]
    np.testing.assert_allclose(answer["valid_rates_nats"], there["valid_rates_nats"], rtol=0.01)
    tiny.assert_one_error(programs.run("ask", *flags, "--betas=0.3,30.0"), "beta_2=30 is outside of 0.08")
    tiny.assert_one_error(programs.run("ask", *flags), "give one of --betas, --targets_nats")
    total = (*flags, "--targets_nats=4")
    for shares, words in {
        "0,1": "=0,1 must be 2 positive",
        "1": "must be 2 positive",
        "-1,-3": "positive",
    }.items():
        tiny.assert_one_error(programs.run("ask", *total, f"--target_shares={shares}"), words)
    both = ("--targets_nats=2,1", "--target_shares=0.1,0.9")
    tiny.assert_one_error(programs.run("ask", *flags, *both), "give one number to --targets_nats, not 2")
    other = tmp_path / "other"
    other.mkdir()
    best = {"applications": {"reconstruction": {"best": {"betas": [0.3, 3.0]}}}}
    records.write_json(other / "guidance.json", best)
    ended = programs.run("ask", *flags, "--best_for=reconstruction", f"--grid={other}")
    tiny.assert_one_error(ended, "is not a grid of")

    grid = ("--config=experiments/digits_grid.py", "--config.grid.betas=((0.3,1.0),(3.0,))")
    ended = programs.run("grid", *grid, f"--from_model={finished}", f"--workdir={tmp_path / 'grid'}")
    assert ended.status == 0, ended.err
    assert "2 models asked, 0 diverged" in ended.out
    found = table.load(tmp_path / "grid")
    assert found["rates_nats"].shape == (2, 1, 1, 2)
    records.write_json(tmp_path / "grid" / "guidance.json", best)
    ended = programs.run("ask", *flags, "--best_for=reconstruction", f"--grid={tmp_path / 'grid'}")
    assert ended.status == 0, ended.err
    assert records.read_json(out)["betas"] == [0.3, 3.0]
    ended = programs.run(
        "grid", *grid, f"--from_model={finished}", f"--workdir={tmp_path / 'x'}", "--dry_run"
    )
    tiny.assert_one_error(ended, "--from_model trains nothing")
    # The same model at the same betas, with more draws.
    error = 5.0 * np.asarray(there["test_rate_standard_errors_nats"])
    # Hardly trained, z_2 may have the same rate for every image, and no error.
    assert (np.abs(found["rates_nats"][0, 0, 0] - there["test_rates_nats"]) < error + 1e-6).all()
    tiny.assert_one_error(
        programs.run(
            "grid",
            *grid,
            f"--workdir={tmp_path / 'refused'}",
            "--config.model.conditioning=gates",
            "--config.objective.beta_range=(0.1,10.0)",
        ),
        "a conditioned model (config.model.conditioning) is one for all betas",
    )


def test_excess_over_itself_is_none(finished, programs, tmp_path):
    grid = ("--config=experiments/digits_grid.py", "--config.grid.betas=((0.3,3.0),(1.0,2.0))")
    ended = programs.run("grid", *grid, f"--from_model={finished}", f"--workdir={tmp_path / 'grid'}")
    assert ended.status == 0, ended.err
    out, figure = tmp_path / "excess.json", tmp_path / "excess.png"
    flags = (f"--runs={finished}", f"--out={out}", f"--figure={figure}")
    refused = programs.run("excess", *flags, f"--separate={tmp_path / 'grid'}")
    tiny.assert_one_error(refused, "which was not trained for each")
    table_file = (tmp_path / "grid" / "grid.csv").rename(tmp_path / "grid.csv")
    ended = programs.run(
        "excess", *flags, f"--separate={table_file}", "--equal_rates", "--num_samples=4", draws=True
    )
    assert ended.status == 0, ended.err
    assert "excess: mean" in ended.out
    found = records.read_json(out)
    assert found["summary"]["num_points"] == 4
    np.testing.assert_allclose([point["excess_nats"] for point in found["points"]], 0.0, atol=1e-4)
    # Asked for its own rates, it has its own distortion, as nearly as rates are found.
    asked = [point for point in found["points"] if "distortion_excess_nats" in point]
    assert len(asked) == found["summary"]["num_distortions"] > 0
    for point in asked:
        assert abs(point["distortion_excess_nats"]) < 0.02 * sum(point["separate_rates_nats"]) + 0.02
    assert figure.stat().st_size > 10_000

    # A table that is better by 2 nats everywhere, of which one model diverged.
    lines = table_file.read_text().splitlines()
    names = lines[0].split(",")
    place, status = names.index("test_distortion_nats"), names.index("status")
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[place] = str(float(row[place]) - 2.0)
    rows[0][status] = "diverged"
    better = tmp_path / "better.csv"
    better.write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    ended = programs.run(
        "excess", f"--runs={finished}", f"--separate={better}", f"--out={out}", "--num_samples=4"
    )
    assert ended.status == 0, ended.err
    summary = records.read_json(out)["summary"]
    assert (summary["num_points"], summary["num_lower"]) == (3, 0)
    np.testing.assert_allclose([summary["mean_nats"], summary["worst_nats"]], 2.0, atol=1e-3)

    rows[1][names.index("beta_1")] = "99.0"
    better.write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    refused = programs.run("excess", f"--runs={finished}", f"--separate={better}")
    tiny.assert_one_error(refused, "--separate has a model at the betas (99.0")
    twice = programs.run("excess", f"--runs={finished},{finished}", f"--separate={table_file}")
    tiny.assert_one_error(twice, "--runs: the runs have the seeds [0, 0]")
    missing = programs.run("excess", f"--runs={finished}", f"--separate={tmp_path / 'no.csv'}")
    tiny.assert_one_error(missing, "no.csv does not exist")


def test_bits_on_disk_at_betas_that_were_asked_for(finished, programs, tmp_path):
    run, file, out = f"--workdir={finished}", tmp_path / "test.bits", tmp_path / "back.npz"
    written = []
    for betas in ("0.1,0.1", "0.1,10.0"):
        flags = (run, f"--out={file}", "--num_images=20", "--top_first=2", f"--report={tmp_path / 'r.json'}")
        ended = programs.run("compress", *flags, f"--betas={betas}")
        assert ended.status == 0, ended.err
        written.append(records.read_json(tmp_path / "r.json"))
        assert written[-1]["betas"] == [float(beta) for beta in betas.split(",")]
    assert written[0]["rates_bits"] != written[1]["rates_bits"]
    ended = programs.run("decompress", str(file), run, f"--out={out}")  # the file knows its betas
    assert ended.status == 0, ended.err
    with np.load(out) as arrays:
        images = arrays["images"]
    assert images.shape == (20, 8, 8, 1)
    ended = programs.run("decompress", str(file), run, f"--out={out}", "--layers=2")
    assert ended.status == 0, ended.err
    with np.load(out) as arrays:
        assert arrays["images"].shape == images.shape
        assert sorted(arrays["places"]) == list(range(20))  # z_2 of all images lies in front
    refused = programs.run("compress", run, f"--out={file}", "--betas=0.1,100")
    tiny.assert_one_error(refused, "--betas=0.1,100 must be a number for each layer")
    refused = programs.run("decompress", str(file), run, f"--out={out}", "--layers=3")
    tiny.assert_one_error(refused, "--layers=3 must be in 1 … 2")
