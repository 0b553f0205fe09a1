"""`experiments.evaluate --ood` end to end: on a run of digits, and on a grid with a second seed."""

import csv
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import small_grid
import tiny

from experiments.guidance import read_scored
from hvae_jax import records
from hvae_jax.evaluation import guidance, plain

pytestmark = pytest.mark.long

QUICK = ("--num_draws=2", "--num_samples=300", "--max_fit_images=120", "--max_scored_images=80")
# What an evaluation leaves of all models together.
TOGETHER = ("evaluation.csv", "guidance.json", "guidance.md", "bounds.json", "report.html")
SETS = "noise,constant,inverted"


@pytest.fixture(scope="module")
def digits_run(programs, tmp_path_factory) -> pathlib.Path:
    """A run of a few epochs on digits, evaluated without a word of images from elsewhere."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    flags = ("--config=experiments/digits.py", "--config.training.num_epochs=3")
    ended = programs.run("run", *flags, f"--workdir={folder}")
    assert ended.status == 0, ended.err
    ended = programs.run("evaluate", f"--workdir={folder}", *QUICK)
    assert ended.status == 0, ended.err
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*TOGETHER, "metrics.json")}


def test_a_run_of_digits_tells_noise_constant_and_inverted_images(programs, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "digits")
    folder = tmp_path / "digits"
    before = contents(folder)
    assert not list(folder.glob("ood*")) + list(folder.glob("figures/detection*"))
    with_sets = ("evaluate", f"--workdir={folder}", *QUICK)
    ended = programs.run(*with_sets, f"--ood={SETS}")
    assert ended.status == 0, ended.err
    assert " again: " not in ended.out
    assert "## Detection: mean AUROC against noise, constant, inverted, by the score" in ended.out
    assert "| AUROC, test split | −ELBO | −importance-weighted bound | −L^{>1} | LLR^{>1} |" in ended.out
    content = records.read_json(folder / "ood.json")
    assert content["num_images"] == {"valid": 180, "test": 360}
    assert [of["name"] for of in content["sets"]] == SETS.split(",")
    # Inverted digits are white where these are black: no model takes one for the other.
    inverted = {entry["score"]: entry for entry in content["sets"][2]["scores"]}
    assert inverted["negative_elbo"]["test"]["auroc"] > 0.99
    assert inverted["negative_elbo"]["valid"]["fpr_at_80_tpr"] < 0.01
    with (folder / "ood.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4
    assert float(rows[8]["test.auroc"]) == inverted["negative_elbo"]["test"]["auroc"]
    with np.load(folder / "ood.npz") as arrays:
        shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["inside_valid"] == (180, 4)
    assert shapes["outside_3_test"] == (360, 4)
    assert (folder / "figures" / "detection_histograms.png").exists()
    for name, text in (("report.html", "AUROC of inverted"), ("guidance.md", "## Detection")):
        assert text in (folder / name).read_text()
    with (folder / "evaluation.csv").open() as file:
        (row,) = csv.DictReader(file)
    mean = content["mean_auroc"]
    assert float(row["applications.test.detection.value"]) == mean["test"]["value"]
    assert "standard_error" not in mean["valid"]
    # What each model has beside it is as it was.
    assert (folder / "metrics.json").read_bytes() == before["metrics.json"]

    # The same again takes what is there, and makes the same.
    done, changed = contents(folder), (folder / "ood.json").stat().st_mtime_ns
    (folder / "figures" / "detection_histograms.png").unlink()
    ended = programs.run(*with_sets, f"--ood={SETS}")
    assert (ended.status, " again: " in ended.out) == (0, False), ended.err
    assert contents(folder) == done
    assert (folder / "ood.json").stat().st_mtime_ns == changed
    assert (folder / "figures" / "detection_histograms.png").exists()

    # Other settings, and damage, are said; other applications are not evaluated again.
    for flags, why in (
        ((f"--ood={SETS}", "--ood_draws=2"), "sizes: num_draws was 5, is 2"),
        (("--ood=noise", "--ood_draws=2"), "outside: constant was"),
    ):
        ended = programs.run(*with_sets, *flags)
        assert ended.status == 0, ended.err
        assert f"{folder} looks at images from elsewhere again: {why}" in ended.out
        assert "evaluated again" not in ended.out
    content = records.read_json(folder / "ood.json")
    assert [of["name"] for of in content["sets"]] == ["noise"]
    (folder / "ood.npz").write_bytes(b"PK")
    ended = programs.run(*with_sets, "--ood=noise", "--ood_draws=2")
    assert "again: ood.npz is absent or damaged" in ended.out
    assert records.read_json(folder / "ood.json") == content

    # Whoever does not ask gets what was there before, byte for byte.
    ended = programs.run(*with_sets)
    assert ended.status == 0, ended.err
    assert contents(folder) == before


def test_a_grid_of_two_seeds_beside_one_layer(programs, tmp_path):
    """Models of small_grid: three classes in 8×8, rounded to black and white."""
    data = small_grid.write_data(tmp_path)
    grid, again, one = (tmp_path / name for name in ("grid", "again", "one"))
    betas = ((1.0, 1.0), (3.0, 0.3))
    for number, own in enumerate(betas):
        small_grid.make_run(grid / "models" / f"{number:04d}", data, own, seed=number)
    small_grid.make_run(again / "models" / "0000", data, betas[1], seed=7)
    small_grid.make_run(one, data, (1.0,), seed=0)
    other = small_grid.make_arrays(seed=5)
    dark: Any = {name: array // 3 if "images" in name else array for name, array in other.items()}
    np.savez(tmp_path / "dark.npz", **dark)
    flags = (f"--workdir={grid}", f"--baseline={one}", f"--repeats={again}", "--max_ood_images=60", *QUICK)
    ended = programs.run("evaluate", *flags, f"--ood=npz:{tmp_path / 'dark.npz'},noise")
    assert ended.status == 0, ended.err
    assert "note: npz:" in ended.out  # what looks odd in the data is said
    entry = records.read_json(grid / "guidance.json")["applications"]["detection"]
    assert entry["metric"] == "mean AUROC against dark, noise, by the score that validation chose"
    assert entry["num_candidates"] == 2
    assert entry["seed_spread"]["degrees_of_freedom"] == 1
    assert entry["seed_spread"]["of"] == "these models"
    assert entry["baseline"]["betas"] == [1.0]
    # With one layer there are no ratios.
    found = records.read_json(one / "ood.json")
    assert found["layers"] == []
    assert len(found["sets"][0]["scores"]) == 2
    for folder in (grid / "models" / "0000", grid / "models" / "0001", again / "models" / "0000"):
        found = records.read_json(folder / "ood.json")
        assert found["num_images"] == {"valid": 60, "test": 60}
        assert (folder / "figures" / "detection_histograms.png").exists()
    figures = {file.stem for file in (grid / "figures").glob("*.png")}
    assert {"detection_maps", "detection_histograms", "pictures_detection", "trade_off"} <= figures
    with (grid / "ood.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"0000", "0001", "again/0000"}
    assert len(rows) == 3 * 2 * 4
    # Guidance can be made again from the table, which does not say what the sets were.
    remade = guidance.make_guidance(read_scored(grid / "evaluation.csv")).applications.detection
    remade = plain.to_plain(remade)
    assert remade["metric"] == "mean AUROC against images from elsewhere, by the score that validation chose"
    assert remade["best"] == entry["best"]


def test_images_of_another_shape_end_with_one_line_before_any_work(programs, digits_run, tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (60, 8, 6)).astype(np.uint8)
    np.savez(tmp_path / "wide.npz", train_images=wide, test_images=wide)
    before = {file: file.stat().st_mtime_ns for file in digits_run.rglob("*") if file.is_file()}
    ended = programs.run(
        "evaluate", f"--workdir={digits_run}", "--num_draws=3", f"--ood=noise,npz:{tmp_path / 'wide.npz'}"
    )
    tiny.assert_one_error(
        ended, "wide.npz has images of 8×6×1 (height × width × channels), the run's own are 8×8×1"
    )
    assert {file: file.stat().st_mtime_ns for file in digits_run.rglob("*") if file.is_file()} == before
