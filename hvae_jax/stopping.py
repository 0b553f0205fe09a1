"""Signals that ask a program to stop, as a question that a training loop can put between its steps."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

# Preemption and the end of a Slurm job's time: SIGTERM, and the signal that was ordered at submission.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Slurm kills 30 s after SIGTERM unless a cluster's KillWait says otherwise.
STOP_SECONDS = 20.0


class StopSignals:
    """While it is entered, `STOP_SIGNALS` are requests to stop; what they did before comes back after it.

    A loop that asks `requested` saves its state and ends. What cannot ask, a compilation or a long
    compiled call, can be cut short: `overdue`, if given, is called from another thread when `seconds`
    have passed since the first signal. To be entered in the main thread.
    """

    def __init__(self, overdue: Callable[[], None] | None = None, seconds: float = STOP_SECONDS) -> None:
        self._overdue, self._seconds = overdue, seconds
        self._requested = threading.Event()

    def __enter__(self) -> "StopSignals":
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._old = {number: signal.signal(number, _nothing) for number in STOP_SIGNALS}
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
        deadline = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._read_end], [], [], left)[0]:
                if self._overdue is not None:
                    self._overdue()
                return
            for number in os.read(self._read_end, 64):
                if number == 0:
                    return
                if number in STOP_SIGNALS and deadline is None:
                    deadline = time.monotonic() + self._seconds
                    self._requested.set()


def _nothing(number: int, frame: FrameType | None) -> None:
    """The watching thread does it."""
