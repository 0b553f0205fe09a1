"""The benchmark's arithmetic and its refusals; the timing itself needs PyTorch and a quiet machine."""

import math
import pathlib
import subprocess
import sys

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as program
from experiments.benchmark import cases, depth, device, measure, serving, tables
from experiments.benchmark import devices as device_scaling
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.models.hvae import ModelConfig, make_hvae

ROOT = pathlib.Path(__file__).parents[1]
# The program, on a machine where PyTorch is not installed.
WITHOUT_TORCH = (
    "import importlib.util as util, runpy; find = util.find_spec; "
    "util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest); "
    "runpy.run_module('experiments.benchmark', run_name='__main__', alter_sys=True)"
)


@pytest.fixture
def measured() -> measure.Measurements:
    """Turns in which the machine was slower at times, for both alike."""
    return measure.Measurements(
        step_s={
            "ours": [0.1, 0.2, 0.12],
            "torch": [0.2, 0.4, 0.2],
            "grid": [0.05, 0.2, 0.04],
            "torch_compile": [0.1, 0.1, 0.4],
        },
        epoch_s={"ours": [4.0, 6.0], "torch": [5.0, 5.0]},
        eval_s={"ours": [2.0], "torch": [4.0]},
        gemm_flops={"xla": [90e9, 1e9, 91e9], "torch": [100e9, 102e9, 99e9]},
        peak_mib={"ours": 500.0, "torch": 400.0, "torch_compile": 600.0, "ours_warm": 450.0},
        first_step_s={"cold": [9.0, 8.0, 30.0], "warm": [3.0]},
    )


def test_flops_of_the_cifar_reference_worked_out_by_hand():
    # Multiply-adds per image: pixels out · 4 · 4 · channels in · channels out, and so on.
    first = 16 * 16 * 16 * 3 * 32
    to_8, to_4 = 8 * 8 * 16 * 32 * 32, 4 * 4 * 16 * 32 * 32
    q_2 = to_8 + to_4 + 512 * 64
    q_1 = to_8 + 32 * 512 + to_4 + 4 * 4 * 16 * 64 * 32 + 4 * 4 * 9 * 32 * 64
    p_1 = 32 * 256 + 256 * 1024
    p_x = to_4 + to_8 + first
    per_image = 3 * (q_2 + q_1 + p_1 + p_x) + 2 * 2 * first  # the image needs no gradient
    assert per_image == 17_965_056
    assert cases.step_flops(cases.CASES["cifar_reference"]) == 2 * 256 * 17_965_056


def test_flops_of_a_deep_network_are_those_of_its_kernels():
    case = cases.CASES["deep_28"]
    model = make_hvae(ModelConfig(**case.config["model"]), case.image_shape)
    x, key = jnp.zeros((1, *case.image_shape)), jax.random.key(0)
    params = jax.eval_shape(model.init, key, x, key)["params"]
    products = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "kernel":
            name = path[0].key
            side = int(name.rpartition("_")[2]) if "_" in name else 14  # in and out on the largest maps
            products += (2 if name == "input" else 3) * side**2 * math.prod(leaf.shape)
    assert cases.step_flops(case) == 2 * 64 * products
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == case.num_parameters


def test_parameters_are_linear_in_the_number_of_layers():
    sizes = []
    for num in (10, 20, 40):
        model = make_hvae(ModelConfig(**depth.depth_config(num)["model"]), (8, 8, 1))
        x, key = jnp.zeros((1, 8, 8, 1)), jax.random.key(0)
        leaves = jax.tree.leaves(jax.eval_shape(model.init, key, x, key))
        assert model.num_layers == num
        sizes.append(sum(leaf.size for leaf in leaves))
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


