"""Groups of layers: betas that they share, rates that are summed, and rates that are free."""

import dataclasses

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from experiments import digits_deep, digits_deep_grid, grid_results
from hvae_jax import betas, controls, experiment, records, training
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates, targets
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import from_plain, to_plain
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.figures import grids as grid_figures
from hvae_jax.figures import style
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import table as grid_table
from hvae_jax.groups import Groups, runs
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.objective_config import ObjectiveConfig

SIDES = ((1, 2), (3, 4), (5, 6))  # of digits_deep
SHAPES = digits_deep.get_config().to_dict()["model"]["latent_shapes"]
TWO = Groups(((1, 2), (3, 3)))


def objective(**fields) -> ObjectiveConfig:
    return ObjectiveConfig(**{**digits_deep.get_config().to_dict()["objective"], **fields})


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_sums_and_shares_are_those_of_a_matrix(array):
    belongs = np.array([[1, 1, 0], [0, 0, 1]])
    of_layers, of_groups = np.arange(12.0).reshape(4, 3), np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(TWO.sum(array(of_layers)), of_layers @ belongs.T)
    np.testing.assert_array_equal(TWO.expand(array(of_groups)), of_groups @ belongs)
    np.testing.assert_array_equal(TWO.collapse(TWO.expand(array(of_groups))), of_groups)
    alone, values = Groups.of_layers(3), array(of_layers)
    assert alone.sum(values) is alone.expand(values) is alone.collapse(values) is values


@pytest.mark.parametrize("ranges", [(), ((2, 3),), ((1, 2), (4, 5)), ((1, 2), (2, 3)), ((2, 1),)])
def test_ranges_with_a_gap_are_refused(ranges):
    with pytest.raises(ValueError, match="without a gap"):
        Groups(ranges)
    if ranges:
        with pytest.raises(RunError, match=r"config\.objective\.beta_groups=.* must be ''"):
            objective(beta_groups=ranges)


