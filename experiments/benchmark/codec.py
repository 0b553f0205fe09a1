"""Images per second of encoding and decoding, and where the time goes.

    python -m experiments.benchmark.codec --num_images=2000 --out=codec_speed.json RUN_FOLDER ...

Everything is compiled first. Times are seconds of the processor, of all threads together, which work beside
this does not change; where both cores are free, as many images take at most that long.
"""

import cProfile
import pathlib
import pstats
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import program
from experiments.compress import seen_images
from hvae_jax import codec, experiment, records
from hvae_jax.errors import RunError

# Parts of the work by the functions that do it: (module, name), whole with what they call.
PARTS = {
    "networks": (("programs", "_call"), ("programs", "to_numpy")),
    "bins": (("bins", "find"), ("bins", "shares"), ("bins", "values")),
    "pixels": (("pixels", "push"), ("pixels", "pop")),
    "latents on the stack": (
        ("stack", "push_uniform"),
        ("stack", "pop_uniform"),
        ("stack", "push_below"),
        ("stack", "pop_below"),
    ),
}


def main(folders: list[str]) -> None:
    """Encodes and decodes test images of each run, and writes what took how long."""
    out = program.file_flag("out", flags.FLAGS.out, (".json",))
    if not folders:
        raise RunError("give the folders of runs")
    rows = [measure_run(program.folder_flag("RUN_FOLDER", folder)) for folder in folders]
    program.make_parent(out)
    records.write_json(out, {"rows": rows})


def measure_run(folder: pathlib.Path) -> dict[str, Any]:
    """One run's model on its test images."""
    built = experiment.from_folder(folder)
    params = built.at(experiment.restore(built, folder).eval_params)
    images = seen_images(built, "test", flags.FLAGS.num_images)
    data = codec.encode(built.model, params, images)
    row: dict[str, Any] = {"data": built.dataset.title, "num_images": len(images)}
    for name, work in (
        ("encode", lambda: codec.encode(built.model, params, images)),
        ("decode", lambda: codec.decode(built.model, params, data)),
    ):
        row[name] = measure(work, len(images))
        shares = ", ".join(f"{part} {share:.0%}" for part, share in row[name]["shares"].items())
        print(f"{row['data']}, {name}: {row[name]['images_per_cpu_s']:.0f} images per second; {shares}")
    return row


def measure(work: Callable[[], Any], num_images: int) -> dict[str, Any]:
    """Images per second of the processor, and each part's share of the time."""
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    profile = cProfile.Profile(time.process_time)
    profile.runcall(work)
    spent = dict.fromkeys(PARTS, 0.0)
    found = pstats.Stats(profile)
    for (file, _, function), (_, _, _, cumulative, _) in found.stats.items():  # pyright: ignore
        module = file.rpartition("/")[2].removesuffix(".py")
        for part, functions in PARTS.items():
            if (module, function) in functions and "/codec/" in file:
                spent[part] += cumulative
    total = found.total_tt  # pyright: ignore
    shares = {part: round(value / total, 3) for part, value in spent.items()}
    return {"images_per_cpu_s": round(num_images / seconds, 1), "shares": shares}


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("out", None, "JSON to write.", required=True)
    flags.DEFINE_integer("num_images", 2000, "Of the test split.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
