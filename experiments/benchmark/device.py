"""What one machine with a GPU, a TPU or a CPU does: `python -m experiments.benchmark --device`.

Every section is a process of its own, with a time of its own: what one takes of the device's memory is free
for the next, and one that fails, for want of memory for example, is named and left out. PyTorch is asked on
the same device where it is installed for it. Images are random bytes, on the device from the start.
"""

import importlib.util
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import digits_deep
from experiments.benchmark.cases import CASES, Case, step_flops, torch_spec, with_random_images
from experiments.benchmark.measure import say
from experiments.benchmark.workers import Contender
from hvae_jax.errors import RunError
from hvae_jax.models.config import COMPUTE_DTYPES, DEEP

OURS, TORCH = "experiments.benchmark.device_worker", "experiments.benchmark.torch_device"
# That all takes; sections that no time is left for are named.
TOTAL_S = 560.0
# Below this no section is begun.
LEAST_S = 10.0
PYTORCH, COMPILED = "PyTorch", "torch.compile"


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
      cases: title → network; the first is that of the grid.
      coded: the network of the codec.
      num_images: of an epoch, and of an evaluation pass.
      num_models: of the grid.
      num_coded: images that are encoded.
      turn_s: seconds of one turn of steps.
      has_compiled: whether torch.compile is asked, which takes its time.
    """

    cases: dict[str, Case]
    coded: Case
    num_images: int
    num_models: int
    num_coded: int
    turn_s: float
    has_compiled: bool


class Section(NamedTuple):
    """What one process is asked.

    Attributes:
      title: of its rows.
      who: "ours", `PYTORCH` or `COMPILED`.
      module: of the worker.
      spec: for it.
      methods: what is asked → the worker's method, one row each.
      seconds: that all of it may take.
      flops: of a step, floating point operations.
    """

    title: str
    who: str
    module: str
    spec: dict[str, Any]
    methods: dict[str, str]
    seconds: float
    flops: float | None = None


def small_deep_config() -> Any:
    """A deep network that compiles in seconds."""
    config = digits_deep.get_config().unlock()
    model = {"latent_shapes": ((4, 4, 4), (1, 1, 4)), "blocks_by_side": ((4, 1), (1, 1)), "channels": 16}
    config.update({"model": model, "objective": {"betas": (1.0, 1.0)}})
    return config.lock()


FULL = Sizes(
    {
        "CIFAR-10 reference": CASES["cifar_reference"],
        "28×28 reference": CASES["reference_28"],
        "deep, 9 layers, 28×28": CASES["deep_28"],
    },
    coded=CASES["reference_28"],
    num_images=10_240,
    num_models=49,
    num_coded=1000,
    turn_s=1.0,
    has_compiled=True,
)
QUICK = Sizes(
    {"digits": CASES["digits"], "deep, 2 layers, 8×8": Case(small_deep_config, (8, 8, 1), 3_780)},
    coded=CASES["digits"],
    num_images=256,
    num_models=2,
    num_coded=32,
    turn_s=0.05,
    has_compiled=False,
)


def measure_device(
    is_quick: bool, total_s: float = TOTAL_S, keep: Callable[[dict[str, Any]], None] = lambda found: None
) -> dict[str, Any]:
    """All sections, one after the other.

    Args:
      is_quick: small networks, few images: it works, and says little.
      total_s: that all may take.
      keep: given what there is after every section.

    Returns:
      "device": what there is; "rows": `section`, `what`, `who` and numbers each; "failed": title → reason.

    Raises:
      RunError: JAX finds no device.
    """
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"device": {}, "rows": rows, "failed": {}, "is_quick": is_quick}
    with _start(OURS, {"kind": "about"}) as about:
        found["device"] = about.ask("describe", timeout_s=total_s)
    say(describe(found["device"]))
    with tempfile.TemporaryDirectory() as folder:
        sizes = QUICK if is_quick else FULL
        for section in sections(sizes, found["device"]["platform"], pathlib.Path(folder)):
            name = f"{section.title}, {section.who}"
            left = total_s - (time.monotonic() - start)
            if left < LEAST_S:
                found["failed"][name] = f"no time was left of {total_s:.0f} s"
                keep(found)
                continue
            say(f"{name} ({left:.0f} s left)")
            try:
                for what, answer in _ask(section, min(section.seconds, left - 5.0)):
                    rows.append({"section": section.title, "what": what, "who": section.who, **answer})
                    if what == "training" and section.flops:
                        rows[-1]["tflop_per_s"] = section.flops * answer["steps_per_s"] / 1e12
            except RunError as error:
                found["failed"][name] = str(error)
                say(f"  left out: {error}")
            found["seconds"] = time.monotonic() - start
            keep(found)
    return found


def sections(sizes: Sizes, kind: str, folder: pathlib.Path) -> Iterator[Section]:
    """Ours first, then PyTorch's; torch.compile, which may take what time is left, comes last.

    Args:
      sizes: how much.
      kind: of the device, as JAX names it.
      folder: for the images.
    """
    configs = {}
    for number, (title, case) in enumerate([*sizes.cases.items(), ("coded", sizes.coded)]):
        place = folder / str(number)
        place.mkdir()
        configs[title] = with_random_images(case.config, case.image_shape, sizes.num_images, place)
    coded = configs.pop("coded")
    every = {"num_images": sizes.num_images, "turn_s": sizes.turn_s}
    both = {"training": "train", "evaluation": "evaluate"}
    for dtype in COMPUTE_DTYPES:
        for title, config in configs.items():
            if dtype != "float32" and config["model"]["inference"] == DEEP:
                continue
            spec = {"kind": "network", "config": _in_dtype(config, dtype), **every}
            flops = step_flops(sizes.cases[title])
            yield Section(f"{title}, {dtype}", "ours", OURS, spec, both, 90.0, flops)
    title, config = next(iter(configs.items()))
    grid = {"kind": "grid", "config": config, "num_models": sizes.num_models, **every}
    flops = step_flops(sizes.cases[title])
    yield Section(f"grid of {title}, float32", "ours", OURS, grid, {"training": "train"}, 150.0, flops)
    spec = {"kind": "codec", "config": coded, "num_coded": sizes.num_coded}
    yield Section("bits on disk", "ours", OURS, spec, {"coding": "code"}, 60.0)
    device = {"gpu": "cuda", "cpu": "cpu"}.get(kind)
    if device is None or importlib.util.find_spec("torch") is None:
        return
    for who in (PYTORCH, COMPILED) if sizes.has_compiled else (PYTORCH,):
        for dtype in COMPUTE_DTYPES:
            for title, config in configs.items():
                if dtype != "float32" and config["model"]["inference"] == DEEP:
                    continue
                case, flops = sizes.cases[title], step_flops(sizes.cases[title])
                spec = {
                    **every,
                    **torch_spec(config, case.image_shape, who == COMPILED),
                    "compute_dtype": dtype,
                    "device": device,
                }
                yield Section(f"{title}, {dtype}", who, TORCH, spec, both, 75.0, flops)


def _in_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {**config, "model": {**config["model"], "compute_dtype": dtype}}


def _start(module: str, spec: Mapping[str, Any]) -> Contender:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Contender(module, spec, "all", cache, is_on_cpu=False)


def _ask(section: Section, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is asked and its answer, while there is time.

    Raises:
      RunError: it failed, or took too long.
    """
    end = time.monotonic() + seconds
    with _start(section.module, section.spec) as worker:
        for what, method in section.methods.items():
            yield what, worker.ask(method, timeout_s=max(end - time.monotonic(), 0.0))


