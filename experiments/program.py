"""What the command line programs share: one-line errors and the compile cache."""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from hvae_jax import processes
from hvae_jax.data import Dataset
from hvae_jax.errors import RunError, Stopped

# On two cores, two devices took 0.76 to 0.9 of the time of one from 64 images each, and 1.07 to 1.3 with 32.
MIN_IMAGES_PER_DEVICE = 64


def run(main: Callable[[list[str]], None], resumes: bool = True) -> None:
    """Parses the flags and calls `main` with what is not a flag.

    A RunError or a bad flag ends as one line and status 1.
    """
    try:
        arguments = flags.FLAGS(sys.argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        _exit(f"{error.args[0] if isinstance(error, KeyError) else error}")
    sys.unraisablehook = _unraisable
    use_compile_cache()
    app.run(lambda _: _main(main, arguments, resumes), argv=sys.argv[:1])


def read_config(holder: flags.FlagHolder) -> tuple[str, dict[str, Any]]:
    """The name of the config file, without folder and suffix, and its content.

    Raises:
      RunError: it cannot be loaded.
    """
    path = config_flags.get_config_filename(flags.FLAGS[holder.name])
    try:
        return pathlib.Path(path).stem, holder.value.to_dict()
    except OSError as error:  # ml_collections reports a file that cannot be loaded here
        reason = str(error).strip().splitlines()[-1].strip()
        raise RunError(f"--config={path} cannot be loaded: {reason}") from error


def show_notices(dataset: Dataset) -> None:
    """Prints what became of the data on the way in, and what looks wrong with them."""
    for notice in dataset.notices:
        print(f"note: {notice}", file=sys.stderr, flush=True)


def split_cpu(num_devices: int) -> None:
    """Makes as many devices of the CPU.

    Call it before anything runs on a device. It leaves GPUs and TPUs alone, and a number of CPU devices
    that the user has set.
    """
    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    # JAX does not declare this attribute, hence getattr.
    if not is_set and getattr(jax.config, "jax_num_cpu_devices") == -1:  # noqa: B009
        jax.config.update("jax_num_cpu_devices", num_devices)


def split_cpu_for_batch(batch_size: int) -> None:
    """`split_cpu` as far as a batch is large enough to share; a run's numbers do not depend on it."""
    largest = min(num_cores(), batch_size // MIN_IMAGES_PER_DEVICE)
    split_cpu(max((n for n in range(1, largest + 1) if batch_size % n == 0), default=1))


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main(main: Callable[[list[str]], None], arguments: list[str], resumes: bool) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX tells at INFO of every kind of device that is absent
    try:
        main(arguments)
        processes.finish()
    except jax.errors.JaxRuntimeError as error:
        if processes.count() == 1:
            raise
        _exit(processes.lost(error))
    except (RunError, Stopped) as error:
        _exit(str(error))
    except KeyboardInterrupt:
        _exit("stopped" + "; the same command resumes from the last checkpoint" * resumes)


def stop_now() -> NoReturn:
    """Ends the program as of its last checkpoint, from any thread."""
    print("error: stopped; the same command resumes from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(1)


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # What tensorstore's threads still report of a file that could not be read; we raised it already.
    if not (isinstance(unraisable.exc_value, RuntimeError) and "loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


def _exit(message: str) -> NoReturn:
    if processes.count() > 1:
        processes.leave(message)
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(1)


def use_compile_cache() -> None:
    """Keeps compiled programs across runs: a second run starts in seconds."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "hvae_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
