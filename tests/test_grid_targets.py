"""Grids that ask for rates or a distortion, in every way that a config can say it: tables and figures."""

import csv
import dataclasses
import math
import pathlib
import shutil
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from small_metrics import make_rates, there

from experiments import digits_targets_grid, grid_results
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import targets
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import Estimate, to_plain
from hvae_jax.figures import grids as figures
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import packed
from hvae_jax.grid import table as grid_table
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training.stacks import Packed

NUM_DIMS = 64
NO_TARGETS = {"targets_nats": (), "targets_bits": (), "targets_bits_per_dim": ()}
# How each grid says its targets, the targets in nats of its first and last models, and their statuses.
START = {"targets_nats": (), "betas": ((0.5, 2.0), (1.0,))}
KINDS = {
    "nats per layer": (
        {},
        {"targets_nats": ((4.0, 8.0), (3.0,))},
        [(4.0, 3.0), (8.0, 3.0)],
    ),
    "a total rate that is split": (
        {"targets_nats": (12.0,), "target_shares": (0.25, 0.75)},
        {"targets_nats": (), "target_points": ((12.0,), (18.0,))},
        [(3.0, 9.0), (4.5, 13.5)],
    ),
    "bits, from several starts": (
        {**NO_TARGETS, "targets_bits": (4.0, 2.0)},
        START,
        [(4.0 * math.log(2.0), 2.0 * math.log(2.0))] * 2,
    ),
    "bits per dimension, from several starts": (
        {**NO_TARGETS, "targets_bits_per_dim": (0.5, 0.25)},
        START,
        [(32.0 * math.log(2.0), 16.0 * math.log(2.0))] * 2,
    ),
    "bits, over points in nats": (
        {**NO_TARGETS, "targets_bits": (4.0, 2.0)},
        {"targets_nats": (), "target_points": ((1.0, 2.0), (3.0, 4.0))},
        [(1.0, 2.0), (3.0, 4.0)],
    ),
    "a free layer": (
        {"target_kinds": ("at_most", "free"), "targets_nats": (5.0, 0.0)},
        START,
        [(5.0, math.nan)] * 2,
    ),
    "a distortion": (
        {"control": "target_distortion"},
        {"targets_nats": ((14.0, 20.0),)},
        [(14.0,), (20.0,)],
    ),
    "a distortion, from several starts": (
        {"control": "target_distortion", "targets_nats": (15.0,)},
        START,
        [(15.0,)] * 2,
    ),
}


def make_config(objective, grid):
    config = digits_targets_grid.get_config().to_dict()
    config["objective"].update(objective)
    config["grid"].update(grid, seeds=(0, 4))
    return config


def fake(folder, objective, grid, num_left=1):
    """A grid whose last models are not there yet; the betas found are 0.1 + number."""
    config = make_config(objective, grid)
    described, members = grid_members.read_config(config)
    records.open_run(folder, config)
    for member in members[: len(members) - num_left]:
        found = [0.1 + member.number] * len(member.betas)
        rates = [4.0 + member.number, 2.0]
        summary = make_rates(15.0, rates)
        train = dataclasses.replace(summary, distortion_nats=Estimate(14.5, 0.1))
        report = targets.report_targets(member.objective, NUM_DIMS, found, train, summary, summary)
        content = to_plain(RunEvaluation(step=1, status="ok", valid=summary, test=summary, targets=report))
        member.folder(folder).mkdir(parents=True)
        records.write_json(member.folder(folder) / records.EVALUATION_FILE, content)
    grid_table.write(folder, members, NUM_DIMS)
    return described, members


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_says_what_every_layer_was_asked_for_in_nats(tmp_path, kind):
    objective, grid, asked = KINDS[kind]
    described, members = fake(tmp_path, objective, grid)
    table = grid_table.load(tmp_path)
    last = len(members) - 1
    assert (table["status"].ravel() == "ok").tolist() == [True] * last + [False]
    is_distortion = "distortion" in kind
    assert ("targets_nats" in table) != is_distortion
    with (tmp_path / "grid.csv").open() as file:
        row = next(csv.DictReader(file))
    if is_distortion:
        assert table["target_distortion_nats"].shape == described.shape
        got = table["target_distortion_nats"].reshape(-1, 1)
        np.testing.assert_array_equal(table["train_distortion_nats"].ravel()[:last], 14.5)
        assert set(table["target_distortion_status"].ravel()[:last]) <= {"reached", "not_reached"}
        assert "target_distortion_nats" in row
        assert "target_1_nats" not in row
    else:
        assert table["targets_nats"].shape == table["target_status"].shape == (*described.shape, 2)
        got = table["targets_nats"].reshape(-1, 2)
        np.testing.assert_allclose(table["train_rates_nats"].reshape(-1, 2)[0], [4.0, 2.0])
        words = table["target_status"].reshape(-1, 2)
        assert (words[:last] != "").all()
        assert (words[last] == "").all()
        assert (words[0, 1] == "free") == ("free" in kind)
        assert [row["target_1_nats"], row["target_2_nats"]] == [
            "" if math.isnan(target) else repr(target) for target in map(float, got[0])
        ]
    np.testing.assert_allclose(got[[0, last - 1]], asked)
    if "bits per dimension" not in kind:  # of the last model, which is not there yet
        np.testing.assert_allclose(got[last], asked[1])
    np.testing.assert_allclose(table["betas"].reshape(-1, 2)[:last, 0], 0.1 + np.arange(last))
    assert np.isnan(table["betas"].reshape(-1, 2)[last]).all()
    assert table["start_betas"].reshape(-1, 2).tolist() == [list(map(float, m.betas)) for m in members]


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_of_every_kind_of_target_show_betas_that_were_found(tmp_path, kind, monkeypatch):
    objective, grid, _ = KINDS[kind]
    described, members = fake(tmp_path, objective, grid, num_left=0)
    built = experiment.from_config(members[0].config, num_devices=1)
    drawn = []
    monkeypatch.setattr(
        figures, "rate_distortion", lambda table, *rest: drawn.append(figures._even(table)["betas"])
    )
    grid_results.draw(grid_table.load(tmp_path), built, described, None, tmp_path)
    # Means over the two seeds: 0.1 and 1.1, 2.1 and 3.1. None is 1, where all started.
    np.testing.assert_allclose(drawn[0], [[0.6, 0.6], [2.6, 2.6]])
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    has_map = "distortion" not in kind and "free" not in kind
    assert names == ({"target_map.png"} if has_map else set())


