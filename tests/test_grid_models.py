"""Which models a grid has, how many fit at a time, what is left to do, its table and figures."""

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest
from drawn import dots, keep_figures, line
from small_metrics import make_rates

from experiments import (
    cifar_grid,
    digits,
    digits_grid,
    digits_targets,
    digits_targets_grid,
    fashion_grid,
    fashion_targets_grid,
    grid_results,
    svhn_grid,
)
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation.metrics import Reached, RunEvaluation, TargetReport
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.figures import grids as figures
from hvae_jax.figures import targets as target_figures
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import packed
from hvae_jax.grid import run as grid_run
from hvae_jax.grid import size as grid_size
from hvae_jax.grid import table as grid_table


def config_with(**fields):
    config = digits_grid.get_config().to_dict()
    config["grid"].update(fields)
    return config


# The models


def test_a_grid_is_the_product_of_the_betas_and_the_seeds_in_order():
    config, members = grid_members.read_config(config_with(betas=((0.1, 1), (2.0, 3.0, 4.0)), seeds=(7, 8)))
    assert config.shape == (2, 3, 2)
    assert [member.number for member in members] == list(range(12))
    assert [(*m.betas, m.seed) for m in members[:3]] == [(0.1, 2.0, 7), (0.1, 2.0, 8), (0.1, 3.0, 7)]
    assert (*members[11].betas, members[11].seed) == (1.0, 4.0, 8)
    assert {m.order_seed for m in members} == {0}


def test_a_models_config_is_the_single_runs_with_its_betas_and_seed():
    _, members = grid_members.read_config(
        config_with(points=((0.5, 2.0),), betas=(), data_order="per_model", seeds=(3,))
    )
    wanted = digits.get_config().to_dict()
    wanted["objective"]["betas"] = (0.5, 2.0)
    wanted["training"].update(seed=3, order_seed=3, num_epochs=75.0)
    assert [member.config for member in members] == [wanted]


@pytest.mark.parametrize("module", [digits_targets_grid, fashion_targets_grid])
def test_the_grids_of_targets_are_whole(module):
    described, members = grid_members.read_config(module.get_config().to_dict())
    assert len(members) == np.prod(described.shape) == 16


@pytest.mark.parametrize("module", [digits_grid, fashion_grid, svhn_grid, cifar_grid])
def test_every_grid_config_is_whole(module):
    config = module.get_config()
    assert config.is_locked
    described, members = grid_members.read_config(config.to_dict())
    assert len(members) == np.prod(described.shape)
    assert any(member.betas == (1.0, 1.0) for member in members)


def targets_config_with(objective=None, **fields):
    config = digits_targets_grid.get_config().to_dict()
    config["grid"].update(fields)
    config["objective"].update(objective or {})
    return config


def test_a_grid_over_targets_asks_each_model_for_its_own():
    config, members = grid_members.read_config(
        targets_config_with(targets_nats=((1, 2.0), (3.0,)), seeds=(7, 8))
    )
    assert config.shape == (2, 1, 2)
    assert [(*m.targets, m.seed) for m in members] == [(1, 3, 7), (1, 3, 8), (2, 3, 7), (2, 3, 8)]
    wanted = digits_targets.get_config().to_dict()
    wanted["objective"]["targets_nats"] = (2.0, 3.0)
    wanted["training"].update(seed=8)
    assert members[-1].config == wanted


def test_a_grid_over_targets_replaces_targets_in_another_unit_and_knows_single_targets():
    bits = {"targets_nats": (), "targets_bits": (3.0, 4.0)}
    points = {"targets_nats": (), "target_points": ((1.0, 2.0), (3.0, 4.0))}
    _, members = grid_members.read_config(targets_config_with(bits, **points))
    assert [member.objective.resolve_targets(64) for member in members] == [(1.0, 2.0), (3.0, 4.0)]
    total = {"target_shares": (0.25, 0.75)}
    _, members = grid_members.read_config(targets_config_with(total, targets_nats=((4.0, 8.0),)))
    assert [member.objective.resolve_targets(64) for member in members] == [(1.0, 3.0), (2.0, 6.0)]


def test_a_grid_over_targets_of_another_number_of_layers_is_refused():
    with pytest.raises(RunError, match=r"targets_nats=.* is over 1 layers but the model has 2"):
        grid_members.read_config(targets_config_with(targets_nats=((4.0, 8.0),)))


