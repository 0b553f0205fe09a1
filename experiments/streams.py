"""Standard output and error as they are found: in any encoding, into a pipe that may close, or not there."""

import codecs
import contextlib
import os
import select
import signal
import sys
from typing import Any, NoReturn, TextIO

# As programs end that the signal ends: what a shell expects of one whose reader went away.
CLOSED_PIPE_STATUS = 128 + signal.SIGPIPE
_SUBSTITUTES = {
    "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "≈": "~",
    "±": "+-", "²": "^2", "√": "sqrt", "∞": "inf", "‖": "||", "✓": "yes", "’": "'", "“": '"', "”": '"',
    "α": "alpha", "β": "beta", "γ": "gamma", "μ": "mu", "σ": "sigma", "Σ": "sum ", "Δ": "delta ",
}  # fmt: skip


def make_tolerant() -> None:
    """What an encoding cannot say is written in words or escaped, never an error."""
    codecs.register_error("readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)  # neither None nor a test's stream has it
        if reconfigure is not None:
            reconfigure(errors="readable")


def is_closed(stream: TextIO | None) -> bool:
    """Whether it is a pipe that nobody reads any more."""
    try:
        descriptor = -1 if stream is None else stream.fileno()
    except (OSError, ValueError):  # a test's stream
        return False
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def flush() -> None:
    """Writes what is held back; what then still fails at the end of Python goes nowhere.

    Raises:
      OSError: it cannot be written.
    """
    failed: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:  # None where the shell closed it
                stream.flush()
        except OSError as error:
            failed = error
            drop(stream)
    if failed is not None:
        raise failed


def drop(stream: TextIO | None) -> None:
    """Lets what is written to it from now on go nowhere."""
    if stream is not None:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def end_quietly() -> NoReturn:
    """Ends the program whose reader went away, without a word."""
    for stream in (sys.stdout, sys.stderr):
        if is_closed(stream):
            drop(stream)
    sys.exit(CLOSED_PIPE_STATUS)


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = ""
    for letter in error.object[error.start : error.end]:
        text += _SUBSTITUTES.get(letter, letter.encode("ascii", "backslashreplace").decode())
    return text, error.end
