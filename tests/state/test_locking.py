"""One holder at a time, also where a holder takes the lock file with it."""

import os

import pytest

from lit_wsl.state import locking
from lit_wsl.state.locking import acquire_lock


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path):
    path = tmp_path / "x.lock"
    first = acquire_lock(path, wait=False)
    with pytest.raises(BlockingIOError):
        acquire_lock(path, wait=False)
    first.close()
    acquire_lock(path, wait=True).close()


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch, again):
    """Its holder removed it, and perhaps another made a new one: whoever waited must lock what lies there now."""
    path, flock, times = tmp_path / "x.lock", locking.fcntl.flock, []

    def lose(lock, flags):
        flock(lock, flags)
        times.append(lock)
        if len(times) == 1:
            path.unlink()
            if again:
                path.touch()

    monkeypatch.setattr(locking.fcntl, "flock", lose)
    lock = acquire_lock(path, wait=False)
    assert len(times) == 2
    assert times[0].closed
    assert os.path.samestat(os.fstat(lock.fileno()), path.stat())
    lock.close()