def test_models_of_a_stack_aim_at_their_own_targets(monkeypatch):
    monkeypatch.setattr(experiment.Experiment, "init_params", lambda *_: {"weight": np.zeros(1, np.float32)})
    _, members = grid_members.read_config(targets_config_with(targets_nats=((1.0, 2.0), (3.0,))))
    stack = packed.init_stack(experiment.from_config(members[0].config), members)
    np.testing.assert_array_equal(stack.states.beta_state.memory.targets, [[1.0, 3.0], [2.0, 3.0]])


def test_the_published_grid_is_21_by_21():
    described, _ = grid_members.read_config(cifar_grid.get_config().to_dict())
    assert described.shape == (21, 21, 1)
    np.testing.assert_allclose(described.betas[0], 10.0 ** np.linspace(-1, 1, 21), rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"betas": ()}, "config.grid has no points: give one of config.grid.betas, targets_nats, points"),
        ({"points": ((1.0, 1.0),)}, r"and config.grid.points=\(\(1.0, 1.0\),\): give one of"),
        ({"betas": (), "targets_nats": ((1.0,), (0.0,))}, "tuple of tuples of targets, finite and positive"),
        ({"betas": (), "targets_nats": ((1.0,), (2.0,))}, "needs a control that solves for the betas"),
        (
            {"betas": ((True, 1.0), (1.0,))},
            r"config.grid.betas=\(\(True, 1.0\).* must be a tuple of tuples of betas",
        ),
        ({"betas": (("0.1",), (1.0,))}, "must be a tuple of tuples of betas, finite and not negative"),
        ({"betas": (((1.0,),), (1.0,))}, "must be a tuple of tuples of betas, finite and not negative"),
        ({"betas": ((math.nan,), (1.0,))}, "must be a tuple of tuples of betas, finite and not negative"),
        ({"betas": ((10**400,), (1.0,))}, "must be a tuple of tuples of betas, finite and not negative"),
        ({"betas": ((), (1.0,))}, r"config.grid.betas=\(\(\), \(1.0,\)\) must be a tuple of tuples of betas"),
        ({"betas": "abc"}, "config.grid.betas='abc' must be a tuple of tuples of numbers"),
        ({"betas": [[0.1], [1.0]]}, r"config.grid.betas=\[\[0.1\], \[1.0\]\] must be a tuple of tuples"),
        ({"betas": 5}, "config.grid.betas=5 must be a tuple of tuples of numbers"),
        ({"betas": None}, "config.grid.betas=None must be a tuple of tuples of numbers"),
        (
            {"betas": (), "points": ((1.0, False),)},
            "config.grid.points=.* must be a tuple of tuples of betas",
        ),
        ({"betas": (), "points": ((1.0, 1.0), (1.0,))}, "is over 1 layers but the model has 2"),
        ({"betas": (), "points": (1.0, 1.0)}, "must be a tuple of tuples of betas, finite and not negative"),
        ({"betas": (), "target_points": ((True, 1.0),)}, "must be a tuple of tuples of targets, finite and"),
        ({"seeds": (True,)}, r"config.grid.seeds=\(True,\) must be a tuple of integers"),
        ({"seeds": (0.0,)}, r"config.grid.seeds=\(0.0,\) must be a tuple of integers"),
        ({"seeds": 3}, "config.grid.seeds=3 must be a tuple of integers"),
        ({"seeds": (0, -1)}, r"config.training.seed=-1 must be in \[0, 2\*\*32\)"),
        ({"seeds": (2**32,)}, r"config.training.seed=4294967296 must be in \[0, 2\*\*32\)"),
        ({"chunk_size": True}, "config.grid.chunk_size=True must be an integer"),
        ({"memory_gib": True}, "config.grid.memory_gib=True must be finite"),
        ({"memory_gib": "4"}, "config.grid.memory_gib='4' must be finite"),
        ({"data_order": None}, "config.grid.data_order=None is unknown"),
        ({"betas": (0.1, 1.0)}, r"config.grid.betas=\(0.1, 1.0\) must be a tuple of tuples"),
        ({"betas": ((0.1, -1.0), (1.0,))}, "must be a tuple of tuples of betas, finite and not negative"),
        ({"betas": ((1.0,),)}, r"config.grid.betas=\(\(1.0,\),\) is over 1 layers but the model has 2"),
        ({"betas": (), "points": ((1.0, 1.0, 1.0),)}, "is over 3 layers but the model has 2"),
        ({"betas": ((1.0, 1.0), (1.0,))}, r"\(layer 1\) holds 1.0 more than once"),
        ({"seeds": (0, 0)}, r"config.grid.seeds=\(0, 0\) holds 0 more than once"),
        ({"seeds": ()}, r"config.grid.seeds=\(\) must be a tuple of integers"),
        ({"data_order": "random"}, "config.grid.data_order='random' is unknown"),
        ({"chunk_size": -1}, "config.grid.chunk_size=-1"),
        ({"memory_gib": float("nan")}, "config.grid.memory_gib=nan"),
        ({"beta": 1}, "config.grid.beta is not a field"),
    ],
)
def test_a_grid_field_out_of_range_is_named(fields, message):
    with pytest.raises(RunError, match=message):
        grid_members.read_config(config_with(**fields))


