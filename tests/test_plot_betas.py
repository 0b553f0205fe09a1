"""What experiments.plot_betas gathers from run folders, and what it draws of several seeds."""

import json
import pathlib
from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from experiments import plot_betas
from hvae_jax.errors import RunError
from hvae_jax.figures import runs as figures


def make_run(
    folder: pathlib.Path, betas: list[float], rates: list[float], seed: int = 3, **groups: dict[str, Any]
) -> str:
    folder.mkdir()
    objective = {"betas": betas, **groups.pop("objective", {})}
    config = {"data": {"name": "digits"}, **groups, "objective": objective, "training": {"seed": seed}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evaluation.json").write_text(json.dumps({"test": {"rates_nats": rates}}))
    return str(folder)


def test_rows_hold_each_choice_of_betas_and_seed_once_in_order(tmp_path):
    runs = [
        make_run(tmp_path / name, betas, rates, seed)
        for name, betas, rates, seed in (
            ("a", [1.0, 1.0], [4.0, 2.0], 3),
            ("b", [3.0, 1.0], [0.5, 3.0], 3),
            ("c", [1.0, 1.0], [4.0, 2.0], 3),
            ("d", [1.0, 0.3], [1.0, 9.0], 3),
            ("e", [3.0, 1.0], [0.7, 4.0], 1),
        )
    ]
    rows = plot_betas.read_rows(runs)
    assert [(row.betas, row.seed) for row in rows] == [
        ([1.0, 0.3], 3),
        ([1.0, 1.0], 3),
        ([3.0, 1.0], 1),
        ([3.0, 1.0], 3),
    ]
    assert rows[3] == plot_betas.Row([3.0, 1.0], 3, {"rates_nats": [0.5, 3.0]})
    panels = plot_betas.make_panels(rows)
    assert {layer: list(points) for layer, points in panels.items()} == {1: [1.0, 3.0], 2: [0.3, 1.0]}
    np.testing.assert_array_equal(panels[1][3.0], [[0.7, 4.0], [0.5, 3.0]])
    np.testing.assert_array_equal(panels[2][1.0], [[4.0, 2.0]])


def test_what_changes_no_training_may_differ(tmp_path):
    runs = [
        make_run(
            tmp_path / str(beta), [beta, 1.0], [1.0, 1.0], data={"streaming": streaming, "check_values": True}
        )
        for beta, streaming in ((1.0, "never"), (3.0, "always"))
    ]
    assert len(plot_betas.read_rows(runs)) == 2
    other = make_run(
        tmp_path / "other", [2.0, 1.0], [1.0, 1.0], data={"streaming": "auto", "binarize": "none"}
    )
    with pytest.raises(RunError, match=r"config\.data\.binarize"):
        plot_betas.read_rows(
            [make_run(tmp_path / "x", [1.0, 1.0], [1.0, 1.0], data={"binarize": "round"}), other]
        )


def test_the_line_is_the_mean_over_seeds_and_each_seed_a_dot(tmp_path, monkeypatch):
    drawn = []

    def keep(figure: matplotlib.figure.Figure, file: str, **_: object) -> None:
        drawn.append(figure)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    points = {1.0: np.array([[4.0, 2.0]]), 3.0: np.array([[1.0, 3.0], [2.0, 5.0]])}
    figures.rates_against_beta({1: points}, tmp_path / "figure.png")
    lines = [(line.get_xdata(), line.get_ydata()) for line in drawn[0].axes[0].lines]
    for number, (of_one, means, dots) in enumerate(((4.0, 1.5, [1, 2]), (2.0, 4.0, [3, 5]))):
        line, seeds = lines[2 * number : 2 * number + 2]
        np.testing.assert_array_equal(line, [[1.0, 3.0], [of_one, means]])
        np.testing.assert_array_equal(seeds, [[3.0, 3.0], dots])
    assert len(lines) == 4  # one seed has no dot beside its mean


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([3.0, 3.0], {}, "at most one may differ from 1"),
        ([1.0, 1.0], {}, "a beta that is not 1"),
        ([0.0, 1.0], {}, "logarithmic"),
        ([3.0, 1.0], {"betas": [3.0], "rates": [1.0]}, "differ in config.objective.betas"),
        ([3.0, 1.0], {"data": {"name": "fashion"}}, "differ in config.data.name"),
        ([3.0, 1.0], {"objective": {"control": "pi"}}, "solves for its betas"),
        ([3.0, 1.0], {"rates": [1.0, 1.0, 1.0]}, "3 test rates, but the run has 2 layers"),
        ([3.0, 1.0], {"rates": "many"}, "no rates of the test split"),
    ],
)
def test_runs_that_cannot_be_drawn_together(tmp_path, one, other, message):
    runs = [make_run(tmp_path / "one", one, [1.0, 1.0])]
    if other:
        fields = {"betas": [1.0, 1.0], "rates": [1.0, 1.0], **other}
        runs.append(make_run(tmp_path / "other", **fields))
    with pytest.raises(RunError, match=message):
        plot_betas.make_panels(plot_betas.read_rows(runs))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluation.json", None, "evaluation.json does not exist: the run is not finished"),
        ("evaluation.json", [1], "no rates of the test split"),
        ("evaluation.json", {"valid": {}}, "no rates of the test split"),
        ("config.json", None, "config.json does not exist"),
        ("config.json", [1], "is not the config of a run"),
        ("config.json", {"objective": {"betas": [1.0]}}, "is not the config of a run"),
    ],
)
def test_folders_that_are_no_finished_run(tmp_path, file, content, message):
    run = pathlib.Path(make_run(tmp_path / "run", [3.0, 1.0], [1.0, 1.0]))
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(json.dumps(content))
    with pytest.raises(RunError, match=message):
        plot_betas.read_rows([str(run)])
