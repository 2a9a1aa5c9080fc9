"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from bigain.errors import InputError

# What numpy raises on a damaged `.npz`: zipfile tells of methods it does not know and of passwords by a RuntimeError.
DAMAGED_ARCHIVE = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: Where; its folder exists.
        write: Writes the content to the path it is given.

    Raises:
        InputError: If it cannot be written, for example because the disk is full.
    """
    # Of this process: another one may be writing the same file.
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp{path.suffix}"
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}; what is finished is kept, run the command again") from error
    finally:
        temporary.unlink(missing_ok=True)
