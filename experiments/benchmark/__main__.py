"""Times this library against the same networks in plain PyTorch, side by side, on the CPU or a device.

    pip install -e ".[benchmark]" && python -m experiments.benchmark --out=rows.json --figure=steps.png
    python -m experiments.benchmark --only=digits --cores=all --repeats=5
    python -m experiments.benchmark --scaling --figure=scaling.png
    python -m experiments.benchmark --device --out=device.json

Every contender (ours, PyTorch eager, torch.compile) is one long-lived process; they are asked in turn,
A B C A B C, and never run at the same time. Numbers are medians, a ratio is the median of the ratios of
neighbours. Before anything is timed, both networks get the same parameters, images and noise, and must
agree in distortion, rates and gradients. Images are random bytes; an epoch has 10,240 of them.

--device is another program: it measures whatever device JAX finds, a GPU or a TPU, in less than ten minutes.
Training in float32 and bfloat16, a grid of 49 models side by side, a deep network, evaluation and bits on
disk, beside PyTorch on the same device where it is installed for it; what does not work there is named, and
the rest goes on. --quick does all of it with small networks.
"""

import importlib.util
import os
import signal
from collections.abc import Sequence

import jax
from absl import flags

from experiments import program
from experiments.benchmark.cases import CASES, step_flops, verify
from experiments.benchmark.device import format_table as format_device
from experiments.benchmark.device import measure_device
from experiments.benchmark.measure import measure, measure_scaling, say
from experiments.benchmark.tables import draw_scaling, draw_steps, format_scaling, format_table, make_row
from hvae_jax import records
from hvae_jax.errors import RunError

CORES = ("one", "all")


def main(arguments: list[str]) -> None:
    """Reads the flags, measures, prints, draws."""
    options = flags.FLAGS
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    out = None if options.out is None else program.file_flag("out", options.out, (".json", ""))
    figure = None if options.figure is None else program.file_flag("figure", options.figure)
    cores = pick("cores", options.cores, CORES)
    names = pick("only", options.only, tuple(CASES))
    for file in filter(None, (out, figure)):
        program.make_parent(file)
    if options.quick and not options.device:
        raise RunError("--quick is of --device; give both")
    if options.device:
        if figure or options.scaling:
            raise RunError("--device has no figure and no scaling; leave --figure and --scaling out")
        found = measure_device(options.quick, keep=lambda found: out and records.write_json(out, found))
        print(format_device(found))
        return
    jax.config.update("jax_platforms", "cpu")
    if options.scaling:
        rows = [row for number in cores for row in measure_scaling(number, options.repeats)]
        print(format_scaling(rows))
    else:
        require_torch()
        for name in names:
            print(f"{name}: {verify(CASES[name])}", flush=True)
        rows = []
        for name in names:
            for number in cores:
                say(f"{name}, {number} core{'s' * (number == 'all')}, load {os.getloadavg()[0]:.1f}")
                measured, notes = measure(CASES[name], number, options.repeats)
                rows.append(make_row(name, number, measured, step_flops(CASES[name])))
                for note in notes:
                    print(note, flush=True)
                if out:  # after every row, so that a run cut short leaves what it has
                    records.write_json(out, rows)
        print(format_table(rows))
    if out:
        records.write_json(out, rows)
    if figure:
        (draw_scaling if options.scaling else draw_steps)(rows, figure)


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_list("only", list(CASES), "Cases to time.")
    flags.DEFINE_list("cores", list(CORES), "Core counts to time.")
    flags.DEFINE_integer("repeats", 20, "Turns that count; epochs take a quarter of them.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")
    flags.DEFINE_string("figure", None, "PNG to write.")
    flags.DEFINE_boolean("device", False, "Instead: what the device that JAX finds does, in ten minutes.")
    flags.DEFINE_boolean("quick", False, "With --device: small networks, to see that it works.")
    flags.DEFINE_boolean("scaling", False, "Instead: our step against batch, channels, layers and side.")


def pick(flag: str, chosen: Sequence[str], known: Sequence[str]) -> list[str]:
    """`chosen`, checked.

    Raises:
      RunError: nothing, or something that is not known.
    """
    for name in chosen:
        if name not in known:
            raise RunError(f"--{flag}={name} is unknown; choose from {', '.join(known)}")
    if not chosen:
        raise RunError(f"--{flag} is empty; choose from {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def require_torch() -> None:
    """Raises RunError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise RunError('the benchmark needs PyTorch to compare with; pip install -e ".[benchmark]"')


if __name__ == "__main__":
    define_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary folders go, too
    program.run(main, resumes=False)
