"""What an evaluation keeps knows what made it: nothing stale, damaged or foreign is taken for a result."""

import copy
import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import small_grid
from small_metrics import make_metrics

from experiments import evaluate_models, evaluate_outputs
from experiments.evaluate_models import Evaluators, Reporter
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import classifier, results, settings
from hvae_jax.evaluation.applications import Evaluation
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.evaluation.settings import Settings
from hvae_jax.evaluation.sizes import Sizes
from hvae_jax.files import claims

SIZES = Sizes(num_draws=2, num_samples=300, num_splits=3, max_fit_images=120, max_scored_images=80)
WANTED = Settings("1", SIZES, {}, None, "abc", 7, None)
METRICS = make_metrics()
PICTURES = {"images": np.zeros((2, 8, 8, 1), np.uint8), "samples": np.zeros((2, 8, 8, 1), np.uint8)}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    """Runs of one and of two layers, a grid of two models, and their data."""
    folder = tmp_path_factory.mktemp("runs")
    data = small_grid.write_data(folder)
    small_grid.make_run(folder / "one", data, (1.0,), 0)
    small_grid.make_run(folder / "two", data, (1.0, 1.0), 0)
    for name, betas, seed in (
        ("grid/models/0000", [1.0, 1.0], 0),
        ("grid/models/0001", [0.1, 1.0], 0),
        ("again/models/0000", [1.0, 1.0], 1),
        ("mixed/models/0000", [1.0], 0),
        ("mixed/models/0001", [1.0, 1.0], 0),
    ):
        shutil.copytree(folder / ("one" if len(betas) == 1 else "two"), folder / name)
        config = records.read_json(folder / name / "config.json")
        config["objective"]["betas"], config["training"]["seed"] = betas, seed
        records.write_json(folder / name / "config.json", config)
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "metrics.json").unlink(), "it was not evaluated yet"),
        (lambda folder: cut(folder / "metrics.json"), "metrics.json is damaged"),
        (lambda folder: (folder / "metrics.json").write_text("[1]"), "metrics.json is damaged"),
        (lambda folder: cut(folder / "pictures.npz"), "pictures.npz is absent or damaged"),
        (lambda folder: (folder / "pictures.npz").unlink(), "pictures.npz is absent or damaged"),
        (
            lambda folder: records.write_json(folder / "metrics.json", {"settings": to_plain(WANTED)}),
            "metrics.json is damaged",
        ),
        # As version 0.1.0 left it.
        (
            lambda folder: records.write_json(
                folder / "metrics.json",
                {"settings": {"sizes": to_plain(SIZES), "step": 7}, **to_plain(METRICS)},
            ),
            "version was absent, is 1",
        ),
    ],
)
def test_what_is_damaged_or_of_an_older_version_is_evaluated_again(tmp_path, spoil, words):
    results.save(tmp_path, Evaluation(METRICS, PICTURES), WANTED)
    spoil(tmp_path)
    assert results.why_stale(tmp_path, WANTED) == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "2"}, "version was 1, is 2"),
        ({"config": "abd"}, "config was abc, is abd"),
        ({"step": 8}, "step was 7, is 8"),
        ({"checksum": "f0"}, "checksum was unknown, is f0"),
        ({"sizes": dataclasses.replace(SIZES, num_draws=3)}, "sizes: num_draws was 2, is 3"),
    ],
)
def test_another_setting_is_said(tmp_path, change, words):
    results.save(tmp_path, Evaluation(METRICS, PICTURES), WANTED)
    assert results.why_stale(tmp_path, dataclasses.replace(WANTED, **change)) == words


def test_the_hash_of_a_config_follows_what_decides_numbers(made):
    config = results.read_config(made / "two")
    plain = settings.config_hash(config)
    for group, field, value, decides in (
        ("objective", "betas", [1.0, 2.0], True),
        ("data", "binarize", "none", True),
        ("data", "num_valid", 61, True),
        ("model", "channels", 8, True),
        ("training", "seed", 9, True),
        ("data", "name", "npz:elsewhere", False),
        ("data", "data_dir", "/elsewhere", False),
        ("data", "num_workers", 3, False),
        ("data", "streaming", "always", False),
        ("data", "check_values", False, False),
        ("training", "num_checkpoints", 9, False),
        ("evaluation", "num_samples", 99, False),
    ):
        other = copy.deepcopy(config)
        assert field in other[group]
        other[group][field] = value
        assert (settings.config_hash(other) != plain) == decides, field


@pytest.fixture
def cheap(monkeypatch):
    """Evaluations that take no time: `Evaluators` without classifier and evaluator."""
    made = []

    class Fake:
        capacity = 1

        def __init__(self, *_: object) -> None:
            made.append(self)

        def evaluate_all(self, models: list[object], seed: int) -> list[Evaluation]:
            return [Evaluation(METRICS, PICTURES)] * len(models)

    monkeypatch.setattr(evaluate_models, "ModelEvaluator", Fake)
    network: Any = None
    judge = classifier.Classifier(network, {}, {"accuracy": 1.0})
    monkeypatch.setattr(classifier, "load_or_train", lambda *_: judge)
    return made


def evaluate_all(folder, made, data=None):
    lines: list[str] = []
    evaluators = Evaluators(made / "classifiers", SIZES, data, lines.append)
    evaluate_models.evaluate_runs(results.find_runs(folder), evaluators, lines.append)
    return lines