def test_a_row_holds_medians_and_the_median_of_paired_ratios(measured):
    row = tables.make_row("digits", "one", measured, num_flops=6e9)
    assert (row["case"], row["cores"]) == ("digits", "one")
    assert row["ours_ms"] == pytest.approx(120.0)
    assert row["torch_ms"] == pytest.approx(200.0)
    assert row["torch_compile_ms"] == pytest.approx(100.0)
    assert row["ratio"] == pytest.approx(0.5)  # of 0.5, 0.5 and 0.6; the ratio of medians is 0.6
    assert row["grid_model_steps_per_s"] == pytest.approx(20.0)
    assert row["grid_speedup_over_torch"] == pytest.approx(4.0)  # of 4, 2 and 5
    assert row["grid_speedup_over_ours"] == pytest.approx(2.0)  # of 2, 1 and 3
    # The better library's median counts: 6 GFLOP at 100 GFLOP/s.
    assert row["roofline_ms"] == pytest.approx(60.0)
    assert row["roofline_fraction"] == pytest.approx(0.5)
    assert row["epoch_ratio"] == pytest.approx((0.8 + 1.2) / 2)
    assert row["ours_eval_images_per_s"] == pytest.approx(measure.NUM_IMAGES / 2)
    assert (row["first_step_cold_s"], row["first_step_warm_s"]) == (9.0, 3.0)
    peaks = (row["ours_peak_mib"], row["ours_warm_peak_mib"], row["torch_peak_mib"])
    assert peaks == (500.0, 450.0, 400.0)