def test_groups_have_names_that_say_which_layers_they_are():
    assert Groups(SIDES).names(SIDES, SHAPES) == ("8x8", "4x4", "1x1")
    assert Groups(((1, 3), (4, 4), (5, 6))).names(SIDES, SHAPES) == ("z_1-z_3", "z_4", "1x1")
    other_channels = ((8, 8, 4), (8, 8, 2), (8,))
    assert TWO.names(((1, 1), (2, 2), (3, 3)), other_channels) == ("z_1-z_2", "z_3")
    assert runs((2.0, 1.0, 1.0)) == [(2.0, 1, 1), (1.0, 2, 3)]
    assert style.group_label("z_1-z_12") == "$z_{1}$ … $z_{12}$"
    assert style.describe_betas(tuple(range(9))) == "betas from 0 to 8"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta_groups": "layers"}, r"beta_groups='layers' must be ''"),
        ({"beta_groups": ((1, 4), (5, 7))}, r"ends at layer 7 but the model has 6 layers .* end at 6"),
        ({"beta_groups": "sides"}, r"betas=\(1.0, .*\) has 6 entries but .*beta_groups='sides' has 3 groups"),
        (
            {"beta_groups": "sides", "betas": (1.0,) * 3, "control": "target_rates", "targets_nats": (1.0,)},
            r"targets_nats=\(1.0,\) has 1 entries but .* 3 groups; give one target per group, z_1's first or",
        ),
        (
            {"free_nats": (0.1, 0.2)},
            r"free_nats=\(0.1, 0.2\) has 2 entries but the model has 6 .* or one for",
        ),
        ({"free_nats": (-0.1,)}, r"free_nats=\(-0.1,\) must be a tuple of numbers"),
        (
            {"free_nats": (0.1,), "control": "target_rates", "targets_nats": (1.0,) * 6},
            r"free_nats=\(0.1,\) cannot be with control='target_rates'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fields, message):
    with pytest.raises(RunError, match=message):
        objective(**fields).check_layers(6, SIDES)


def test_sides_are_layers_where_a_model_has_no_maps_of_several_layers():
    assert objective(beta_groups="sides").groups(2, ((1, 1), (2, 2))).are_layers


def test_a_control_of_groups_is_that_of_the_summed_rates():
    """Every control sees groups as it would see as many layers, warm-up included."""
    for control in (
        controls.target_rates((5.0, 2.0), (0.1, 0.1), (9.0, 9.0)),
        controls.pi_rates((5.0, 2.0), (0.1, 0.1), (9.0, 9.0)),
        controls.target_distortion(80.0, (0.1, 0.1), (9.0, 9.0)),
        betas.linear_warmup(2, controls.target_rates((5.0, 2.0), (0.1, 0.1), (9.0, 9.0))),
    ):
        shared = betas.share_betas(TWO, control)
        state, wanted = shared.init(jnp.array([2.0, 0.5])), control.init(jnp.array([2.0, 0.5]))
        for number in range(4):
            of_layers = jnp.array([2.0 + number, 1.0, 3.0])
            state = shared.update(state, jnp.array(90.0), of_layers)
            wanted = control.update(wanted, jnp.array(90.0), jnp.array([3.0 + number, 3.0]))
        jax.tree.map(np.testing.assert_array_equal, state.memory, wanted)
        np.testing.assert_array_equal(state.betas, wanted.betas[jnp.array([0, 0, 1])])
        assert int(state.step) == 4
    assert betas.share_betas(Groups.of_layers(2), control) is control


def test_the_objective_of_a_config_has_groups_targets_and_free_nats():
    config = digits_deep.get_config().unlock()
    config.update({"objective": {"beta_groups": "sides", "betas": (1.0, 2.0, 3.0), "free_nats": (0.5,)}})
    built = experiment.from_config(config.to_dict(), num_devices=1)
    assert built.named_groups == (Groups(SIDES), ("8x8", "4x4", "1x1"))
    state = built.make_control().init(jnp.asarray(built.objective.betas))
    assert state.betas.tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert state.memory.memory.free.tolist() == [0.5] * 3
    ungrouped = experiment.from_config(digits_deep.get_config().to_dict(), num_devices=1)
    assert ungrouped.beta_groups.are_layers
    assert ungrouped.named_groups == built.named_groups


def step_of(control, micro_batch=0):
    config = dataclasses.replace(linear_gaussian.training_config(), micro_batch=micro_batch)
    return training.make_train_step(linear_gaussian.terms_fn, identity, control, config), config


def test_free_nats_stop_the_gradient_of_what_was_below_them_in_the_step_before():
    """Steps are those with betas of 0 where the preceding batch's mean rate was below; rates stay raw."""
    images = jnp.asarray(linear_gaussian.data(32))
    control = betas.free_rates((0.5, 1e3))
    step_fn, config = step_of(control)
    state = training.init_state(linear_gaussian.init_params(), (1.0, 2.0), control, config)
    wanted_fn, _ = step_of(betas.constant())
    states = {}
    for gated in ((1.0, 2.0), (1.0, 0.0), (0.0, 0.0)):
        states[gated] = training.init_state(linear_gaussian.init_params(), gated, betas.constant(), config)
    step_fn, wanted_fn = jax.jit(step_fn), jax.jit(wanted_fn)
    seen = set()
    for _ in range(3):
        in_force = tuple(state.beta_state.betas.tolist())
        seen.add(in_force)
        plain = states[in_force]._replace(step=state.step, params=state.params, opt_state=state.opt_state)
        wanted, metrics = wanted_fn(plain, images)
        state, found = step_fn(state, images)
        for a, b in zip(
            *map(jax.tree.leaves, ((state.params, found), (wanted.params, metrics))), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        above = np.asarray(found.rates) > np.array([0.5, 1e3])
        np.testing.assert_array_equal(state.beta_state.betas, np.where(above, [1.0, 2.0], 0.0))
    assert len(seen) == 2


def test_free_nats_do_not_depend_on_micro_batches():
    images, control, ends = jnp.asarray(linear_gaussian.data(32)), betas.free_rates((0.3, 0.3)), []
    for micro_batch in (32, 8):
        step_fn, config = step_of(control, micro_batch)
        state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
        step_fn, gates = jax.jit(step_fn), []
        for _ in range(30):
            state, _ = step_fn(state, images)
            gates.append(state.beta_state.betas)
        ends.append((state.params, jnp.stack(gates)))
    assert 0.0 < float(ends[0][1].mean()) < 1.0  # some are free, some are not
    np.testing.assert_array_equal(ends[0][1], ends[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ends[0], ends[1])


def test_a_summary_and_a_report_of_targets_are_of_the_groups():
    generator = np.random.default_rng(0)
    terms = LayerwiseTerms(
        jnp.asarray(generator.normal(size=50)), jnp.asarray(generator.normal(3.0, 1.0, (50, 6)))
    )
    grouped = NamedGroups(Groups(SIDES), ("8x8", "4x4", "1x1"))
    summary = rates.summarize(terms, 64, grouped)
    assert summary.groups is not None
    for group, (low, high) in zip(summary.groups, SIDES, strict=True):
        sums = np.asarray(terms.rates)[:, low - 1 : high].sum(axis=1)
        assert group.rate_nats == pytest.approx((sums.mean(), sums.std(ddof=1) / np.sqrt(50)))
        assert np.asarray(group.rate_bits) * np.log(2) == pytest.approx(np.asarray(group.rate_nats))
    asked = (6.0, summary.groups[1].rate_nats.value, 9.0)
    config = objective(beta_groups="sides", betas=(1.0,) * 3, control="target_rates", targets_nats=asked)
    report = targets.report_targets(config, 64, (1.0, 2.0, 1e-3), summary, test=summary)
    assert report.target_status[1:] == ("reached", "not_reached_beta_at_lower_bound")
    assert f"R of 4x4: asked {asked[1]:.4f}" in targets.describe_targets(report)
    evaluation = RunEvaluation(step=1, test=summary, targets=report)
    assert from_plain(RunEvaluation, to_plain(evaluation), "it") == evaluation
    assert rates.summarize(terms, 64, NamedGroups(Groups.of_layers(6), ())).groups is None


def test_a_grid_over_groups_has_betas_of_groups_and_rates_of_both(tmp_path, monkeypatch):
    """Its table, and maps whose axes name the groups; evaluations are written by hand."""
    config = digits_deep_grid.get_config().to_dict()
    grid, members = grid_members.read_config(config)
    assert len(members) == 9
    records.open_run(tmp_path, config)
    grouped = NamedGroups(members[0].groups, members[0].groups.names(SIDES, SHAPES))
    for member in members:
        of_layers = jnp.asarray([np.repeat(1.0 / np.asarray(member.betas), 2)] * 3)
        summary = rates.summarize(LayerwiseTerms(jnp.full(3, 15.0), of_layers), 64, grouped)
        member.folder(tmp_path).mkdir(parents=True)
        evaluation = RunEvaluation(step=1, status="ok", valid=summary, test=summary)
        records.write_json(member.folder(tmp_path) / records.EVALUATION_FILE, to_plain(evaluation))
    grid_table.write(tmp_path, members, 64)
    table = grid_table.load(tmp_path)
    assert table["betas"].shape == table["group_rates_nats"].shape == (3, 3, 1, 1, 3)
    assert table["rates_nats"].shape == (3, 3, 1, 1, 6)
    np.testing.assert_allclose(table["group_rates_nats"], 2.0 / table["betas"], rtol=1e-6)
    drawn = []
    monkeypatch.setattr(
        grid_figures, "new_figure", lambda *size: drawn.append(style.new_figure(*size)) or drawn[-1]
    )
    built = experiment.from_config(members[0].config, num_devices=1)
    grid_results.draw(table, built, grid, None, tmp_path)
    panels = drawn[-1].axes[:3]
    assert [axes.get_title() for axes in panels] == [f"rate of {n} layers" for n in ("8×8", "4×4", "1×1")]
    assert {axes.get_xlabel() for axes in panels} == {"$\\beta$ of 8×8 layers"}
    assert {axes.get_ylabel() for axes in panels} == {"$\\beta$ of 4×4 layers"}
    with pytest.raises(
        RunError, match=r"is over 2 groups but config\.objective\.beta_groups makes 3; give betas"
    ):
        grid_members.read_config({**config, "grid": {**config["grid"], "betas": ((1.0,), (1.0,))}})