def test_tables_of_0_1_0_are_read(tmp_path):
    results = pathlib.Path(__file__).parents[1] / "experiments" / "results"
    config = digits_targets_grid.get_config().to_dict()
    records.open_run(tmp_path, config)
    shutil.copy(results / "digits_targets_grid.csv", tmp_path / "grid.csv")
    table = grid_table.load(tmp_path)
    assert table["targets_nats"].shape == (4, 4, 1, 2)
    assert table["targets_nats"][1, 2, 0].tolist() == [10.0, 15.0]
    np.testing.assert_allclose(table["train_rates_nats"], table["targets_nats"], rtol=0.01)
    assert table["betas"][0, 0, 0].tolist() == [0.6924957633018494, 0.5929657816886902]
    assert (table["start_betas"] == 1.0).all()
    assert (table["target_status"] == "reached").all()


def test_betas_that_a_grid_starts_from_must_lie_within_the_bounds():
    with pytest.raises(RunError, match=r"beta_1=0\.5, where the control starts, must lie in .*beta_bounds"):
        grid_members.read_config(make_config({"targets_nats": (5.0, 5.0), "beta_bounds": (1.0, 9.0)}, START))


def test_models_of_a_stack_aim_at_and_are_evaluated_by_their_own_shares_of_a_total_rate(monkeypatch):
    _, members = grid_members.read_config(make_config(*KINDS["a total rate that is split"][:2]))
    monkeypatch.setattr(experiment.Experiment, "init_params", lambda *_: {"weight": np.zeros(1, np.float32)})
    built, members = experiment.from_config(members[0].config, num_devices=1), members[::2]
    stack = packed.init_stack(built, members)
    asked = [[3.0, 9.0], [4.5, 13.5]]
    np.testing.assert_array_equal(stack.states.beta_state.memory.targets, asked)
    # Every image of a model has the same terms; the first model has what it was asked for.
    terms = LayerwiseTerms(*map(jnp.asarray, (np.full((2, 5), 15.0), np.full((2, 5, 2), [3.0, 9.0]))))
    evaluator = types.SimpleNamespace(map_images=lambda *_: terms)
    monkeypatch.setattr(packed, "_make_evaluators", lambda _, __, splits: dict.fromkeys(splits, evaluator))
    monkeypatch.setattr(packed, "make_fresh_terms", lambda *_: lambda *_: {"train": terms, "valid": terms})
    trainer: Any = types.SimpleNamespace(layout=Packed(2))
    found = packed.make_evaluate(built, trainer)(stack, members)
    reports = [there(evaluation.targets) for evaluation in found]
    assert [list(there(report.targets_nats)) for report in reports] == asked
    assert [report.betas for report in reports] == [member.betas for member in members]
    assert reports[0].target_status == ("reached", "reached")
    assert "reached" not in reports[1].target_status
    assert [report.train.rates_nats.value for report in reports] == [(3.0, 9.0)] * 2
