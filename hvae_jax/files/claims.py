"""Files that say who is at work on something, so that two processes do not do the same.

Where there are locks of open file descriptions (Linux), asking who holds one takes nothing; elsewhere
`flock` does, whose only question is a try.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterator

from hvae_jax.errors import RunError

RETRY_SECONDS = 0.5


class Claimed(RunError):
    """Another process is at work on it."""


@contextlib.contextmanager
def claim(file: pathlib.Path, what: str, wait_seconds: float = 0.0, is_kept: bool = True) -> Iterator[None]:
    """Holds `file` for as long as it is entered; the end of the process, by any means, lets go of it.

    Args:
      file: created where absent, with its folder.
      what: is claimed, for the error: "chunk 0002".
      wait_seconds: to try for.
      is_kept: whether the file stays when it is let go of.

    Raises:
      Claimed: another process holds it.
      RunError: the file cannot be written.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.open("ab")
        except OSError as error:
            raise RunError(f"{file} cannot be written: {error.strerror}") from error
        with handle:
            if not _lock(handle.fileno()):
                if time.monotonic() >= deadline:
                    raise Claimed(f"{what} is being worked on by {holder(file)}; it was not started twice")
                time.sleep(RETRY_SECONDS)
                continue
            if not _is_file(handle.fileno(), file):  # who held it has removed it since it was opened
                continue
            with contextlib.suppress(OSError):  # a full disk: it is claimed, only not said by whom
                os.ftruncate(handle.fileno(), 0)
                os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            try:
                yield
            finally:
                if not is_kept:
                    file.unlink(missing_ok=True)
            return


def is_claimed(file: pathlib.Path) -> bool:
    """Whether a process holds it now. Asking keeps nobody from claiming it, and writes nothing."""
    try:
        handle = file.open("rb")
    except OSError:
        return False  # nobody has made it, or it cannot be read
    with handle:
        return _is_locked(handle.fileno())


def holder(file: pathlib.Path) -> str:
    """Who claimed it last."""
    try:
        return file.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


# A file system or a kernel without such locks; others, as EAGAIN, say that it is held.
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_FLOCK = "hhqqi"  # type, from where, start, length, process: `struct flock` of 64 bits


def _is_file(descriptor: int, file: pathlib.Path) -> bool:
    """Whether what was opened is what has that name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _lock(descriptor: int) -> bool:
    if _has_description_locks():
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
            return True
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                return False
    return _try_flock(descriptor, fcntl.LOCK_EX)


def _is_locked(descriptor: int) -> bool:
    if _has_description_locks():
        try:
            ask = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, ask)
            return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                return False
    return not _try_flock(descriptor, fcntl.LOCK_SH)


def _has_description_locks() -> bool:
    return hasattr(fcntl, "F_OFD_SETLK") and struct.calcsize("P") == 8


def _try_flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: then only Slurm's queue tells who is at work
    return True
