import dataclasses
import pathlib

import drawn as drawn_artists
import matplotlib.image
import numpy as np
import pytest
from small_metrics import make_metrics

from hvae_jax.evaluation.metrics import GroupRate, PerSplit
from hvae_jax.evaluation.plain import Estimate
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.figures import applications, report, style
from hvae_jax.figures import runs as figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, which functions that save them keep to themselves."""
    found = []

    def new_figure(width, height):
        found.append(style.new_figure(width, height))
        return found[-1]

    for module in (figures, applications):
        monkeypatch.setattr(module, "new_figure", new_figure)
    return found


def test_the_legends_of_training_lie_beside_its_curves(tmp_path, drawn):
    steps = np.arange(50)
    log = {"step": steps, "distortion_nats": 50.0 + np.sin(steps), "rates_nats": np.eye(50)[:, :2]}
    figures.training_curves(log, log, "a title", tmp_path / "training.png")
    panels = drawn[0].axes
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["distortion D", "validation"]
    for axes in panels:
        legend, whole = axes.get_legend().get_window_extent(), drawn[0].bbox
        assert legend.x0 >= axes.get_window_extent().x1
        assert legend.x1 <= whole.x1
        assert axes.get_window_extent().width > 0.5 * whole.width


@pytest.mark.parametrize(
    ("betas", "kinds"),
    [
        ([(1.0, 1.0)], ["equal betas"]),
        ([(0.1, 1.0)], ["independent betas"]),
        ([(1.0, 1.0), (0.1, 1.0)], ["independent betas", "equal betas"]),
    ],
)
def test_the_legend_of_models_names_those_that_are_drawn(tmp_path, drawn, betas, kinds):
    models = [Evaluated("0", pathlib.Path("0"), own, 0, make_metrics()) for own in betas]
    applications.distortion_by_rate(models, tmp_path / "distortion_by_rate")
    (axes,) = drawn[0].axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[: len(kinds)] == kinds
    assert "betas" not in "".join(names[len(kinds) :])
    dots = [line for line in axes.lines if line.get_label() in kinds]
    assert [len(line.get_xdata()) for line in dots] == [1] * len(kinds)


@pytest.mark.parametrize("num_columns", [1, 12])
def test_no_words_are_cut_off_beside_or_above_rows_of_images(tmp_path, num_columns):
    """The edges of the picture stay white, at the longest labels and with one image in a row."""
    white = np.ones((num_columns, 8, 8, 1))
    rows = {"temperature 1, pixels drawn": white, "from $z_2$ and up": white}
    file = tmp_path / "rows.png"
    figures.image_rows(rows, "Samples: digits, generalized top down, betas (0.464, 0.464)", file)
    picture = matplotlib.image.imread(file)[..., :3]
    assert picture.min() < 0.5  # the words are there
    for edge in (picture[:, :4], picture[:, -4:], picture[:4], picture[-4:]):
        assert edge.min() == 1.0


def test_images_of_two_and_four_channels_become_colours():
    two, four = np.array([[[[0.2, 0.6]]]]), np.array([[[[0.2, 0.6, 1.0, 0.5]], [[0.2, 0.6, 1.0, 0.0]]]])
    np.testing.assert_allclose(style.tile(two), [[[0.2, 0.6, 0.6]]])
    np.testing.assert_allclose(style.tile(four), [[[0.6, 0.8, 1.0]], [[1.0, 1.0, 1.0]]])
    assert style.tile(four[..., :3]).tolist() == four[0, ..., :3].tolist()
    assert "cyan" in style.channels_note(two)
    assert "opacity" in style.channels_note(four)
    assert style.channels_note(four[..., :3]) == style.channels_note(two[..., :1]) == ""


def test_images_keep_their_sides(tmp_path, monkeypatch):
    kept = drawn_artists.keep_figures(monkeypatch)
    figures.image_rows({"a row": np.ones((3, 10, 20, 1))}, "a title", tmp_path / "rows.png")
    box = kept["rows.png"].axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(3 * 20 / 10, rel=0.07)  # but for the line between rows


def test_the_table_of_the_report_has_active_units_by_layer_or_by_group():
    def columns(**changes) -> dict:
        metrics = make_metrics()
        rates = dataclasses.replace(metrics.rates.test, **changes)
        metrics = dataclasses.replace(metrics, rates=PerSplit(test=rates))
        found = report.columns(Evaluated("run", pathlib.Path("run"), (1.0, 1.0), 0, metrics))
        return {name: value for name, value in found.items() if "active" in name}

    names = ["active units of z_1", "active units of z_2"]
    assert columns() == dict.fromkeys(names, "")  # as an older version left it
    assert columns(active_units=(7, 3), num_units=(9, 3)) == dict(zip(names, (7, 3), strict=True))
    nats = Estimate(1.0, 0.1)
    groups = (GroupRate(name="both", lowest_layer=1, highest_layer=2, rate_nats=nats, rate_bits=nats),)
    assert columns(active_units=(7, 3), groups=groups) == {"active units of both": 10}
    assert columns(groups=groups) == {"active units of both": ""}
