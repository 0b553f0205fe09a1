"""Signals that ask a program to stop, as a question that a training loop can put between its steps."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

# Ctrl-C, a terminal that closes; preemption and the end of a Slurm job's time: SIGTERM, and the signal that
# was ordered at submission.
STOP_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Slurm kills 30 s after SIGTERM unless a cluster's KillWait says otherwise.
STOP_SECONDS = 20.0
# A second Ctrl-C within this is the same one, handed on by a program in between.
SAME_SECONDS = 0.5


class StopSignals:
    """While it is entered, `STOP_SIGNALS` are requests to stop; what they did before comes back after it.

    A loop that asks `requested` saves its state and ends. What cannot ask, a compilation or a long
    compiled call, can be cut short: `overdue`, if given, is called from another thread when `seconds`
    have passed since the first signal, or at a second Ctrl-C. A signal that is ignored, as SIGHUP is under
    nohup, stays ignored. To be entered in the main thread.

    Attributes:
      seconds: may be changed at any time: how long what runs then may take from a first signal on.
    """

    def __init__(self, overdue: Callable[[], None] | None = None, seconds: float = STOP_SECONDS) -> None:
        self._overdue, self.seconds = overdue, seconds
        self._requested = threading.Event()

    def __enter__(self) -> "StopSignals":
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._old = {number: signal.signal(number, _nothing) for number in heeded}
        # Python's own handlers wait until the main thread comes back from compiled code; this does not.
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.write(self._write_end, bytes([0]))
        self._thread.join()
        os.close(self._read_end)
        os.close(self._write_end)

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._requested.is_set()

    def _watch(self) -> None:
        first, deadline = 0.0, None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._read_end], [], [], left)[0]:
                if self._overdue is not None:
                    self._overdue()
                return
            for number in os.read(self._read_end, 64):
                if number == 0:
                    return
                now = time.monotonic()
                if number in self._old and deadline is None:
                    first, deadline = now, now + self.seconds
                    self._requested.set()
                elif number == signal.SIGINT and now - first > SAME_SECONDS:
                    deadline = now


def _nothing(number: int, frame: FrameType | None) -> None:
    """The watching thread does it."""
