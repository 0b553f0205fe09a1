"""Networks of one's own through the run folder, the targets and the grid: the examples of the manual."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny

from experiments import own_networks
from hvae_jax import Hierarchy, LayerwiseTerms, own, records
from hvae_jax.errors import RunError
from hvae_jax.grid import table
from hvae_jax.keys import make_key

TRAINING = {
    "batch_size": 100,
    "num_epochs": 0.24,  # 12 steps
    "log_every_steps": 4,
    "eval_every_steps": 8,
    "checkpoint_every_steps": 8,
}
FEW = {"training": TRAINING, "evaluation": {"num_samples": 2, "num_importance_samples": 2}}


@pytest.mark.long
def test_vectors_are_trained_towards_target_rates_as_users_start_it(programs: Any, tmp_path: pathlib.Path):
    flags = ("--model=vectors", f"--workdir={tmp_path / 'run'}", "--num_epochs=0.2")
    ended = programs.run("own_networks", *flags, "--targets_nats=4.0,2.0")
    assert ended.status == 0, ended.err
    log = records.load(tmp_path / "run")
    assert log["rates_nats"].shape == log["betas"].shape == (1, 2)
    assert (np.abs(log["betas"] - 1.0) > 1e-6).all()  # the control has moved both
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["targets_nats"] == [4.0, 2.0]
    assert evaluation["test"]["num_images"] == 500
    assert evaluation["step"] == log["step"][-1] == int(0.2 * 5000 / 64)
    ended = programs.run("own_networks", *flags, "--targets_nats=4.0,1.0")
    tiny.assert_one_error(ended, "already holds a run with another config")
    ended = programs.run("own_networks", *flags, "--targets_nats=four")
    tiny.assert_one_error(ended, "--targets_nats=four must be numbers")


@pytest.mark.long
def test_a_module_of_nnx_is_swept_as_a_packed_grid(tmp_path: pathlib.Path):
    grid = {"betas": ((1.0, 30.0), (1.0,)), "seeds": (0,), "data_order": "shared", "chunk_size": 0}
    grid |= {"points": (), "targets_nats": (), "target_points": (), "memory_gib": 0.0}
    config, built = own_networks.make("nnx", {**FEW, "grid": grid})
    own.train_grid(tmp_path, config, built)
    results = table.load(tmp_path)
    assert results["rates_nats"].shape == (2, 1, 1, 2)
    assert (results["status"] == "ok").all()
    assert results["rates_nats"][1, 0, 0, 0] < results["rates_nats"][0, 0, 0, 0]
    assert records.load(tmp_path / "models" / "0001")["betas"][-1].tolist() == [30.0, 1.0]


def test_a_likelihood_of_ones_own_is_what_the_distortion_is_taken_with():
    x = jnp.asarray(np.random.default_rng(0).random((3, 8, 8, 1)), jnp.float32)
    params = jax.eval_shape(own_networks.init_images, make_key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.05 * rng.normal(size=leaf.shape), jnp.float32), params)
    keys = jax.random.split(make_key(2), 3)

    @jax.jit
    def both(params: Any) -> Any:
        def means(model: Any) -> jax.Array:
            hierarchy = Hierarchy(model.networks, own_networks.LaplacePixels(0.15))
            return hierarchy.decode([layer.z for layer in hierarchy.infer(x, keys)])

        apply: Any = own_networks.image_model().apply
        return own_networks.image_terms(params, x, keys), apply(params, method=means)

    terms, decoded = both(params)
    expected = -scipy.stats.laplace.logpdf(np.asarray(x), np.asarray(decoded, np.float64), 0.15)
    np.testing.assert_allclose(terms.distortion, expected.reshape(3, -1).sum(axis=1), rtol=1e-4)
    assert (np.asarray(terms.rates) > 0.0).all()


def test_what_does_not_fit_is_said_before_any_work():
    config, built = own_networks.make("vectors", FEW)
    dataset = built.dataset

    def build(terms_fn: Any = own_networks.vector_terms, **groups: Any) -> Any:
        return own.build({**config, **groups}, dataset, own_networks.init_vectors, terms_fn)

    def flat(params: Any, x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
        return LayerwiseTerms(x[:, 0], x[:, 0])

    with pytest.raises(ValueError, match=r"rates \(2,\); they must be \[B\] and \[B, L\]"):
        build(flat)
    with pytest.raises(RunError, match=r"config\.objective\.betas"):
        build(objective={**config["objective"], "betas": (1.0, 1.0, 1.0)})
    with pytest.raises(RunError, match=r"config\.model is the group of a run from a config"):
        build(model={"channels": 3})
    with pytest.raises(RunError, match=r"config\.training must be a group"):
        build(training=3)
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"float32\[4, 3\].*float32\[4, 2\]"):
        own.make_dataset("x", x, x[:0], x[:, :2])
