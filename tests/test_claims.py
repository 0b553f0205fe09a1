"""Files that say who is at work: one at a time, and none left behind where that was asked for."""

import contextlib
import threading

import pytest

from hvae_jax.errors import RunError
from hvae_jax.files import claims


def test_a_file_that_is_not_kept_goes_whatever_happens_and_another_stays(tmp_path):
    for is_kept in (True, False):
        file = tmp_path / f"{is_kept}.lock"
        with contextlib.suppress(RunError), claims.claim(file, "it", is_kept=is_kept):
            assert claims.is_claimed(file)
            with (
                pytest.raises(claims.Claimed, match="it is being worked on by process"),
                claims.claim(file, "it"),
            ):
                pass
            raise RunError("refused")
        assert file.exists() == is_kept
        assert not claims.is_claimed(file)


def test_who_waited_for_a_file_that_was_then_removed_holds_the_one_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RETRY_SECONDS", 0.01)
    file, waits, holds, checked = tmp_path / "lock", *(threading.Event() for _ in range(3))
    lock = claims._lock

    def wait_and_hold():
        # It has opened the file before it is removed, and locks it only afterwards.
        def late_lock(descriptor):
            if not waits.is_set():
                waits.set()
                assert removed.wait(10)
            return lock(descriptor)

        monkeypatch.setattr(claims, "_lock", late_lock)
        with claims.claim(file, "it", wait_seconds=10):
            holds.set()
            assert checked.wait(10)

    removed, thread = threading.Event(), threading.Thread(target=wait_and_hold)
    with claims.claim(file, "it", is_kept=False):
        thread.start()
        assert waits.wait(10)
    removed.set()
    assert holds.wait(10)
    assert claims.is_claimed(file)
    with pytest.raises(claims.Claimed), claims.claim(file, "it"):
        pass
    checked.set()
    thread.join()
