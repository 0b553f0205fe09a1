"""What all tests share: their order, JAX's strictness, a compile cache, a maker of small model configs."""

import contextlib
import os
import pathlib
import signal
from collections.abc import Callable, Iterator

import jax
import programs as started
import pytest
import tiny

from hvae_jax.models.config import DEEP, ModelConfig

# A shell that runs the tests in the background has Ctrl-C ignored; so had all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Read when the first program is compiled.
os.environ["XLA_FLAGS"] = " ".join(filter(None, (started.QUICK, os.environ.get("XLA_FLAGS"))))

# Files that are begun first, those that take longest: the short ones fill what time is left.
BEGUN_FIRST = (
    "slurm",
    "processes",
    "evaluate",
    "grid_tasks",
    "notebook",
    "run",
    "streaming_run",
    "grid",
    "targets_run",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: programs that tests start often wait for each other."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of `BEGUN_FIRST` before the others, each in its own order."""
    places = {f"test_{name}.py": place for place, name in enumerate(BEGUN_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(BEGUN_FIRST)))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of this run of the tests, the same for all of its workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def strict_jax(shared_folder: pathlib.Path) -> None:
    """Silent broadcasting between ranks is an error.

    Session-wide, so that it is in force before any module-scoped fixture runs.
    """
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # What one test compiled, another need not.
    jax.config.update("jax_compilation_cache_dir", str(shared_folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no program says which line said what


@pytest.fixture(scope="session")
def environment(shared_folder: pathlib.Path) -> dict[str, str]:
    """Of the programs that tests start: one compile cache for all, and quick compiles."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(shared_folder / "compiled"),
        "JAX_PLATFORMS": "cpu",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        "XLA_FLAGS": started.XLA_FLAGS,
    }


@pytest.fixture(scope="session")
def programs(environment: dict[str, str]) -> Iterator[started.Server]:
    """Starts programs; those that are still there at the end are ended."""
    with contextlib.closing(started.Server(environment)) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_data(shared_folder: pathlib.Path) -> pathlib.Path:
    """The file of images that tiny runs learn from."""

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        tiny.write_data(folder)

    return tiny.make_once(shared_folder, "tiny_data", make) / "tiny.npz"


@pytest.fixture(scope="session")
def finished_run(
    environment: dict[str, str], shared_folder: pathlib.Path, tiny_data: pathlib.Path
) -> pathlib.Path:
    """The folder of a tiny run that went through; not to be changed."""

    def make(folder: pathlib.Path) -> None:
        ended = tiny.start_anew(environment, "run", *tiny.run_flags(tiny_data, folder))
        assert ended.returncode == 0, ended.stderr

    return tiny.make_once(shared_folder, "finished_run", make)


@pytest.fixture(scope="session")
def finished_grid(
    environment: dict[str, str], shared_folder: pathlib.Path, tiny_data: pathlib.Path
) -> pathlib.Path:
    """The folder of a tiny grid that went through in two chunks; not to be changed."""

    def make(folder: pathlib.Path) -> None:
        flags = (*tiny.grid_flags(tiny_data, folder), "--config.grid.chunk_size=2")
        ended = tiny.start_anew(environment, "grid", *flags)
        assert ended.returncode == 0, ended.stderr

    return tiny.make_once(shared_folder, "finished_grid", make)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    """A function from changed fields to a small config: two layers, a 4×4 map and a vector (or 1×1 map)."""

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
            "blocks_by_side": (),
            "latent_kinds": (),
            "gumbel_hard": False,
            "gumbel_schedule": (0.007, 0.4),
            "top_prior": "standard",
            "num_prior_components": 3,
            "conditioning": "none",
        }
        if changes.get("inference") == DEEP:
            fields |= {"latent_shapes": ((4, 4, 2), (1, 1, 3)), "blocks_by_side": ((4, 2), (1, 1))}
        unknown = changes.keys() - fields.keys()
        assert not unknown, f"no such fields of ModelConfig: {unknown}"
        return ModelConfig(**{**fields, **changes})

    return make
