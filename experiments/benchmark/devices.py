"""How one training step scales over the devices of a CPU, and over two processes.

    python -m experiments.benchmark.devices --out=rows.json

The CIFAR reference on random images. *Strong*: a batch of 256 however many devices share it. *Weak*: 64
images per device. Every setting is a process, or two that are connected, and they are asked in turn.
Efficiency is relative to one device: time on one over the devices' time times their number where work is
shared, and the plain quotient of times where it grows. Devices of one CPU share its cores: beyond as many
devices as cores, nothing but their cost is left to see, and a single device has all cores for itself.
"""

import contextlib
import pathlib
import socket
import statistics
import tempfile
from typing import Any

from absl import flags

from experiments import program
from experiments.benchmark.cases import CASES, with_random_images
from experiments.benchmark.measure import OURS, SECONDS_PER_TURN, say
from experiments.benchmark.workers import Contender
from hvae_jax import records
from hvae_jax.errors import RunError

CASE = CASES["cifar_reference"]
# Processes, devices in each.
SETTINGS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))
STRONG_BATCH, WEAK_BATCH_PER_DEVICE = 256, 64
NUM_IMAGES = 1024


def main(arguments: list[str]) -> None:
    """Reads the flags, measures, prints."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    rows = [row for scaling in ("strong", "weak") for row in measure(scaling, options.repeats)]
    print(format_rows(rows))
    if options.out:
        records.write_json(pathlib.Path(options.out), rows)


def measure(scaling: str, repeats: int) -> list[dict[str, Any]]:
    """One row for each of SETTINGS."""
    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = with_random_images(CASE.config, CASE.image_shape, NUM_IMAGES, folder)
        groups = {}
        for num_processes, num_devices in SETTINGS:
            batch_size = batch_of(scaling, num_processes * num_devices)
            config = {**base, "training": {**base["training"], "batch_size": batch_size}}
            spec = {"kind": "network", "config": config, "num_devices": num_devices}
            say(f"{scaling}, {num_processes} × {num_devices}: compiling")
            group = [
                stack.enter_context(Contender(OURS, {**spec, **process}, "all"))
                for process in connected(num_processes)
            ]
            ask_all(group, 2)
            groups[num_processes, num_devices] = group
        slowest = max(ask_all(group, 2) / 2 for group in groups.values())
        count = max(round(SECONDS_PER_TURN / slowest), 2)
        for _ in range(repeats):
            for setting, group in groups.items():
                seconds[setting].append(ask_all(group, count) / count)
    return [make_row(scaling, *setting, seconds[setting], seconds[SETTINGS[0]]) for setting in SETTINGS]


def batch_of(scaling: str, num_devices: int) -> int:
    """Images of a step over all devices."""
    return STRONG_BATCH if scaling == "strong" else WEAK_BATCH_PER_DEVICE * num_devices


def connected(num_processes: int) -> list[dict[str, Any]]:
    """What each process's spec needs in order to find the others."""
    if num_processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = {"coordinator": coordinator, "num_processes": num_processes}
    return [{"process": {**arguments, "process_id": number}} for number in range(num_processes)]


def ask_all(group: list[Contender], num_steps: int) -> float:
    """Seconds of so many steps, which the processes of a group take together."""
    for contender in group:
        contender.send("steps", num_steps)
    return max(contender.receive() for contender in group)


def make_row(
    scaling: str, num_processes: int, num_devices: int, seconds: list[float], of_one: list[float]
) -> dict[str, Any]:
    """Medians; efficiency as the median over neighbouring turns.

    Args:
      scaling: "strong" or "weak".
      num_processes: with `num_devices` devices each.
      num_devices: see above.
      seconds: per step, turn by turn.
      of_one: those of one device.
    """
    total = num_processes * num_devices
    share = total if scaling == "strong" else 1
    batch_size = batch_of(scaling, total)
    step_s = statistics.median(seconds)
    return {
        "scaling": scaling,
        "processes": num_processes,
        "devices_per_process": num_devices,
        "cores": program.num_cores(),
        "batch_size": batch_size,
        "step_ms": 1e3 * step_s,
        "images_per_s": batch_size / step_s,
        "efficiency": statistics.median(a / (share * b) for a, b in zip(of_one, seconds, strict=True)),
    }


def format_rows(rows: list[dict[str, Any]]) -> str:
    """A line per row."""
    lines = ["scaling  processes × devices  batch  step (ms)  images/s  efficiency"]
    for row in rows:
        where = f"{row['processes']} × {row['devices_per_process']}"
        lines.append(
            f"{row['scaling']:<9}{where:>19}{row['batch_size']:>7}{row['step_ms']:>11.1f}"
            f"{row['images_per_s']:>10.0f}{row['efficiency']:>11.0%}"
        )
    return "\n".join(lines)


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_integer("repeats", 8, "Turns.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