@pytest.mark.parametrize("group", ["grid", "model", "objective", "training"])
@pytest.mark.parametrize("value", [None, 3, "betas", ()])
def test_a_group_that_is_none_is_named(group, value):
    config = config_with()
    config[group] = value
    with pytest.raises(RunError, match=rf"config\.{group}=.* must be a group"):
        grid_members.read_config(config)


def test_a_large_grid_is_described_at_once_and_its_errors_stay_short():
    values = tuple(np.geomspace(0.01, 100.0, 100).tolist())
    described, members = grid_members.read_config(config_with(betas=(values, values), seeds=(0,)))
    assert described.shape == (100, 100, 1)
    assert len({member.identity for member in members}) == 100**2
    points = tuple(itertools.product(values[:100], values[:100]))
    with pytest.raises(RunError, match=r"config\.grid\.points=.* … .* holds .* more than once") as error:
        grid_members.read_config(config_with(betas=(), points=(*points, points[0])))
    assert len(str(error.value)) < 1000


def test_a_chunk_is_not_larger_than_the_grid(built):
    size = grid_size.choose_size(grid_members.read_config(config_with(chunk_size=10**9))[0], *built)
    assert size.chunk_size == len(built[1])


def test_a_config_without_a_grid_is_refused():
    with pytest.raises(RunError, match=r"no group grid; train a single model with experiments\.run"):
        grid_members.read_config(digits.get_config().to_dict())


# Their size


@pytest.fixture(scope="module")
def built():
    """An experiment whose gradient is measured once, and its models."""
    _, members = grid_members.read_config(config_with())
    built = experiment.from_config(members[0].config)
    state = jax.eval_shape(built.init_state)
    working = grid_size._working_bytes(built, state.params)
    assert working > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_size, "_working_bytes", lambda *_: working)
        yield built, members


def test_the_chunk_is_what_memory_holds(built):
    built, members = built
    state = jax.eval_shape(built.init_state)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    roomy = grid_size.choose_size(grid_members.read_config(config_with())[0], built, members)
    assert roomy.chunk_size == grid_size.CPU_MODELS_PER_DEVICE
    assert roomy.model_bytes == grid_size.STATE_COPIES * state_bytes
    memory_gib = (roomy.fixed_bytes + 10.5 * roomy.model_bytes) / grid_size.GIB
    tight = grid_size.choose_size(
        grid_members.read_config(config_with(memory_gib=memory_gib))[0], built, members
    )
    assert 8 <= tight.chunk_size <= 11  # the process itself grows a little between the two
    assert tight.peak_bytes <= tight.budget_bytes
    given = grid_size.choose_size(grid_members.read_config(config_with(chunk_size=100))[0], built, members)
    assert given.chunk_size == 100


def test_too_little_memory_is_said_before_anything_starts(built):
    built, members = built
    for fields in ({"memory_gib": 0.001}, {"memory_gib": 0.001, "chunk_size": 5}):
        with pytest.raises(RunError, match=r"config\.grid\.memory_gib=0\.001 allows 0\.00 GiB"):
            grid_size.choose_size(grid_members.read_config(config_with(**fields))[0], built, members)


