"""Speed, memory and precision."""

from experiments.documents.blocks import read, table

CASES = {
    "cifar_reference": "32×32 reference, batch 256",
    "reference_28": "28×28 reference, batch 256",
    "digits": "digits, batch 64",
}
# Row of the table → field of benchmark.json and how it is printed.
ROWS = {
    "training step, ours (ms)": ("ours_ms", ".1f"),
    "training step, PyTorch (ms)": ("torch_ms", ".1f"),
    "ours / PyTorch": ("ratio", ".2f"),
    "epoch with data, ours / PyTorch": ("epoch_ratio", ".2f"),
    "packed grid, model-steps/s": ("grid_model_steps_per_s", ",.0f"),
    "packed grid, times PyTorch one at a time": ("grid_speedup_over_torch", ".1f"),
    "part of the best matrix product's speed": ("roofline_fraction", ".0%"),
    "peak memory, compiling (MiB)": ("ours_peak_mib", ".0f"),
    "peak memory, from the compile cache (MiB)": ("ours_warm_peak_mib", ".0f"),
    "peak memory, PyTorch (MiB)": ("torch_peak_mib", ".0f"),
    "start to first step, compiling (s)": ("first_step_cold_s", ".1f"),
    "start to first step, from the compile cache (s)": ("first_step_warm_s", ".1f"),
}


def benchmark() -> str:
    """Beside the same network in PyTorch."""
    measured = {row["case"]: row for row in read("benchmark.json") if row["cores"] == "all"}
    rows = [
        [label, *(format(measured[case][name], form) for case in CASES)]
        for label, (name, form) in ROWS.items()
    ]
    return table(["", *CASES.values()], rows)


def scaling() -> str:
    """One model over several devices of one CPU."""
    rows = []
    for row in read("scaling_devices.json"):
        devices = f"{row['processes']} × {row['devices_per_process']}"
        measured = f"{row['step_ms']:.1f}", f"{row['images_per_s']:.0f}", f"{row['efficiency']:.0%}"
        rows.append([row["scaling"], devices, row["batch_size"], *measured])
    head = ("scaling", "processes × devices", "batch", "step (ms)", "images/s", "efficiency")
    return table(head, rows)


def streaming() -> str:
    """What it costs to stream images."""
    (row,) = read("streaming.json")
    return (
        f"On two cores a streamed image took {row['streamed_cpu_ms_per_image']:.2f} ms of CPU time, workers included, "
        f"where one from the devices took {row['resident_cpu_ms_per_image']:.2f} ms; throughput was "
        f"{row['ratio']:.2f} of that from the devices, between {min(row['ratios']):.2f} and "
        f"{max(row['ratios']):.2f} from turn to turn."
    )


def memory() -> str:
    """What a gradient keeps, and what bfloat16 changes."""
    rows = [row for row in read("memory.json") if row["inference"] == "generalized_top_down"]
    kept = {(row["compute_dtype"], row["remat"]): f"{row['kept_mib']:.1f} MiB" for row in rows}
    precision = read("precision.json")
    worst = 100 * max(max(row["relative_rate_differences"]) for row in precision["same_parameters"])
    apart = [f"{100 * d:.1f} %" for d in precision["two_trainings"]["relative_rate_differences"]]
    return (
        f"At batch 256 the gradient of the 32×32 reference keeps {kept['float32', False]} of activations, with `remat` "
        f"{kept['float32', True]}, in bfloat16 {kept['bfloat16', False]}. On Fashion-MNIST, from the same parameters "
        f"and draws, test rates in bfloat16 are within {worst:.2f} % of those in float32; two trainings, one in each, "
        f"drift apart as two seeds do: {' and '.join(apart)} in the two layers after 500 steps (seed 0)."
    )
