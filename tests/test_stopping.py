import os
import signal
import threading
import time

import pytest

from hvae_jax.training import stopping
from hvae_jax.training.stopping import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_a_request_and_comes_back_after_it(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert wait_for(signals.requested)
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not signals.requested()
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_second_ctrl_c_ends_at_once_but_not_the_same_one_twice(monkeypatch):
    monkeypatch.setattr(stopping, "SAME_SECONDS", 0.2)
    ended = threading.Event()
    with StopSignals(ended.set, seconds=600.0) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert wait_for(signals.requested)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)  # handed on by what started this program
        assert not ended.wait(0.1)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not ended.wait(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        assert ended.wait(10)


def test_how_long_it_may_take_is_that_of_the_moment():
    ended = threading.Event()
    with StopSignals(ended.set, seconds=600.0) as signals:
        signals.seconds = 0.0
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(10)


def wait_for(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()