# Its tables and figures


def fake_grid(folder, **fields):
    """A finished grid whose numbers are simple functions of the betas; its last model diverged."""
    config = config_with(**fields)
    config["model"]["latent_shapes"] = ((2, 2, 16), (8,), (4,))[: len(fields["betas"])]
    described, members = grid_members.read_config(config)
    records.open_run(folder, config)
    for member in members:
        one = member.folder(folder)
        one.mkdir(parents=True)
        rates = [1.0 / (1.0 + beta) + 0.01 * member.seed for beta in member.betas]
        summary = make_rates(sum(member.betas), rates)
        evaluation = RunEvaluation(step=1, status="ok", valid=summary, test=summary)
        if member is members[-1]:
            evaluation = RunEvaluation(step=0, status="diverged")
        records.write_json(one / records.EVALUATION_FILE, to_plain(evaluation))
    grid_table.write_timing(folder, members[0:3:2], 1.5)
    grid_table.write_timing(folder, members[1:3], 2.5)
    grid_table.write(folder, members, 64)
    return described, members


def test_a_table_loads_as_arrays_over_the_grid(tmp_path):
    first, second = (0.1, 1.0, 10.0), (0.5, 1.0)
    fake_grid(tmp_path, betas=(first, second), seeds=(0, 4))
    table = grid_table.load(tmp_path)
    for name in ("model", "seed", "status", "distortion_nats", "elbo_nats", "bits_per_dim", "wall_s"):
        assert table[name].shape == (3, 2, 2), name
    assert table["betas"].shape == table["rates_nats"].shape == (3, 2, 2, 2)
    for i, beta_1 in enumerate(first):
        for j, beta_2 in enumerate(second):
            assert table["betas"][i, j].tolist() == [[beta_1, beta_2]] * 2
            assert table["distortion_nats"][i, j, 0] == beta_1 + beta_2
            assert table["rates_nats"][i, j, 0].tolist() == [1 / (1 + beta_1), 1 / (1 + beta_2)]
    assert table["seed"][1, 1].tolist() == [0, 4]
    assert table["status"].ravel().tolist() == ["ok"] * 11 + ["diverged"]
    assert np.isnan(table["elbo_nats"]).sum() == np.isnan(table["elbo_nats"][-1, -1, -1]) == 1
    np.testing.assert_allclose(table["wall_s"].ravel()[:4], [1.5, 2.5, 2.5, np.nan])


def test_the_table_has_the_promised_columns(tmp_path):
    fake_grid(tmp_path, betas=((0.5, 1.0), (1.0,)), seeds=(0,))
    lines = (tmp_path / "grid.csv").read_text().splitlines()
    metrics = ("distortion_nats", "rate_1_nats", "rate_2_nats", "elbo_nats", "bits_per_dim")
    assert lines[0].split(",") == [
        *("model", "beta_1", "beta_2", "seed", "status"),
        *(f"valid_{name}" for name in metrics),
        *(f"test_{name}" for name in metrics),
    ]
    assert lines[2] == "1,1.0,1.0,0,diverged" + 10 * ","


def test_loading_what_is_no_grid_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"config\.json does not exist"):
        grid_table.load(tmp_path)
    records.open_run(tmp_path, digits.get_config().to_dict())
    with pytest.raises(RunError, match="holds a single run, not a grid"):
        grid_table.load(tmp_path)
    with pytest.raises(RunError, match="a grid has the splits"):
        grid_table.load(tmp_path, "train")


def test_a_baseline_is_a_finished_grid_of_one_layer(tmp_path):
    records.open_run(tmp_path / "run", digits.get_config().to_dict())
    _, members = fake_grid(tmp_path / "left", betas=((0.5, 1.0),), seeds=(0,))
    (members[0].folder(tmp_path / "left") / "evaluation.json").unlink()
    grid_table.write(tmp_path / "left", members, 64)
    fake_grid(tmp_path / "two", betas=((0.5,), (1.0,)), seeds=(0,))
    fake_grid(tmp_path / "cut", betas=((0.5, 1.0),), seeds=(0,))
    text = (tmp_path / "cut" / "grid.csv").read_text()
    (tmp_path / "cut" / "grid.csv").write_text(text[: len(text) - 9])
    fake_grid(tmp_path / "fine", betas=((0.5, 1.0),), seeds=(0,))
    for name, message in {
        "nowhere": "nowhere/config.json does not exist",
        "run": "holds a single run, not a grid",
        "left": "is not finished: 1 of its 2 models are not in its table",
        "two": "is a grid of 2 layers; give one of a single layer",
        "cut": "grid.csv is damaged; the command that trained the grid writes it anew",
    }.items():
        with pytest.raises(RunError, match=f"^--baseline={tmp_path / name}.*{message}"):
            grid_results.load_baseline(str(tmp_path / name))
    assert grid_results.load_baseline(str(tmp_path / "fine"))["betas"].shape == (2, 1, 1)


