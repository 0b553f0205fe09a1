"""What experiments.plot_bits takes of reports, and what it draws."""

import json

import matplotlib.figure
import numpy as np
import pytest

from experiments import plot_bits
from hvae_jax.errors import RunError
from hvae_jax.figures import bits


def test_rows_are_reports_with_errors_and_dots_lie_where_they_say(tmp_path, monkeypatch):
    single = {"net_bits": [[4.0, 0.0], [6.0, 0.1]], "rates_bits": [[4.5, 0.0], [4.5, 0.0]]}
    report = {
        "data": "digits",
        "net_bits": [5.0, 0.05],
        "rates_bits": [4.5, 0.0],
        "images": single,
        "totals": {},
    }
    file = tmp_path / "grid_0000.json"
    file.write_text(json.dumps(report))
    (row,) = plot_bits.read_rows([str(file)])
    assert row["name"] == "grid_0000"
    assert "images" not in row
    np.testing.assert_allclose(row["difference_error_bits"], [1.0, 0.05])  # of -0.5 and 1.5, of 0 and 0.1

    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    bits.bits_against_rates([row], tmp_path / "figure.png")
    above, below = drawn[0].axes
    dots = [line.get_xydata() for line in above.lines if len(line.get_xdata()) == 1]
    np.testing.assert_allclose(np.concatenate(dots), [[4.5, 5.0], [0.0, 0.05]])
    dots = [line.get_xydata() for line in below.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate(dots), [[4.5, 100 * 0.5 / 4.5]])  # none of a rate of 0


def test_what_is_no_report_is_named(tmp_path):
    with pytest.raises(RunError, match="give the reports"):
        plot_bits.read_rows([])
    file = tmp_path / "rates.json"
    file.write_text('{"net_bits": [1.0]}')
    with pytest.raises(RunError, match=r"rates.json is no report of experiments\.compress"):
        plot_bits.read_rows([str(file)])
