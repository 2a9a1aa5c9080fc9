"""One process at a time in a run directory."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from bigain.errors import InputError

# The processes that load data for a run that was killed notice within 5 s.
_PATIENCE_S = 10

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

_log = logging.getLogger(__name__)


def lock(folder: Path, rank: int) -> BaseFileLock:
    """Take the place of one process in a run directory. It is free again when the process ends, however it ends.

    Args:
        folder: The run directory, which exists.
        rank: Number of the process.

    Returns:
        A lock to release; the same process can take it again.

    Raises:
        InputError: If another process has it.
    """
    path = _path(folder, rank)
    # A singleton: the command line locks before anything is deleted, the writer of the log for whoever has no command.
    held: BaseFileLock = FileLock(path, timeout=_PATIENCE_S, is_singleton=True)
    try:
        held.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder} is in use: another process holds {path}; wait for it or stop it, or choose another --output"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise InputError(f"cannot write {path}: {error}; choose another --output") from error
        _log.warning(f"warning: {folder} is on a file system without locks; let one run at a time use it")
    return held


def refuse_left_over(folder: Path, world_size: int) -> None:
    """Make sure that no process of a larger run is still there.

    Args:
        folder: The run directory.
        world_size: Number of processes of this run; each makes sure of its own place.

    Raises:
        InputError: If there is one.
    """
    for path in folder.glob(".lock-*"):
        rank = path.name.removeprefix(".lock-")
        if rank.isdecimal() and int(rank) >= world_size:
            lock(folder, int(rank)).release()


def _path(folder: Path, rank: int) -> Path:
    return folder / f".lock-{rank}"