def test_other_data_under_the_same_name_are_not_taken_for_the_old(made, cheap, tmp_path):
    """The file is replaced between two evaluations: the numbers of the old images are not kept."""
    arrays = small_grid.make_arrays()
    data = small_grid.write_data(tmp_path)
    small_grid.make_run(tmp_path / "run", data, (1.0, 1.0), 0)
    assert evaluate_all(tmp_path / "run", made) == []
    assert evaluate_all(tmp_path / "run", made) == []
    arrays["test_images"] = 255 - arrays["test_images"]
    np.savez(data, **arrays)  # type: ignore[arg-type]
    described = tmp_path / "run" / records.DATA_FILE
    if described.exists():  # a run of this version knows its data, and is refused
        with pytest.raises(RunError, match="test"):
            evaluate_all(tmp_path / "run", made)
        described.unlink()  # one of 0.1.0 does not
    (line,) = evaluate_all(tmp_path / "run", made)
    assert "is evaluated again: data: splits: test: fingerprint was" in line


def test_data_that_moved_are_named_and_must_be_the_same(made, cheap, tmp_path):
    data = small_grid.write_data(tmp_path)
    small_grid.make_run(tmp_path / "run", data, (1.0, 1.0), 0)
    described = evaluate_models.experiment.from_folder(tmp_path / "run").dataset.describe()
    records.write_json(tmp_path / "run" / records.DATA_FILE, described)
    (tmp_path / "elsewhere").mkdir()
    moved = data.rename(tmp_path / "elsewhere" / "moved.npz")
    with pytest.raises(RunError, match=r"classes\.npz"):
        evaluate_all(tmp_path / "run", made)
    assert evaluate_all(tmp_path / "run", made, data=f"npz:{moved}") == []
    arrays = small_grid.make_arrays(seed=1)
    np.savez(tmp_path / "other.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="train") as caught:
        evaluate_all(tmp_path / "run", made, data=f"npz:{tmp_path / 'other.npz'}")
    assert "\n" not in str(caught.value)


def test_two_evaluations_of_one_folder_do_not_both_write(made):
    # Another open file of this process is as another process to the lock.
    with (
        evaluate_models.locked([made / "two"]),
        pytest.raises(claims.Claimed, match=r"the evaluation of .*two is being worked on by process"),
        evaluate_models.locked([made / "grid", made / "two"]),
    ):
        pass
    with evaluate_models.locked([made / "two", made / "two"]):
        pass


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda made, runs: results.find_runs(made),
            "holds neither a run (config.json) nor a grid (models/)",
        ),
        (
            lambda made, runs: results.find_runs(made / "mixed"),
            "models of [1, 2] layers, which are not compared",
        ),
        (
            lambda made, runs: evaluate_models.find_repeats([made / "two"], runs),
            "two is a single run, it must be",
        ),
        (
            lambda made, runs: evaluate_models.find_repeats([made / "grid"], runs),
            "grid/models/0000 has betas [1.0, 1.0] and seed 0, as ",
        ),
        (
            lambda made, runs: evaluate_models.find_repeats([made / "again", made / "again"], runs),
            "models are named by their grid, and grids are called ['again', 'again']",
        ),
        (lambda made, runs: evaluate_models.find_repeats([made / "absent"], runs), "--repeats="),
        (lambda made, runs: evaluate_models.find_baseline(made / "grid", runs), "of one layer, it has 2"),
        (lambda made, runs: evaluate_models.find_baseline(made / "absent", runs), "--baseline="),
    ],
)
def test_folders_that_do_not_belong_together_are_one_line_before_any_work(made, call, words):
    before = sorted(made.rglob("*"))
    with pytest.raises(RunError) as caught:
        call(made, results.find_runs(made / "grid"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(made.rglob("*")) == before


def test_repeats_and_baseline_that_belong_are_taken(made):
    runs = results.find_runs(made / "grid")
    (again,) = evaluate_models.find_repeats([made / "again"], runs)
    (repeat,) = again.folders
    assert evaluate_models.name_repeat(repeat) == "again/0000"
    assert evaluate_models.find_baseline(made / "one", runs).folders == [made / "one"]


@pytest.mark.parametrize("name", ["evaluation.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[1]", '{"betas": [1.0, 2.0, 3.0]}'])
def test_damaged_files_of_a_run_are_named(tmp_path, made, name, content):
    config = (made / "two" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=name):
        results.load(tmp_path, is_grid=False)


def test_a_damaged_table_of_a_grid_is_named(tmp_path, made):
    (tmp_path / "models").symlink_to(made / "grid" / "models")
    (tmp_path / "grid.csv").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(RunError, match=r"grid\.csv is damaged"):
        results.find_runs(tmp_path)


def test_what_is_in_the_way_of_the_results_is_named_before_any_work(tmp_path):
    evaluate_outputs.check(tmp_path)
    (tmp_path / "figures").write_text("")
    with pytest.raises(RunError, match="figures is a file"):
        evaluate_outputs.check(tmp_path)
    (tmp_path / "figures").unlink()
    (tmp_path / "guidance.json").mkdir()
    with pytest.raises(RunError, match=r"guidance\.json is a folder"):
        evaluate_outputs.check(tmp_path)


def test_many_lines_that_end_alike_are_said_a_few_times(capsys):
    reporter = Reporter(most=2)
    for number in range(5):
        reporter(f"model {number} is evaluated again: version was 1, is 2")
    reporter("left out: knn: too few")
    reporter("left out: knn: too few")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "model 0 is evaluated again: version was 1, is 2",
        "model 1 is evaluated again: version was 1, is 2 (and of others, which are not listed)",
        "left out: knn: too few",
    ]


def test_a_run_of_networks_of_ones_own_is_named_as_such(tmp_path):
    records.write_json(tmp_path / records.CONFIG_FILE, {"objective": {"betas": [1.0]}, "training": {}})
    with pytest.raises(RunError, match=r"has neither data nor model: the run is of networks of your own"):
        results.read_config(tmp_path)
