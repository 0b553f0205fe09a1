"""What came out: rows, tables and figures."""

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from experiments.benchmark.cases import SCALING
from experiments.benchmark.measure import NUM_IMAGES, Measurements
from hvae_jax.figures import style


def make_row(case: str, cores: str, measured: Measurements, num_flops: float) -> dict[str, Any]:
    """Medians and ratios of one case on one number of cores, as `--out` writes them.

    `roofline_ms` is what the products of the step would take at the speed of the best matrix product
    that either library reached in the same run; `roofline_fraction` is the part of it that ours reaches.
    """
    step = {name: 1e3 * statistics.median(seconds) for name, seconds in measured.step_s.items()}
    roofline_ms = 1e3 * num_flops / max(map(statistics.median, measured.gemm_flops.values()))
    return {
        "case": case,
        "cores": cores,
        "ours_ms": step["ours"],
        "torch_ms": step["torch"],
        "torch_compile_ms": step.get("torch_compile"),
        "ratio": paired_ratio(measured.step_s),
        "grid_model_steps_per_s": 1e3 / step["grid"],
        "grid_speedup_over_torch": paired_ratio(measured.step_s, "torch", "grid"),
        "grid_speedup_over_ours": paired_ratio(measured.step_s, "ours", "grid"),
        "roofline_ms": roofline_ms,
        "roofline_fraction": roofline_ms / step["ours"],
        "ours_peak_mib": measured.peak_mib["ours"],
        "ours_warm_peak_mib": measured.peak_mib["ours_warm"],
        "torch_peak_mib": measured.peak_mib["torch"],
        "ours_epoch_s": statistics.median(measured.epoch_s["ours"]),
        "torch_epoch_s": statistics.median(measured.epoch_s["torch"]),
        "epoch_ratio": paired_ratio(measured.epoch_s),
        "ours_eval_images_per_s": NUM_IMAGES / statistics.median(measured.eval_s["ours"]),
        "torch_eval_images_per_s": NUM_IMAGES / statistics.median(measured.eval_s["torch"]),
        "first_step_cold_s": statistics.median(measured.first_step_s["cold"]),
        "first_step_warm_s": statistics.median(measured.first_step_s["warm"]),
    }


def paired_ratio(seconds: Mapping[str, Sequence[float]], first: str = "ours", second: str = "torch") -> float:
    """Median of first / second over neighbouring turns, which saw the same machine."""
    return statistics.median(a / b for a, b in zip(seconds[first], seconds[second], strict=True))


