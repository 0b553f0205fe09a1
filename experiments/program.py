"""What the command line programs share: one-line errors, help, flags, files, devices, compile cache."""

import contextlib
import os
import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import jax
from absl import app, flags, logging

from experiments import config_files, streams, usage
from experiments.config_files import read as read_config
from experiments.environment import (
    check_xla_flags,
    compile_sooner,
    split_cpu,
    split_cpu_for_batch,
    start_devices,
    use_compile_cache,
)
from experiments.paths import file_flag, folder_flag, make_parent, source_flag
from hvae_jax.cores import num_cores
from hvae_jax.data import Dataset
from hvae_jax.errors import RunError, Stopped
from hvae_jax.training import processes

__all__ = [
    "compile_sooner",
    "describe",
    "file_flag",
    "folder_flag",
    "make_parent",
    "num_cores",
    "read_config",
    "run",
    "show_notices",
    "source_flag",
    "split_cpu",
    "split_cpu_for_batch",
    "start",
    "start_devices",
    "stop_now",
    "use_compile_cache",
]


def run(main: Callable[[list[str]], None], resumes: bool = True) -> None:
    """Parses the flags and calls `main` with what is not a flag.

    A RunError, a bad flag and what the machine refuses end as one line and status 1. With --help, the
    docstring of `main`'s module and its flags are printed instead.

    Args:
      main: the program.
      resumes: the same command goes on where this one is stopped.
    """
    start(main)
    try:
        check_xla_flags()
        compile_sooner()
        config_files.prepare_flags(start_devices)
        arguments = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
        _exit(f"--{missing[1]} must be given; --help names all flags" if missing else str(error))
    except UnicodeDecodeError as error:  # of a --flagfile; no other file is read as text here
        _exit(f"a file that a flag names is no text in UTF-8: {error}")
    except (RunError, AttributeError, LookupError, TypeError, ValueError, OSError, ImportError) as error:
        _exit(f"{error.args[0] if isinstance(error, KeyError) else error}")
    except KeyboardInterrupt:
        _exit("stopped before anything was done")
    sys.unraisablehook = _unraisable
    sys.excepthook = _uncaught
    use_compile_cache()
    try:
        app.run(lambda _: _main(main, arguments, resumes), argv=sys.argv[:1])
    except BrokenPipeError:
        if not any(map(streams.is_closed, (sys.stdout, sys.stderr))):
            raise
        streams.end_quietly()
    finally:
        _flush()


def start(main: Callable[..., None]) -> None:
    """Readies standard output and error; where help is asked for, gives it and ends the program."""
    sys.excepthook = sys.__excepthook__  # of the imports, see this package's __init__
    streams.make_tolerant()
    if usage.is_asked(sys.argv[1:]):
        try:
            print(usage.text(main, sys.argv[1:]))
        except BrokenPipeError:
            streams.end_quietly()
        _flush()
        sys.exit(0)


def show_notices(dataset: Dataset) -> None:
    """Prints what became of the data on the way in, and what looks wrong with them."""
    for notice in dataset.notices:
        print(f"note: {notice}", file=sys.stderr, flush=True)


def _main(main: Callable[[list[str]], None], arguments: list[str], resumes: bool) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX tells at INFO of every kind of device that is absent
    try:
        main(arguments)
        processes.finish()
    except Exception as error:
        message = describe(error)
        if message is None:
            raise
        _exit(message)
    except KeyboardInterrupt:
        _exit("stopped" + "; the same command resumes from the last checkpoint" * resumes)


def describe(error: Exception) -> str | None:
    """What to say of an error that is no mistake in here; None of one that is, or of a closed pipe."""
    if isinstance(error, RunError | Stopped):
        return str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        if processes.count() > 1:
            return processes.lost(error)
        return _out_of_memory(error) if "RESOURCE_EXHAUSTED" in str(error) else None
    if isinstance(error, MemoryError):
        return _out_of_memory(error)
    # A full or read-only disk, a folder where a file should be: the machine's.
    if isinstance(error, OSError) and error.strerror and not isinstance(error, BrokenPipeError):
        is_path = isinstance(error.filename, str | bytes | os.PathLike)
        where = os.fsdecode(error.filename) if is_path else "standard output or a file cannot be written"
        return f"{where}: {error.strerror}"
    return None


def stop_now() -> NoReturn:
    """Ends the program as of its last checkpoint, from any thread."""
    print("error: stopped; the same command resumes from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(1)


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if not _is_aftermath(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not _is_aftermath(error):
        sys.__excepthook__(kind, error, traceback)


def _is_aftermath(error: BaseException | None) -> bool:
    """What tensorstore's threads still report of a file that could not be read; we raised it already."""
    return isinstance(error, RuntimeError) and "loop is closed" in str(error)


def _out_of_memory(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return (
        f"out of memory{f' ({said})' if said else ''}; lower what is held at a time: "
        "config.training.batch_size, config.model.channels, config.evaluation.num_samples or "
        "num_importance_samples, of a grid config.grid.chunk_size"
    )


def _exit(message: str) -> NoReturn:
    if processes.count() > 1:
        processes.leave(message)
    with contextlib.suppress(OSError):  # nobody may be there to read it
        print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(1)


def _flush() -> None:
    try:
        streams.flush()
    except BrokenPipeError:
        sys.exit(streams.CLOSED_PIPE_STATUS)
    except OSError as error:
        _exit(f"standard output cannot be written: {error.strerror}")
