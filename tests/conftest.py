"""What all tests share: JAX's strictness, and a maker of small model configs."""

import os
from collections.abc import Callable

import jax
import pytest

from hvae_jax.models.hvae import ModelConfig


@pytest.fixture(scope="session", autouse=True)
def strict_jax(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Silent broadcasting between ranks is an error; matrix products are float32 on every device.

    Session-wide, so that it is in force before any module-scoped fixture runs.
    """
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    # What one test compiled, another need not.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the programs that tests start: one compile cache for all, and quick compiles."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled_programs"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # most of these tests' time is compilation
    }


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    """A function from changed fields to a small config: two layers, a 4×4 map and a vector."""

    def make(**changes: object) -> ModelConfig:
        fields = {
            "inference": "generalized_top_down",
            "latent_shapes": ((4, 4, 2), (3,)),
            "channels": 4,
            "num_stages": 2,
            "likelihood": "gaussian_fixed_std",
            "likelihood_std": 0.5,
            "num_mixture_components": 2,
            "compute_dtype": "float32",
            "remat": False,
        }
        unknown = changes.keys() - fields.keys()
        assert not unknown, f"no such fields of ModelConfig: {unknown}"
        return ModelConfig(**{**fields, **changes})

    return make
