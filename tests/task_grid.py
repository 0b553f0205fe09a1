"""The tiny grid as tasks: that its table and logs are those of one process."""

import pathlib

import numpy as np

from hvae_jax import records


def log_of(folder: pathlib.Path, model: int) -> pathlib.Path:
    """The rate log of a model."""
    return folder / "models" / f"{model:04d}" / "rates.jsonl"


def assert_same(folder: pathlib.Path, wanted: pathlib.Path) -> None:
    """That two grids came to the same table, byte for byte, the same logs and the same figures."""
    assert (folder / "grid.csv").read_bytes() == (wanted / "grid.csv").read_bytes()
    figures = (sorted(file.name for file in (one / "figures").iterdir()) for one in (folder, wanted))
    assert next(figures) == next(figures)
    for model in range(4):
        log, log_wanted = (records.load(log_of(one, model).parent) for one in (folder, wanted))
        for name in ("step", "loss_nats", "rates_nats", "grad_norm"):
            np.testing.assert_array_equal(log[name], log_wanted[name])
