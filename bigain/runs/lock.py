"""One process at a time in a run directory."""

from __future__ import annotations

import errno
import logging
import os
from itertools import chain
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from bigain.errors import InputError
from bigain.runs.files import RUN_FILES

# Data loading processes of a killed run end within 5 s.
_TIMEOUT_S = 10

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

_log = logging.getLogger(__name__)


def lock(folder: Path, rank: int) -> BaseFileLock:
    """Lock a run directory for one process. The system releases the lock when the process ends or is killed.

    Whoever writes or deletes files of a run locks it first, so links in it are refused here. The same process can
    lock it again, and must release it as often.

    Raises:
        InputError: If another process holds it, or what a run writes is a symbolic link.
    """
    paths = [folder / name for name in {pattern.partition("/")[0] for pattern in RUN_FILES} | {"samples"}]
    contents = (Path(top, name) for path in paths for top, *names in os.walk(path) for name in chain(*names))
    if (link := next((path for path in chain(paths, contents) if path.is_symlink()), None)) is not None:
        raise InputError(
            f"{link} is a symbolic link, and a run writes and deletes through no link; put the file or folder itself "
            "there, or choose another --output"
        )
    path = folder / f".lock-{rank}"
    # A singleton: the command line locks before it deletes files, and the log writer locks for runs made from Python.
    file_lock: BaseFileLock = FileLock(path, timeout=_TIMEOUT_S, is_singleton=True)
    try:
        file_lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder} is in use: another process holds {path}; wait for it or stop it, or choose another --output"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise InputError(f"cannot write {path}: {error}; choose another --output") from error
        _log.warning(f"warning: {folder} is on a file system without locks; let one run at a time use it")
    return file_lock
