"""What figures draw: their artists' data, without the pixels, whose making takes most of a figure's time."""

import os
import pathlib
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def keep_figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """From here on, figures that are saved are not: they are kept here, under the names of their files."""
    kept: dict[str, Figure] = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, file, **_: kept.update({pathlib.Path(os.fspath(file)).name: figure})
    )
    return kept


def line(axes: Axes, label: str) -> np.ndarray:
    """`[n, 2]` points of the line with that label."""
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return np.column_stack([np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)])


def dots(axes: Axes) -> np.ndarray:
    """`[n, 3]` places and values of the only scatter."""
    (found,) = axes.collections
    values: Any = found.get_array()
    return np.column_stack([np.asarray(found.get_offsets()), np.ma.filled(values, np.nan)])