def describe(device: Mapping[str, Any]) -> str:
    """One line."""
    memory = "" if device["memory_mib"] is None else f", {device['memory_mib'] / 1024:.1f} GiB"
    return (
        f"{device['num_devices']} × {device['device']} ({device['platform']}){memory}, "
        f"{device['cores']} cores, jax {device['jax']}, Python {sys.version.split()[0]}"
    )


COLUMNS = {
    "steps_per_s": ("steps/s", ",.1f"),
    "images_per_s": ("images/s", ",.0f"),
    "encode_images_per_s": ("encoded/s", ",.1f"),
    "decode_images_per_s": ("decoded/s", ",.1f"),
    "tflop_per_s": ("TFLOP/s", ".3f"),
    "peak_mib": ("peak MiB", ",.0f"),
}


def format_table(found: Mapping[str, Any]) -> str:
    """A Markdown table with a line for each row, and under it what was left out."""
    titles = ["", "", "", *(title for title, _ in COLUMNS.values())]
    lines = [describe(found["device"]), "", _line(titles), _line(["---"] * 3 + ["---:"] * len(COLUMNS))]
    pairs = list(dict.fromkeys((row["section"], row["what"]) for row in found["rows"]))
    # PyTorch's next to ours.
    for row in sorted(found["rows"], key=lambda row: pairs.index((row["section"], row["what"]))):
        what = f"{row['what']}, {row['num_models']} models" if "num_models" in row else row["what"]
        cells = [format(row[name], spec) if name in row else "" for name, (_, spec) in COLUMNS.items()]
        lines.append(_line([row["section"], what, row["who"], *cells]))
    lines += ["", "Steps of a grid are of one model, summed over all."]
    lines += ["Peaks are of the first device's memory; on a CPU, of the process."]
    if found["device"]["num_devices"] > 1 and found["device"]["platform"] == "gpu":
        lines.append("PyTorch is on one device, ours on all: CUDA_VISIBLE_DEVICES=0 compares one with one.")
    lines += [f"Left out: {name}: {reason}" for name, reason in found["failed"].items()]
    if found["is_quick"]:
        lines.append("--quick: small networks, few images: it works, and the numbers say little more.")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
