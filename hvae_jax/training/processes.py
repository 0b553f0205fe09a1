"""One run over several processes: who they are, what they agree on, and how they end together.

JAX's own runtime connects them. Process 0 alone reads and writes the run folder and tells the others
what it read, so the folder need not be shared; the data set is read by every process.
"""

import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from hvae_jax.errors import RunError, first_line

T = TypeVar("T")

# A process that falls silent is given up after this long; only the end of process 0 is known at once.
HEARTBEAT_SECONDS = 30
# At the end, process 0 draws while the others wait for it.
_SHUTDOWN_SECONDS = 3600
# How long a process that fails waits for the others to read why.
_TELL_SECONDS, _LISTEN_SECONDS = 2.0, 0.25
_WHY_KEY = "hvae_jax/why"
_RESUMES = "start all processes again, with the same command each: they resume from the last checkpoint"

_ending = threading.Lock()


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout_s: float = 120.0
) -> int:
    """Connects the processes of a run, before anything runs on a device.

    Args:
      coordinator: HOST:PORT that process 0 listens on, or "auto" to have JAX find all three (Cloud TPU,
        Slurm, Open MPI, Kubernetes). None connects where the environment says that there are several
        processes: a Slurm step of several tasks, or several names in TPU_WORKER_HOSTNAMES.
      num_processes, process_id: given with HOST:PORT, not otherwise.
      timeout_s: for all processes to arrive.

    Returns:
      the number of processes; 1 where nothing was to be done.

    Raises:
      RunError: flags that do not fit together, or processes that do not arrive.
    """
    arguments = _arguments(coordinator, num_processes, process_id)
    if arguments is None:
        return 1
    where = f"--coordinator={coordinator}" if coordinator else "the processes of this job"
    apart = f"{where}: not all processes came together within {timeout_s:g} s"
    advice = "start every --process_id once, with one --num_processes and an address that all can reach"
    _handle_abort(f"{apart}; {advice}")
    # It would take SIGTERM away from us.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=max(1, round(timeout_s)),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise RunError(f"{apart} ({first_line(error)}); {advice}") from error
    if count() > 1:
        _handle_abort(f"process {jax.process_index()} lost another process of this run; {_RESUMES}")
        threading.Thread(target=_listen, daemon=True).start()
    return count()


def count() -> int:
    """The number of processes; starts no backend, unlike `jax.process_count`."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, which writes."""
    return count() == 1 or jax.process_index() == 0


def from_main(read: Callable[[], T], like: T) -> T:
    """What `read` returns on process 0, on every process.

    Args:
      read: called on process 0 alone.
      like: arrays of the structure, shapes and types that `read` returns.
    """
    if count() == 1:
        return read()
    tree = read() if is_main() else jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return multihost_utils.broadcast_one_to_all(jax.device_get(tree))


def values_from_main(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same for plain values that JSON can hold."""
    if count() == 1:
        return read()
    content = np.frombuffer(json.dumps(read() if is_main() else {}).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = np.resize(content, size)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8)))


def gather(tree: Any) -> Any:
    """Arrays `[D, ...]` of every process, one after the other, as NumPy arrays `[P · D, ...]`."""
    tree = jax.tree.map(np.asarray, tree)
    return tree if count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def agree(stop: bool, num_steps: int) -> tuple[bool, int]:
    """Whether any process wants to stop, and how many steps process 0 wants to take at a time."""
    if count() == 1:
        return stop, num_steps
    wishes = multihost_utils.process_allgather(np.array([stop, num_steps], np.int32))
    return bool(wishes[:, 0].any()), int(wishes[0, 1])


def check_same(contents: Mapping[str, bytes]) -> None:
    """That every process was given the same.

    Args:
      contents: what it is called → its bytes.

    Raises:
      RunError: one that differs, naming the processes.
    """
    if count() == 1:
        return
    sums = multihost_utils.process_allgather(
        np.array([zlib.crc32(content) for content in contents.values()], np.uint32)
    )
    for name, column in zip(contents, sums.T, strict=True):
        others = np.flatnonzero(column != column[0]).tolist()
        if others:
            raise RunError(f"{name} of process {others[0]} is not that of process 0; give all the same")


def finish() -> None:
    """Waits for the other processes to finish, too."""
    if count() > 1:
        jax.distributed.shutdown()


def leave(message: str) -> NoReturn:
    """Ends this process with one line, after telling the others why they will end."""
    if _ending.acquire(blocking=False):
        print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
        try:
            _client().key_value_set(_WHY_KEY, f"process {jax.process_index()}: {message}")
            time.sleep(_TELL_SECONDS)
        except Exception:  # another was first, or nobody is left to be told
            time.sleep(_LISTEN_SECONDS)
    else:
        time.sleep(2 * _TELL_SECONDS)  # another thread is saying it
    sys.stdout.flush()
    # Not sys.exit: JAX would wait for processes that are not coming.
    os._exit(1)


def lost(error: Exception) -> str:
    """What to say when a collective failed: most likely its other end is gone."""
    return f"process {jax.process_index()} lost another process of this run ({first_line(error)}); {_RESUMES}"


def _arguments(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any] | None:
    given = {"--num_processes": num_processes, "--process_id": process_id}
    if coordinator in (None, "auto"):
        for flag, value in given.items():
            if value is not None:
                raise RunError(f"{flag}={value} needs --coordinator=HOST:PORT, where process 0 is to listen")
        in_slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        in_slice = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        return {} if coordinator == "auto" or in_slurm or in_slice else None
    port = re.fullmatch(r"\S+:([0-9]{1,5})", coordinator or "")
    if not port or not 1 <= int(port[1]) < 2**16:
        raise RunError(f"--coordinator={coordinator} must be HOST:PORT, for example 10.0.0.1:1234, or auto")
    for flag, value in given.items():
        if value is None:
            raise RunError(f"--coordinator={coordinator} also needs {flag}")
    assert num_processes is not None
    assert process_id is not None
    if num_processes < 1:
        raise RunError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise RunError(
            f"--process_id={process_id} must be 0 to {num_processes - 1} with --num_processes={num_processes}"
        )
    if num_processes == 1:
        return None
    return {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}


def _client() -> Any:
    # The key-value store of the processes has no public name.
    from jax._src import distributed

    return distributed.global_state.client


def _listen() -> None:
    """Ends this process when another has said why it ends."""
    while True:
        time.sleep(_LISTEN_SECONDS)
        try:
            why = _client().key_value_try_get(_WHY_KEY)
        except Exception:
            if _client() is None:  # finished
                return
            continue  # nothing was said
        if _ending.acquire(blocking=False):
            print("error:", f"ended with {' '.join(why.split())}", file=sys.stderr, flush=True)
            os._exit(1)
        return


def _handle_abort(message: str) -> None:
    # Where process 0 is gone or never there, or the heartbeat of another stops, JAX's C++ client prints
    # where it stands and aborts, which no Python handler sees. This one runs in the thread that aborts, as
    # a function it calls.
    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(_: int) -> None:
        if _ending.acquire(blocking=False):
            os.write(2, f"error: {message}\n".encode())
            os._exit(1)
        time.sleep(2 * _TELL_SECONDS)
        os._exit(1)

    _KEPT.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_KEPT: list[Any] = []  # C holds no reference to a Python function
