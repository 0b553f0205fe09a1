"""What experiments.plot_betas gathers from run folders, as a user starts it."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def make_run(folder: pathlib.Path, betas: list[float], rates: list[float]) -> str:
    folder.mkdir()
    config = {"objective": {"betas": betas}, "training": {"seed": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evaluation.json").write_text(json.dumps({"test": {"rates_nats": rates}}))
    return str(folder)


def plot(folder: pathlib.Path, *runs: str) -> subprocess.CompletedProcess[str]:
    outputs = f"--out={folder / 'figure.png'}", f"--results={folder / 'results.json'}"
    command = [sys.executable, "-m", "experiments.plot_betas", *outputs, *runs]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_results_hold_each_choice_of_betas_once_in_order(tmp_path):
    runs = [
        make_run(tmp_path / name, betas, rates)
        for name, betas, rates in (
            ("a", [1.0, 1.0], [4.0, 2.0]),
            ("b", [3.0, 1.0], [0.5, 3.0]),
            ("c", [1.0, 1.0], [4.0, 2.0]),
            ("d", [1.0, 0.3], [1.0, 9.0]),
        )
    ]
    process = plot(tmp_path, *runs)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["betas"] for row in rows] == [[1.0, 0.3], [1.0, 1.0], [3.0, 1.0]]
    assert rows[2] == {"betas": [3.0, 1.0], "seed": 3, "test": {"rates_nats": [0.5, 3.0]}}
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("betas", "message"),
    [([3.0, 3.0], "at most one may differ from 1"), ([1.0, 1.0], "a beta that is not 1")],
)
def test_runs_that_cannot_be_drawn_are_refused_in_one_line(tmp_path, betas, message):
    process = plot(tmp_path, make_run(tmp_path / "run", betas, [1.0, 1.0]))
    assert process.returncode == 1
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
