"""Files that say who is at work on something, so that two processes do not do the same."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from hvae_jax.errors import RunError

RETRY_SECONDS = 0.5


class Claimed(RunError):
    """Another process is at work on it."""


@contextlib.contextmanager
def claim(file: pathlib.Path, what: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds `file` for as long as it is entered; the end of the process, by any means, lets go of it.

    Args:
      file: created where absent, with its folder.
      what: is claimed, for the error: "chunk 0002".
      wait_seconds: to try for.

    Raises:
      Claimed: another process holds it.
      RunError: the file cannot be written.
    """
    deadline = time.monotonic() + wait_seconds
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}") from error
    with handle:
        while not _lock(handle.fileno(), fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise Claimed(f"{what} is being worked on by {holder(file)}; it was not started twice")
            time.sleep(RETRY_SECONDS)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def is_claimed(file: pathlib.Path) -> bool:
    """Whether a process holds it now."""
    if not file.exists():
        return False
    with file.open("a+", encoding="utf-8") as handle:
        return not _lock(handle.fileno(), fcntl.LOCK_SH)


def holder(file: pathlib.Path) -> str:
    """Who claimed it last."""
    return file.read_text("utf-8") or "another process"


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: then only Slurm's queue tells who is at work
    return True
