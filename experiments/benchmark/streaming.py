"""Times training with images that are streamed from disk beside images that stay on the devices.

    python -m experiments.made_images --data_dir=DIR
    python -m experiments.benchmark.streaming --data_dir=DIR --out=rows.json

The network is the CIFAR reference with one stage more, on the 64 × 64 images of `experiments.made_images`.
Each side is a process; they train in turn, and the streamed one stops reading ahead while the other trains.
A turn starts with steps that are not counted, so that what lies ready when the clock starts is what lies
ready when it stops. On a busy machine look at the CPU time: there more processes get more of it.
"""

import pathlib
import statistics
from typing import Any

from absl import flags

from experiments import cifar, program
from experiments.benchmark.measure import OURS, say
from experiments.benchmark.workers import Contender
from hvae_jax import records
from hvae_jax.errors import RunError

NUM_STAGES = 4  # 64 → 32 → 16 → 8 → 4


def main(arguments: list[str]) -> None:
    """Reads the flags, measures, prints."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    row = measure(make_config(options.data_dir, options.workers), options.steps, options.repeats)
    for name in ("resident", "streamed"):
        speed, cpu_ms = row[f"{name}_images_per_s"], row[f"{name}_cpu_ms_per_image"]
        say(f"{name}: {speed:.0f} images/s, {cpu_ms:.2f} ms CPU time an image")
    low, high = min(row["ratios"]), max(row["ratios"])
    print(f"streamed / resident: {row['ratio']:.3f} images/s, median of turns from {low:.3f} to {high:.3f}")
    print(
        f"resident / streamed: {row['cpu_ratio']:.3f} CPU time, that of {row['num_workers']} workers included"
    )
    if options.out:
        records.write_json(pathlib.Path(options.out), [row])


def make_config(data_dir: str, num_workers: int) -> dict[str, Any]:
    """The CIFAR reference on made images, streamed."""
    config = cifar.get_config().to_dict()
    config["data"].update(name="tfds:made_images", data_dir=data_dir, num_valid=0)
    config["data"].update(streaming="always", num_workers=num_workers)
    config["model"]["num_stages"] = NUM_STAGES
    return config


def measure(config: dict[str, Any], num_steps: int, repeats: int) -> dict[str, Any]:
    """Images per second of both, turn by turn, and the median of the ratios of neighbours."""
    kept = {**config, "data": {**config["data"], "streaming": "never"}}
    size, speeds, cpu_ms = config["training"]["batch_size"], {}, {}
    with (
        Contender(OURS, {"kind": "network", "config": kept}, "all") as resident,
        Contender(OURS, {"kind": "network", "config": config}, "all") as streamed,
    ):
        sides = {"resident": resident, "streamed": streamed}
        for name, contender in sides.items():
            say(f"compiling: {name}")
            contender.ask("steps", 1)
            contender.ask("rest")
            speeds[name], cpu_ms[name] = [], []
        for turn in range(repeats):
            for name, contender in sides.items():
                contender.ask("steps", num_steps // 2)
                cpu_before = contender.ask("cpu_seconds")
                speeds[name].append(num_steps * size / contender.ask("steps", num_steps))
                cpu_ms[name].append(1e3 * (contender.ask("cpu_seconds") - cpu_before) / (num_steps * size))
                contender.ask("rest")
            say(f"turn {turn + 1}: {speeds['resident'][-1]:.0f} and {speeds['streamed'][-1]:.0f} images/s")
        peaks = {name: contender.ask("peak_mib") for name, contender in sides.items()}
    ratios = [b / a for a, b in zip(speeds["resident"], speeds["streamed"], strict=True)]
    cpu_ratios = [a / b for a, b in zip(cpu_ms["resident"], cpu_ms["streamed"], strict=True)]
    return {
        "num_workers": config["data"]["num_workers"],
        "batch_size": size,
        "steps_per_turn": num_steps,
        "cores": program.num_cores(),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": statistics.median(cpu_ratios),
        "cpu_ratios": cpu_ratios,
        **{f"{name}_images_per_s": statistics.median(values) for name, values in speeds.items()},
        **{f"{name}_cpu_ms_per_image": statistics.median(values) for name, values in cpu_ms.items()},
        **{f"{name}_peak_mib": peak for name, peak in peaks.items()},
    }


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("data_dir", None, "Where `experiments.made_images` wrote its images.", required=True)
    flags.DEFINE_integer("workers", 2, "Processes that read.", lower_bound=0)
    flags.DEFINE_integer(
        "steps", 40, "Steps of a turn that are counted; half as many come before.", lower_bound=2
    )
    flags.DEFINE_integer("repeats", 5, "Turns.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
