"""A run that asks for rates, as a user starts it."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hvae_jax import records

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The folder and the output of a short run; z_2 is asked for more than its beta's bound allows."""
    folder = tmp_path_factory.mktemp("runs") / "targets"
    arguments = [
        "--config=experiments/digits_targets.py",
        f"--workdir={folder}",
        "--config.training.num_epochs=20.0",
        "--config.training.log_every_steps=50",
        "--config.objective.targets_nats=(2.0,200.0)",
        "--config.objective.beta_bounds=(0.3,10.0)",
        "--config.evaluation.num_importance_samples=2",
    ]
    quick = "--xla_backend_optimization_level=0"  # most of this test's time is compilation
    process = subprocess.run(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


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
