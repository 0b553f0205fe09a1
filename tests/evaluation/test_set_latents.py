"""Which latents are drawn, kept and at their means in the picture of what each layer decides."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hvae_jax import Gaussian, GaussianPixels, Hierarchy
from hvae_jax.evaluation import set_latents
from hvae_jax.models.config import DEEP


class Sums:
    """z_l ~ N(10 + the sum of those above, 1) for three layers; the outputs are all three latents."""

    num_layers = 3

    def start(self, batch_size: int) -> jax.Array:
        return jnp.zeros((batch_size, 0))

    def prior(self, layer: int, state: jax.Array) -> tuple[Gaussian, jax.Array]:
        mean = 10.0 + state.sum(axis=1, keepdims=True)
        return Gaussian(mean, jnp.ones_like(mean)), state

    def below(self, layer: int, state: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.concatenate([z, state], axis=1)

    def outputs(self, state: jax.Array) -> jax.Array:
        return state

    def apply(self, params: Any, *arguments: Any, method: str) -> Any:
        networks: Any = self
        return getattr(Hierarchy(networks, GaussianPixels(1.0)), method)(*arguments)


def test_a_row_draws_its_own_latents_keeps_those_above_and_has_means_below():
    model: Any = Sums()
    rows = [(1, 1), (2, 2), (3, 3)]
    found = set_latents.sample_rows(model, (), jax.random.key(0), rows, num_bases=2, num_draws=4)
    assert found.shape == (3, 2, 4, 3)
    base = found[0, :, :1]  # of the lowest row, the first image is the whole base sample
    for lowest, z in enumerate(found, start=1):
        for layer in (1, 2, 3):
            own, above = z[..., layer - 1], z[..., layer:].sum(axis=-1)
            if layer > lowest:
                np.testing.assert_array_equal(own, np.broadcast_to(base[..., layer - 1], own.shape))
            elif layer < lowest:
                np.testing.assert_allclose(own, 10.0 + above, rtol=1e-6)
            else:
                assert len(np.unique(own)) == 8
                np.testing.assert_array_equal(own[:, 0], base[:, 0, layer - 1])  # what the rows below keep


def test_layers_of_a_row(make_config: Any):
    few = make_config(latent_shapes=((4, 4, 2), (2, 2, 2), (3,)))
    assert set_latents.pick_rows(few) == [(1, 1), (2, 2), (3, 3)]
    many = make_config(latent_shapes=((3,),) * 12)
    assert set_latents.pick_rows(many, 4) == [(1, 3), (4, 6), (7, 9), (10, 12)]
    sides = ((8, 8, 2),) * 7 + ((1, 1, 2),) * 2
    deep = make_config(inference=DEEP, latent_shapes=sides, blocks_by_side=((8, 1), (1, 1)))
    assert set_latents.pick_rows(deep) == [(1, 7), (8, 9)]


def test_the_program_draws_a_model_of_a_grid(
    programs: Any, finished_grid: pathlib.Path, tmp_path: pathlib.Path
):
    run = tmp_path / "run"
    shutil.copytree(finished_grid / "models" / "0002", run)
    ended = programs.run("set_latents", f"--workdir={run}", "--num_draws=2", draws=True)
    assert ended.status == 0, ended.err
    for suffix in (".png", ".pdf"):
        assert (run / "figures" / f"set_latents{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("what", ["grid", "nothing"])
def test_another_folder_is_one_line(
    programs: Any, finished_grid: pathlib.Path, tmp_path: pathlib.Path, what: str
):
    folder, message = (
        (finished_grid, "is a grid; name one of its models") if what == "grid" else (tmp_path, "a run")
    )
    tiny.assert_one_error(programs.run("set_latents", f"--workdir={folder}"), message)
