"""A run that asks for rates, as a user starts it."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hvae_jax import records

ROOT = pathlib.Path(__file__).parents[1]


# z_2 is asked for more than its beta's bound allows.
ARGUMENTS = [
    "--config.training.num_epochs=20.0",
    "--config.training.log_every_steps=50",
    "--config.objective.targets_nats=(2.0,200.0)",
    "--config.objective.beta_bounds=(0.3,10.0)",
    "--config.evaluation.num_samples=5",
    "--config.evaluation.num_importance_samples=2",
]


def run(environment: dict[str, str], program: str, arguments: list[str]) -> str:
    """The output of a program that ends well."""
    process = subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The folder and the output of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "targets"
    arguments = ["--config=experiments/digits_targets.py", f"--workdir={folder}", *ARGUMENTS]
    return folder, run(environment, "run", arguments)


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


def test_a_model_of_a_grid_over_targets_is_reported_as_its_run_is(environment, finished, tmp_path):
    arguments = [
        "--config=experiments/digits_targets_grid.py",
        f"--workdir={tmp_path}",
        "--cpu_devices=1",
        "--config.grid.targets_nats=((2.0,),(200.0,))",
        *(argument for argument in ARGUMENTS if "targets_nats" not in argument),
    ]
    run(environment, "grid", arguments)
    evaluation = records.read_json(tmp_path / "models" / "0000" / "evaluation.json")
    wanted = records.read_json(finished[0] / "evaluation.json")
    for name in (name for name in wanted if name not in ("test", "step", "target_status")):
        np.testing.assert_allclose(evaluation[name], wanted[name], rtol=1e-3, err_msg=name)
    assert evaluation["target_status"] == wanted["target_status"]
    assert (tmp_path / "figures" / "target_map.png").stat().st_size > 10_000