def test_without_torch_compile_its_column_is_null_and_a_dash(measured, monkeypatch):
    del measured.step_s["torch_compile"]
    row = tables.make_row("digits", "all", measured, num_flops=6e9)
    assert row["torch_compile_ms"] is None
    lines = tables.format_table([row]).splitlines()
    assert lines[0].split() == ["digits,", "all"]
    (line,) = [line for line in lines if "torch.compile" in line]
    assert line.endswith(" —")
    (line,) = [line for line in lines if line.startswith("training step, ours")]
    assert line.endswith(" 120.00")
    kept = drawn.keep_figures(monkeypatch)
    tables.draw_steps([row], "steps.png")
    (axes,) = kept["steps.png"].axes
    assert [bar.get_height() for bar in axes.containers[0]] == pytest.approx([120.0, 200.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ours", "PyTorch"]
    assert np.ravel(axes.lines[0].get_ydata())[0] == pytest.approx(row["roofline_ms"])


def test_networks_that_differ_are_not_reported():
    a = {"distortion": np.array([3.0, 4.0]), "rate R_1": np.array([1.0])}
    near = {"distortion": np.array([3.0, 4.004]), "rate R_1": np.array([1.0])}
    assert "7 parameters; distortion differs most, by 8.0e-04" in cases.compare(a, near, 7, 7)
    with pytest.raises(RunError, match="7 parameters for 8"):
        cases.compare(a, near, 7, 8)
    for value in (1.002, np.nan):
        with pytest.raises(RunError, match="rate R_1 differs"):
            cases.compare(a, {**a, "rate R_1": np.array([value])}, 7, 7)


def test_every_point_of_the_scaling_is_a_config_that_builds(tmp_path, monkeypatch):
    for axis, values in cases.SCALING.items():
        for value in values:
            config, image_shape = cases.scaling_config(axis, value)
            config = cases.with_random_images(config, image_shape, 512, tmp_path)
            built = experiment.from_config(config)
            got = {
                "batch size": built.training.batch_size,
                "channels": built.model.config.channels,
                "layers": built.model.num_layers,
                "image side": built.dataset.image_shape[0],
            }
            assert got[axis] == value
    row = {"axis": "layers", "value": 3, "cores": "all", "gflop": 2.0, "step_ms": 12.345, "peak_mib": 1234.5}
    line = tables.format_scaling([row]).splitlines()[1]
    assert line.split() == ["layers", "3", "all", "2.00", "12.35", "162", "1,234"]
    kept = drawn.keep_figures(monkeypatch)
    tables.draw_scaling([row], "scaling.png")
    column = list(cases.SCALING).index("layers")
    panels = kept["scaling.png"].axes[column :: len(cases.SCALING)]
    for axes, value in zip(panels, (12.345, 1234.5), strict=True):
        assert drawn.line(axes, "cores: all").tolist() == [[3.0, value]]


def test_an_unknown_case_or_core_count_is_refused():
    assert program.pick("only", ["digits", "digits"], tuple(cases.CASES)) == ["digits"]
    for flag, chosen, known in (("only", ["cifar"], cases.CASES), ("cores", ["2"], program.CORES)):
        with pytest.raises(
            RunError, match=f"--{flag}={chosen[0]} is unknown; choose from {next(iter(known))}"
        ):
            program.pick(flag, chosen, tuple(known))
    with pytest.raises(RunError, match="--only is empty"):
        program.pick("only", [], tuple(cases.CASES))


def test_missing_pytorch_is_one_line_with_the_command():
    command = [sys.executable, "-c", WITHOUT_TORCH, "--only=digits"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert 'pip install -e ".[benchmark]"' in line


@pytest.mark.long
def test_a_device_is_measured_section_by_section(programs, tmp_path):
    file = tmp_path / "device.json"
    result = programs.run("benchmark.__main__", "--device", "--quick", f"--out={file}")
    assert result.status == 0, result.err
    found = records.read_json(file)
    assert (found["device"]["platform"], found["device"]["jax"]) == ("cpu", jax.__version__)
    assert not {name: why for name, why in found["failed"].items() if name.endswith("ours")}
    ours = {(row["section"], row["what"]): row for row in found["rows"] if row["who"] == "ours"}
    trained = [row for (_, what), row in ours.items() if what == "training"]
    assert len(trained) == 4  # float32, bfloat16, deep, grid
    for row in trained:
        images_per_step = row["images_per_s"] / row["steps_per_s"]
        assert images_per_step == pytest.approx(64)
        assert row["tflop_per_s"] > 0.0
    assert ours["grid of digits, float32", "training"]["num_models"] == 2
    assert ours["bits on disk", "coding"]["decode_images_per_s"] > 0.0
    lines = result.out.splitlines()
    assert [line for line in lines if line.startswith("| digits, float32 | evaluation | ours |")]


@pytest.mark.long
def test_a_section_that_fails_or_takes_too_long_is_named_and_the_others_go_on(monkeypatch):
    about = {"described": "describe"}
    given = [
        device.Section("strange", "ours", device.OURS, {"kind": "nonsense"}, about, 60.0),
        device.Section("slow", "ours", device.OURS, {"kind": "about"}, about, 0.0),
        device.Section("sound", "ours", device.OURS, {"kind": "about"}, about, 60.0),
    ]
    monkeypatch.setattr(device, "sections", lambda *_: given)
    kept = []
    found = device.measure_device(True, keep=lambda found: kept.append(len(found["rows"])))
    assert kept == [0, 0, 1]
    (row,) = found["rows"]
    assert (row["section"], row["platform"]) == ("sound", "cpu")
    assert "KeyError: 'nonsense'" in found["failed"]["strange, ours"]
    assert "took longer than 0 s" in found["failed"]["slow, ours"]
    assert "Left out: slow, ours: " in device.format_table(found)


def test_no_section_begins_when_the_time_is_over(monkeypatch):
    section = device.Section("late", "ours", device.OURS, {"kind": "about"}, {"described": "describe"}, 60.0)
    monkeypatch.setattr(device, "sections", lambda *_: [section])
    monkeypatch.setattr(device, "LEAST_S", 1e6)
    kept = []
    found = device.measure_device(True, keep=lambda found: kept.append(dict(found["failed"])))
    assert not found["rows"]
    assert kept == [found["failed"]]
    assert found["failed"] == {"late, ours": "no time was left of 560 s"}


def test_the_time_of_one_of_many_is_that_of_turns_as_long_as_asked():
    asked = []

    def run(count: int) -> float:
        asked.append(count)
        return 0.01 * count + (5.0 if len(asked) == 1 else 0.0)  # the first compiles

    assert serving.time_many(run, 0.5) == pytest.approx(0.01)
    assert asked[-serving.TURNS :] == [50] * serving.TURNS
    assert serving.time_many(run, 0.5, most=7) == pytest.approx(0.01)
    assert asked[-1] == 7


def test_efficiency_over_devices_by_hand():
    of_one = [0.4, 0.8, 0.4]
    strong = device_scaling.make_row("strong", 2, 2, [0.2, 0.4, 0.1], of_one)
    assert strong["batch_size"] == 256
    assert strong["efficiency"] == pytest.approx(0.5)  # twice as fast on four devices
    assert strong["step_ms"] == pytest.approx(200.0)
    weak = device_scaling.make_row("weak", 1, 2, [0.5, 1.0, 0.8], of_one)
    assert weak["batch_size"] == 128
    assert weak["efficiency"] == pytest.approx(0.8)
    assert weak["images_per_s"] == pytest.approx(128 / 0.8)
    line = device_scaling.format_rows([strong, weak]).splitlines()[1]
    assert line.split() == ["strong", "2", "×", "2", "256", "200.0", "1280", "50%"]
