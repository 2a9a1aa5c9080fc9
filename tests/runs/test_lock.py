"""One process at a time in a run directory, however the one before ended."""

import errno
import os
import subprocess
import sys

import pytest

from bigain.errors import InputError
from bigain.runs import lock as locks
from bigain.runs.lock import lock

HOLD = """
import sys
from pathlib import Path
from bigain.runs.lock import lock
held = lock(Path(sys.argv[1]), int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_TIMEOUT_S", 0.2)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "0"], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"is in use: another process holds .*lock-0; wait for it or stop it"):
            lock(tmp_path, 0)
        lock(tmp_path, 1).release()
        process.kill()
    lock(tmp_path, 0).release()


def test_the_same_process_can_take_its_place_again(tmp_path):
    outer = lock(tmp_path, 0)
    lock(tmp_path, 0).release()
    assert outer.is_locked
    outer.release()
    assert not outer.is_locked


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def acquire(self, *args, **kwargs):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    lock(tmp_path, 0).release()
    assert "file system without locks" in caplog.text
