"""A run that asks for rates, as a user starts it."""

import pathlib

import numpy as np
import pytest
import tiny

from hvae_jax import records

pytestmark = pytest.mark.long

# z_2 is asked for more than its beta's bound allows.
TARGETS = (2.0, 200.0)
FLAGS = (
    *tiny.TRAINING,
    "--config.training.num_epochs=120.0",
    "--config.training.log_every_steps=48",
    "--config.training.eval_every_steps=480",
    "--config.training.checkpoint_every_steps=480",
    "--config.objective.beta_bounds=(0.3,10.0)",
)


@pytest.fixture(scope="module")
def finished(programs, tiny_data, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The folder and the output of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "targets"
    ended = programs.run(
        "run",
        "--config=experiments/digits_targets.py",
        f"--config.data.name=npz:{tiny_data}",
        *FLAGS,
        f"--config.objective.targets_nats={TARGETS}".replace(" ", ""),
        f"--workdir={folder}",
        draws=True,
    )
    assert ended.status == 0, ended.err
    return folder, ended.out


def test_evaluation_sets_the_targets_beside_the_rates_of_every_split(finished):
    evaluation = records.read_json(finished[0] / "evaluation.json")
    assert evaluation["targets_nats"] == [2.0, 200.0]
    for split in ("train", "valid", "test"):
        assert len(evaluation[f"{split}_rates_nats"]) == 2
        assert min(evaluation[f"{split}_rates_nats_standard_error"]) > 0
    assert evaluation["test_rates_nats"] == evaluation["test"]["rates_nats"]
    log = records.load(finished[0])
    np.testing.assert_allclose(evaluation["betas"], log["betas"][-1], rtol=1e-6)
    np.testing.assert_allclose(evaluation["train_rates_nats"][0], log["rates_nats"][-1, 0], rtol=0.2)
    assert (finished[0] / "figures" / "targets.png").stat().st_size > 10_000


def test_a_target_out_of_reach_is_reported_and_the_model_is_whole(finished):
    folder, output = finished
    evaluation = records.read_json(folder / "evaluation.json")
    assert evaluation["target_status"][1] == "not_reached_beta_at_lower_bound"
    assert evaluation["betas"][1] == pytest.approx(0.3, rel=0.1)
    line = next(line for line in output.splitlines() if "R_2: asked" in line)
    assert "asked 200.0000" in line
    assert f"{evaluation['train_rates_nats'][1]:.4f} train" in line
    assert "beta at lower bound" in line
    assert np.isfinite(evaluation["test"]["negative_elbo_nats"])


def test_a_model_of_a_grid_over_targets_is_reported_as_its_run_is(programs, finished, tiny_data, tmp_path):
    ended = programs.run(
        "grid",
        "--config=experiments/digits_targets_grid.py",
        f"--config.data.name=npz:{tiny_data}",
        *FLAGS,
        "--config.grid.targets_nats=((2.0,),(200.0,))",
        f"--workdir={tmp_path}",
        "--cpu_devices=1",
        draws=True,
    )
    assert ended.status == 0, ended.err
    evaluation = records.read_json(tmp_path / "models" / "0000" / "evaluation.json")
    wanted = records.read_json(finished[0] / "evaluation.json")
    for name in (name for name in wanted if name not in ("test", "step", "target_status")):
        np.testing.assert_allclose(evaluation[name], wanted[name], rtol=1e-3, err_msg=name)
    assert evaluation["target_status"] == wanted["target_status"]
    assert (tmp_path / "figures" / "target_map.png").stat().st_size > 10_000
