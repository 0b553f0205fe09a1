"""What the environment says of devices and caches, looked at before it can end in a traceback."""

import contextlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax

from hvae_jax.cores import num_cores
from hvae_jax.errors import RunError

# On two cores, two devices took 0.76 to 0.9 of the time of one from 64 images each, and 1.07 to 1.3 with 32.
MIN_IMAGES_PER_DEVICE = 64
# Flags of XLA that every version knows: asking whether it does takes a third of a second.
_KNOWN_XLA_FLAGS = re.compile(
    r"--xla_force_host_platform_device_count=\d{1,4}|--xla_backend_optimization_level=[0-3]"
)
_CHECK_SECONDS = 60.0


def check_xla_flags() -> None:
    """Raises RunError where XLA would end the process because of XLA_FLAGS, which Python cannot catch."""
    given = os.environ.get("XLA_FLAGS", "")
    if all(_KNOWN_XLA_FLAGS.fullmatch(flag) for flag in given.split()):
        return
    reads_them = "from jaxlib import xla_client; xla_client.CompileOptions()"
    try:
        process = subprocess.run(
            [sys.executable, "-c", reads_them], capture_output=True, text=True, timeout=_CHECK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return  # it was only to say it better
    if process.returncode:
        said = next((line for line in process.stderr.splitlines() if "] " in line), "XLA ended")
        raise RunError(f"XLA_FLAGS={given!r} is refused: {said.partition('] ')[2] or said}; mend or unset it")


def compile_sooner() -> None:
    """Leaves out LLVM's last level of optimisation, where JAX has CPUs alone and XLA_FLAGS sets no level.

    Call it before JAX starts. Steps take as long and programs compile in four fifths of the time.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_optimization_level" not in given and _has_cpus_alone():
        os.environ["XLA_FLAGS"] = f"{given} --xla_backend_optimization_level=2".strip()


def _has_cpus_alone() -> bool:
    platforms = getattr(jax.config, "jax_platforms")  # noqa: B009
    if platforms:
        return platforms == "cpu"
    # What JAX asks for devices of other kinds; on GPUs and TPUs nothing is known of the level.
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def split_cpu(num_devices: int) -> None:
    """Makes as many devices of the CPU, and starts JAX's devices.

    Call it before anything runs on a device; after that, as when a config file computes with JAX, the
    devices stay as they are. It leaves GPUs and TPUs alone, and a number of CPU devices that the user has
    set.

    Raises:
      RunError: JAX finds no device of the kind it was asked for.
    """
    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    # JAX does not declare this attribute, hence getattr.
    if not is_set and getattr(jax.config, "jax_num_cpu_devices") == -1:  # noqa: B009
        with contextlib.suppress(RuntimeError):  # too late
            jax.config.update("jax_num_cpu_devices", num_devices)
    start_devices()


def split_cpu_for_batch(batch_size: int) -> None:
    """`split_cpu` as far as a batch is large enough to share; a run's numbers do not depend on it."""
    largest = min(num_cores(), batch_size // MIN_IMAGES_PER_DEVICE)
    split_cpu(max((n for n in range(1, largest + 1) if batch_size % n == 0), default=1))


def start_devices() -> None:
    """Has JAX find its devices.

    Raises:
      RunError: there is none of the kind it was asked for.
    """
    number = getattr(jax.config, "jax_num_cpu_devices")  # noqa: B009
    if number < 1 and number != -1:
        raise RunError(f"JAX_NUM_CPU_DEVICES={number} must be at least 1; mend or unset it")
    try:
        jax.devices()
    # Which of them depends on the platform: a CUDA without a GPU is an assertion that fails.
    except (RuntimeError, AssertionError, ValueError) as error:
        asked = getattr(jax.config, "jax_platforms")  # noqa: B009
        reason = " ".join(str(error).split()) or "there is no such device, or jax has no plugin for it"
        if asked:
            raise RunError(
                f"JAX_PLATFORMS={asked}: JAX cannot start: {reason}; unset it, or give JAX_PLATFORMS=cpu"
            ) from error
        raise RunError(
            f"JAX cannot start its devices: {reason}; JAX_PLATFORMS=cpu leaves them out"
        ) from error


def use_compile_cache() -> None:
    """Keeps compiled programs across runs: a second run starts in seconds. Without a place, there is none."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        try:
            cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
            cache = cache / "hvae_jax" / "compiled"
            cache.mkdir(parents=True, exist_ok=True)
        # No home, as under a user id without a name; not a folder for all to write to, of code that we run.
        except (OSError, RuntimeError):
            return
        if not os.access(cache, os.W_OK | os.X_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