@pytest.mark.parametrize("damage", ["cut", "zeroed", "another", "word"])
@pytest.mark.parametrize("name", ["grid.csv", "timing.csv"])
def test_a_damaged_table_is_named(tmp_path, name, damage):
    fake_grid(tmp_path, betas=((0.5, 1.0), (1.0,)), seeds=(0,))
    file = tmp_path / name
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-3],
            "zeroed": bytes(len(content)),
            "another": b"a,b\n1,2\n",
            "word": content[:-1].rsplit(b"\n", 1)[0]
            + b"\n0"
            + b",x" * content.splitlines()[0].count(b",")
            + b"\n",
        }[damage]
    )
    with pytest.raises(RunError, match=f"{file if damage != 'word' else tmp_path}.* is damaged"):
        grid_table.load(tmp_path)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_figures_of_any_number_of_layers(tmp_path, monkeypatch, num_layers):
    values = (0.1, 1.0, 10.0)
    fake_grid(tmp_path, betas=(values,) * num_layers, seeds=(0, 1))
    table, kept = grid_table.load(tmp_path), keep_figures(monkeypatch)
    rates, distortion = table["rates_nats"], table["distortion_nats"]
    # As `fake_grid` makes them: 1 / (1 + β) + seed / 100, and Σβ; the last model diverged.
    even = np.array([[1 / (1 + beta) + 0.005 for beta in values], [num_layers * beta for beta in values]]).T
    even[-1, 0] -= 0.005
    figures.rate_distortion(table, table, "title", tmp_path / "plane.png")
    (axes,) = kept["plane.png"].axes
    for label in ("all betas equal ($\\beta$-VAE)", "one layer, L = 1"):
        np.testing.assert_allclose(line(axes, label), even * [num_layers, 1])
    np.testing.assert_allclose(line(axes, "all betas 1"), even[1:2] * [num_layers, 1])
    clouds = line(axes, "one model each, any betas")
    np.testing.assert_array_equal(clouds, np.column_stack([rates.sum(axis=-1).ravel(), distortion.ravel()]))
    if num_layers == 1:
        return
    figures.rate_space(table, "title", tmp_path / "space.png")
    pairs = list(itertools.combinations(range(num_layers), 2))
    for axes, (low, high) in zip(kept["space.png"].axes, pairs, strict=False):
        wanted = np.stack([rates[..., low], rates[..., high], -table["elbo_nats"]], axis=-1).reshape(-1, 3)
        np.testing.assert_array_equal(dots(axes), wanted)
        np.testing.assert_allclose(line(axes, "all betas equal"), even[:, [0, 0]])
        np.testing.assert_allclose(line(axes, "all betas 1 (the ELBO)"), even[1:2, [0, 0]])
    figures.rate_maps(table, "title", tmp_path / "maps.png")
    maps: list[Any] = [axes.images[0].get_array() for axes in kept["maps.png"].axes if axes.images]
    assert len(maps) == len(pairs) * num_layers
    # Of the first pair of betas: R_1 changes from left to right, R_2 from bottom to top, R_3 not at all.
    of_beta = np.array([1 / (1 + beta) + 0.005 for beta in values])
    nearest = np.broadcast_arrays(of_beta, of_beta[:, None], of_beta[1])
    for found, wanted in zip(maps[:num_layers], nearest, strict=False):
        np.testing.assert_allclose(np.ravel(found)[:-1], np.ravel(wanted)[:-1])  # the last has one seed


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_table_of_targets_has_what_was_asked_for_found_and_reached(tmp_path, monkeypatch, num_layers):
    targets = ((1.0, 2.0),) + ((3.0,),) * (num_layers - 1)
    config = targets_config_with({"betas": (1.0,) * num_layers}, targets_nats=targets, seeds=(0, 4))
    config["model"]["latent_shapes"] = ((2, 2, 16), (8,), (4,))[:num_layers]
    _, members = grid_members.read_config(config)
    records.open_run(tmp_path, config)
    for member in members[:-1]:
        one = member.folder(tmp_path)
        one.mkdir(parents=True)
        summary = make_rates(5.0, [1.1 * target for target in member.targets])
        train = make_rates(5.0, [1.01 * target for target in member.targets])
        report = TargetReport(
            target_status=("reached",) * num_layers,
            betas=(0.5 + member.seed,) * num_layers,
            beta_bounds=((0.1, 10.0),) * num_layers,
            train=Reached(rates_nats=train.rates_nats, distortion_nats=train.distortion_nats),
        )
        evaluation = RunEvaluation(step=1, status="ok", valid=summary, test=summary, targets=report)
        records.write_json(one / records.EVALUATION_FILE, to_plain(evaluation))
    grid_table.write(tmp_path, members, 64)
    assert "target_1_status" in (tmp_path / "grid.csv").read_text()
    table = grid_table.load(tmp_path)
    shape = (2, *(1,) * (num_layers - 1), 2, num_layers)
    for name in ("targets_nats", "betas", "rates_nats", "train_rates_nats"):
        assert table[name].shape == shape, name
    asked = table["targets_nats"]
    assert asked.reshape(-1, num_layers)[-1].tolist() == [2.0] + [3.0] * (num_layers - 1)
    is_there = np.isfinite(table["train_rates_nats"])
    assert is_there.sum() == 3 * num_layers
    np.testing.assert_allclose(table["train_rates_nats"][is_there], 1.01 * asked[is_there])
    assert table["betas"].reshape(-1, num_layers)[1].tolist() == [4.5] * num_layers
    kept = keep_figures(monkeypatch)
    target_figures.target_map(table, "title", tmp_path / "map.png")
    axes = kept["map.png"].axes[0]
    np.testing.assert_array_equal(line(axes, "asked for"), asked.reshape(-1, num_layers)[:, :2])
    reached = table["train_rates_nats"].reshape(-1, num_layers)[:, :2]
    np.testing.assert_array_equal(dots(axes)[:, :2], reached)
    figures.rate_distortion(table, None, "title", tmp_path / "plane.png")
    found = line(kept["plane.png"].axes[0], "one model each, any betas")
    np.testing.assert_allclose(found[:3, 0], 1.1 * asked.sum(axis=-1).ravel()[:3])
    assert found[:3, 1].tolist() == [5.0] * 3


