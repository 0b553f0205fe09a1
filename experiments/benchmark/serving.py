"""What both kinds of workers share. It must not import JAX: a PyTorch worker's memory is PyTorch's alone."""

import pathlib
import resource
import statistics
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

# Turns of which the median counts.
TURNS = 3


def serve(
    make_worker: Mapping[str, Callable[[Mapping[str, Any]], Any]], start: Callable[[Any], None]
) -> None:
    """Answers a `workers.Contender` on the pipe whose file descriptor is the program's argument.

    The first message is the spec; each later one (method, arguments) is answered by ("ok", value) or
    ("error", one line), until the pipe is closed.

    Args:
      make_worker: by the spec's `kind`; it gets the spec.
      start: is given the spec first.
    """
    with Connection(int(sys.argv[1])) as pipe:
        spec, worker = pipe.recv(), None
        start(spec)
        while True:
            try:
                method, arguments = pipe.recv()
            except EOFError:
                return
            try:
                worker = worker or make_worker[spec["kind"]](spec)
                pipe.send(("ok", getattr(worker, method)(*arguments)))
            except Exception as error:  # whatever it is, the parent reports it
                pipe.send(("error", f"{type(error).__name__}: {error}"))


def peak_mib() -> float:
    """This process's largest resident set so far."""
    # Not getrusage: on Linux its maximum starts from that of the process that started this one.
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


def time_many(run: Callable[[int], float], seconds: float, most: int = 10_000) -> float:
    """Seconds of one of many, the median of turns.

    Args:
      run: a number → the seconds that as many take; the first call compiles.
      seconds: that a turn takes, about.
      most: that a turn has.
    """
    run(1)
    once = max(run(1), 1e-6)
    count = min(max(1, round(seconds / once)), most)
    if count > 1:  # what is quick is better known from many
        count = min(max(1, round(seconds / max(run(count) / count, 1e-6))), most)
    return statistics.median(run(count) / count for _ in range(TURNS))