TABLE = {
    "ours_ms": ("training step, ours (ms)", ".2f"),
    "torch_ms": ("  PyTorch eager (ms)", ".2f"),
    "torch_compile_ms": ("  torch.compile (ms)", ".2f"),
    "ratio": ("  ours / PyTorch eager", ".2f"),
    "grid_model_steps_per_s": ("packed grid, ours (model-steps/s)", ",.1f"),
    "grid_speedup_over_torch": ("  times PyTorch eager, one model at a time", ".2f"),
    "grid_speedup_over_ours": ("  times ours, one model at a time", ".2f"),
    "roofline_ms": ("  products alone at best GEMM speed (ms)", ".2f"),
    "roofline_fraction": ("  part of that speed that ours reaches", ".0%"),
    "ours_epoch_s": ("epoch with data, ours (s)", ".2f"),
    "torch_epoch_s": ("  PyTorch eager, DataLoader (s)", ".2f"),
    "epoch_ratio": ("  ours / PyTorch eager", ".2f"),
    "ours_eval_images_per_s": ("evaluation, ours (images/s)", ",.0f"),
    "torch_eval_images_per_s": ("  PyTorch eager (images/s)", ",.0f"),
    "ours_peak_mib": ("peak memory, ours, compiling (MiB)", ",.0f"),
    "ours_warm_peak_mib": ("  ours, from the compile cache (MiB)", ",.0f"),
    "torch_peak_mib": ("  PyTorch eager (MiB)", ",.0f"),
    "first_step_cold_s": ("start to first step, compiling (s)", ".1f"),
    "first_step_warm_s": ("  from the compile cache (s)", ".1f"),
}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One column per row of `--out`; what could not be measured is a dash."""
    cells = [["", *(f"{row['case']}, {row['cores']}" for row in rows)]]
    for name, (label, spec) in TABLE.items():
        cells.append([label, *("—" if row[name] is None else format(row[name], spec) for row in rows)])
    notes = (
        f"Medians; float32, CPU. An epoch and an evaluation pass are {NUM_IMAGES:,} random images.",
        "Peak memory includes the framework itself. An epoch's losses are read once, at its end.",
    )
    return "\n".join([*_align(cells), *notes])


def draw_steps(rows: Sequence[Mapping[str, Any]], file: style.PathLike) -> None:
    """Bars of the time per step of each contender, and a line where its products alone would be."""
    figure = Figure(figsize=(max(4.8, 1.9 * len(rows)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    contenders = {"ours_ms": "ours", "torch_ms": "PyTorch", "torch_compile_ms": "compile"}
    for axes, row in zip(panels, rows, strict=True):
        shown = {label: row[name] for name, label in contenders.items() if row[name] is not None}
        axes.bar(list(shown), list(shown.values()), color=style.LAYER_COLORS[: len(shown)])
        axes.axhline(row["roofline_ms"], color=style.DISTORTION_COLOR, ls="--", lw=1.2)
        axes.set_title(f"{row['case']}\n{row['cores']} core{'s' * (row['cores'] == 'all')}", fontsize=10)
        axes.tick_params(axis="x", rotation=30)
        for place, value in enumerate(shown.values()):
            axes.text(place, value, f"{value:.3g}", ha="center", va="bottom", fontsize=8)
    panels[0].set_ylabel("training step (ms)")
    figure.suptitle("Training step; dashed: its products at best GEMM speed", fontsize=10)
    figure.savefig(os.fspath(file), dpi=160)


def format_scaling(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per point."""
    cells = [["CIFAR reference, changed in", "", "cores", "GFLOP", "step (ms)", "GFLOP/s", "peak (MiB)"]]
    for row in rows:
        speed = f"{1e3 * row['gflop'] / row['step_ms']:.0f}"
        numbers = f"{row['gflop']:.2f}", f"{row['step_ms']:.2f}", speed, f"{row['peak_mib']:,.0f}"
        cells.append([row["axis"], str(row["value"]), row["cores"], *numbers])
    return "\n".join(_align(cells))


def draw_scaling(rows: Sequence[Mapping[str, Any]], file: style.PathLike) -> None:
    """Step time above, peak memory below, a panel for each thing that changes."""
    figure = Figure(figsize=(11.0, 5.2), layout="constrained")
    panels = figure.subplots(2, len(SCALING), sharex="col", sharey="row", squeeze=False)
    for column, (axis, values) in enumerate(SCALING.items()):
        for number, cores in enumerate(dict.fromkeys(row["cores"] for row in rows)):
            points = [row for row in rows if row["axis"] == axis and row["cores"] == cores]
            for axes, name in zip(panels[:, column], ("step_ms", "peak_mib"), strict=True):
                color = style.LAYER_COLORS[number]
                y = [point[name] for point in points]
                axes.plot([point["value"] for point in points], y, "o-", color=color, label=f"cores: {cores}")
        for axes in panels[:, column]:
            axes.set_yscale("log")
            if axis != "layers":
                axes.set_xscale("log", base=2)
            axes.set_xticks(list(values), [str(value) for value in values])
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panels[1, column].set_xlabel(axis)
    panels[0, 0].set_ylabel("training step (ms)")
    panels[1, 0].set_ylabel("peak memory (MiB)")
    panels[0, -1].legend(frameon=False)
    figure.suptitle("The CIFAR reference with one thing changed")
    figure.savefig(os.fspath(file), dpi=160)


def _align(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
