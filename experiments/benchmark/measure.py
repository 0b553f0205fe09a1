"""What the contenders are asked, in alternation, so that a noisy machine slows both alike."""

import contextlib
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.benchmark.cases import SCALING, Case, scaling_config, torch_spec, with_random_images
from experiments.benchmark.workers import Contender
from hvae_jax.errors import RunError

OURS, TORCH = "experiments.benchmark.workers", "experiments.benchmark.torch_reference"
NUM_IMAGES = 10_240
GEMM_SIZES = (512, 1024, 2048, 4096)
# Long enough for the clock and the scheduler, short enough for neighbours to see the same machine.
SECONDS_PER_TURN = 0.5


@dataclasses.dataclass
class Measurements:
    """What one case gave on one number of cores, turn by turn; a missing contender is a missing key.

    Attributes:
      step_s, epoch_s, eval_s: contender → seconds per step, epoch and pass over the images. "grid" is
        ours with several models packed into one program, in seconds per step of one model.
      gemm_flops: library → floating point operations per second of its best matrix product.
      peak_mib: contender → largest resident set, the framework itself included; "ours" compiled,
        "ours_warm" found everything in the compile cache.
      first_step_s: "cold" and "warm" → seconds from process start to the end of the first step.
    """

    step_s: dict[str, list[float]]
    epoch_s: dict[str, list[float]]
    eval_s: dict[str, list[float]]
    gemm_flops: dict[str, list[float]]
    peak_mib: dict[str, float]
    first_step_s: dict[str, list[float]]


def measure(case: Case, cores: str, repeats: int) -> tuple[Measurements, list[str]]:
    """All of one case on one number of cores, and notes on what could not be measured."""
    out, notes = Measurements({}, {}, {}, {}, {}, {}), []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = with_random_images(case.config, case.image_shape, NUM_IMAGES, pathlib.Path(folder))
        ours_spec = {"kind": "network", "config": config}
        eager, compiled = (torch_spec(config, case.image_shape, is_compiled) for is_compiled in (False, True))
        out.first_step_s, warm_peak_mib = measure_first_step(ours_spec, cores, min(repeats, 3))

        def start(module: str, spec: Mapping[str, Any]) -> Contender:
            return stack.enter_context(Contender(module, spec, cores))

        networks = {"ours": start(OURS, ours_spec), "torch": start(TORCH, eager)}
        networks["grid"] = start(OURS, {**ours_spec, "kind": "grid"})
        networks["torch_compile"] = start(TORCH, compiled)
        products = {name: start(m, {"kind": "gemm"}) for name, m in (("xla", OURS), ("torch", TORCH))}

        for name, contender in list(networks.items()):
            try:
                contender.ask("steps", 2)  # compiles
            except RunError as error:
                if name != "torch_compile":
                    raise
                notes.append(f"torch.compile does not work here, its column stays empty: {error}")
                del networks[name]
        slowest = max(contender.ask("steps", 2) / 2 for contender in networks.values())
        count = min(max(round(SECONDS_PER_TURN / slowest), 2), config["training"]["log_every_steps"])
        sizes = {name: best_gemm(contender) for name, contender in products.items()}
        out.step_s = {name: [] for name in networks}
        out.gemm_flops = {name: [] for name in products}
        for _ in range(repeats):
            for name, contender in networks.items():
                out.step_s[name].append(contender.ask("steps", count) / count)
            for name, contender in products.items():
                size, number = sizes[name]
                seconds = contender.ask("gemm", size, number)
                out.gemm_flops[name].append(2.0 * size**3 * number / seconds)

        pair = {name: networks[name] for name in ("ours", "torch")}
        out.epoch_s = take_turns(pair, "epoch", -(-repeats // 4))
        out.peak_mib = {name: contender.ask("peak_mib") for name, contender in pair.items()}
        out.peak_mib["ours_warm"] = warm_peak_mib
        out.eval_s = take_turns(pair, "evaluate", -(-repeats // 4), warm_up=True)
    return out, notes


def take_turns(
    contenders: Mapping[str, Contender], method: str, repeats: int, warm_up: bool = False
) -> dict[str, list[float]]:
    """Answers of every contender, asked A B A B."""
    if warm_up:
        for contender in contenders.values():
            contender.ask(method)
    answers: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            answers[name].append(contender.ask(method))
    return answers


def measure_first_step(
    spec: Mapping[str, Any], cores: str, repeats: int
) -> tuple[dict[str, list[float]], float]:
    """From the start of our process to the end of its first step, compile cache empty and filled.

    Returns:
      "cold" and "warm" → seconds; the warm process's peak memory, MiB, which holds no compiling.
    """
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    warm_peak_mib = 0.0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for answers in seconds.values():
                start = time.perf_counter()
                with Contender(OURS, spec, cores, cache) as contender:
                    contender.ask("steps", 1)
                    answers.append(time.perf_counter() - start)
                    warm_peak_mib = contender.ask("peak_mib")
    return seconds, warm_peak_mib


def best_gemm(contender: Contender) -> tuple[int, int]:
    """The size of square matrix that gives the most operations per second, and how many fill a turn."""
    found = []
    for size in GEMM_SIZES:
        number = max(round(0.5 * SECONDS_PER_TURN / contender.ask("gemm", size, 1)), 1)
        found.append((size**3 * number / contender.ask("gemm", size, number), size, number))
    return max(found)[1:]


def measure_scaling(cores: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Rows of `axis`, `value`, `cores`, `gflop`, `step_ms`, `peak_mib`, each from a process of its own."""
    for axis, values in SCALING.items():
        for value in values:
            say(f"scaling: {axis} {value}, {cores}")
            config, image_shape = scaling_config(axis, value)
            with tempfile.TemporaryDirectory() as folder:
                config = with_random_images(config, image_shape, 1024, pathlib.Path(folder))
                spec = {"kind": "network", "config": config}
                with Contender(OURS, spec, cores) as contender:
                    contender.ask("steps", 1)
                    count = min(max(round(SECONDS_PER_TURN / contender.ask("steps", 1)), 1), 100)
                    step_s = [contender.ask("steps", count) / count for _ in range(repeats)]
                    peak_mib = contender.ask("peak_mib")
                    gflop = contender.ask("gflop")
            step_ms = 1e3 * statistics.median(step_s)
            point = {"axis": axis, "value": value, "cores": cores}
            yield {**point, "gflop": gflop, "step_ms": step_ms, "peak_mib": peak_mib}


def say(text: str) -> None:
    """Progress, apart from the table that goes to standard output."""
    print(text, file=sys.stderr, flush=True)