def test_plans_go_on_with_chunks_that_were_begun(tmp_path):
    _, members = fake_grid(tmp_path, betas=((0.1, 1.0, 10.0), (1.0,)), seeds=(0, 1))
    for number in (1, 2, 3, 5):
        (members[number].folder(tmp_path) / "evaluation.json").unlink()
    for name, numbers in (("0000", [0, 4]), ("0002", [2, 3])):
        (tmp_path / "chunks" / name).mkdir(parents=True)
        records.write_json(tmp_path / "chunks" / name / "models.json", numbers)
    (tmp_path / "chunks" / "0003").mkdir()
    before = sorted(tmp_path.rglob("*"))
    chunks = grid_run.plan_chunks(tmp_path, members, 1)
    assert [[member.number for member in chunk] for chunk in chunks] == [[2, 3], [1], [5]]
    assert sorted(tmp_path.rglob("*")) == before, "deciding deletes nothing and writes nothing"
    grid_run.clear_chunks(tmp_path, members)
    assert sorted(entry.name for entry in (tmp_path / "chunks").iterdir()) == ["0002"]
    # A finished grid has none, not even where they were.
    for number in (1, 2, 3, 5):
        records.write_json(
            members[number].folder(tmp_path) / "evaluation.json", {"step": 1, "status": "diverged"}
        )
    grid_run.clear_chunks(tmp_path, members)
    assert not (tmp_path / "chunks").exists()
    grid_run.clear_chunks(tmp_path, members)
