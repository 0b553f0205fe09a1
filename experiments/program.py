"""What the command line programs share: one-line errors and the compile cache."""

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags

from hvae_jax.errors import RunError


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; a RunError or a bad flag ends as one line and status 1."""
    try:
        sys.argv[1:] = flags.FLAGS(sys.argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        _exit(f"{error.args[0] if isinstance(error, KeyError) else error}")
    if len(sys.argv) > 1:
        _exit(f"{sys.argv[1]!r} is not a flag; flags start with --")
    _use_compile_cache()
    app.run(lambda _: _main(main), argv=sys.argv[:1])


def _main(main: Callable[[], None]) -> None:
    try:
        main()
    except RunError as error:
        _exit(str(error))
    except KeyboardInterrupt:
        _exit("stopped; the same command resumes from the last checkpoint")


def _exit(message: str) -> None:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(1)


def _use_compile_cache() -> None:
    """Keeps compiled programs across runs: a second run starts in seconds."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "hvae_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
