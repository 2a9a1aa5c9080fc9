"""Files of a dataset: folder listings, image ids from file names, text lists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bigain.errors import InputError
from bigain.runs.numbers import counted

_SUFFIXES: tuple[str, ...] = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
_SUFFIXES += (".gif", ".ppm", ".pgm", ".jp2", ".avif")
# Made by macOS, a Synology disk station, Linux and Windows.
_STRAY = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini")
# Hugging Face appends the class to the official name: ILSVRC2012_val_00000293_n01440764.JPEG.
_OFFICIAL = re.compile(r"(ILSVRC2012_val_\d{8})_n\d{8}")


def scan(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the names of a folder's subfolders, of its image files and of everything else, sorted.

    Folders that are hidden or made by an operating system count as everything else; such files are left out.

    Raises:
        InputError: If it cannot be listed.
    """
    folders: list[str] = []
    images: list[str] = []
    others: list[str] = []
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    for name in names:
        is_stray = name.startswith(".") or name in _STRAY
        if not is_stray and name.lower().endswith(_SUFFIXES):
            images.append(name)
        # False for a link to itself.
        elif os.path.isdir(folder / name):
            (others if is_stray else folders).append(name)
        elif not is_stray:
            others.append(name)
    return folders, images, others


def scan_classes(root: Path, folders: Iterable[str], expected: str) -> tuple[list[Path], list[str]]:
    """Return the images in class folders, and a note of everything else below `root`, if there is any."""
    _, images, others = scan(root)
    files, ignored = [], [*images, *others]
    for folder in folders:
        nested, images, others = scan(root / folder)
        files += [root / folder / name for name in images]
        ignored += [f"{folder}/{name}" for name in [*(f"{name}/" for name in nested), *others]]
    return files, [f"{root}: ignored {shortened(ignored)}; {expected}"] if ignored else []


def stem_of(name: str) -> str:
    """Return the image id of a file name: without folder, suffix and appended class, the same in every layout."""
    base = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    stem = stem if dot and f".{suffix.lower()}" in _SUFFIXES else base
    official = _OFFICIAL.fullmatch(stem)
    return official[1] if official else stem


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Index image files by `stem_of` their names.

    Raises:
        InputError: If two files have the same id.
    """
    files: dict[str, Path] = {}
    for path in paths:
        other = files.setdefault(stem_of(path.name), path)
        if other is not path:
            raise InputError(f"{path} and {other} have the same image id {stem_of(path.name)!r}; rename or remove one")
    return files


def listed_files(folder: Path, names: Mapping[str, str], source: Path, remedy: str) -> dict[str, Path]:
    """Return the path in a folder of every listed image; `names` are the file names by image id.

    Raises:
        InputError: If a file is missing; the message names the list `source` and ends with `remedy`.
    """
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [name for name in names.values() if name not in present]
    if missing:
        files = f"{len(missing)} of {counted(len(names), 'image')} that {source} lists, the first {missing[0]}"
        raise InputError(f"{folder} lacks {files}; {remedy}")
    return {image_id: folder / name for image_id, name in names.items()}


def listing(folder: Path) -> str:
    """Describe the content of a folder, for messages."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    names = sorted(os.listdir(folder))
    return f"{folder} holds {shortened(names)}" if names else f"{folder} is empty"


def shortened(names: Sequence[str]) -> str:
    """Join names, at most the first few, for messages."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def read_text(path: Path, expected: str) -> str:
    """Return the content of a UTF-8 text file.

    Raises:
        InputError: If the file cannot be read or is not UTF-8; the message ends with `expected`, the expected content.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); {expected}") from error


def read_lines(path: Path, expected: str) -> list[tuple[int, str]]:
    """Return number (from 1) and content of the lines of a text file that are not blank, stripped: see `read_text`."""
    lines = read_text(path, expected).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def is_number(text: str) -> bool:
    """Return whether a text is a non-negative integer; Python refuses to parse thousands of digits."""
    return text.isdecimal() and len(text) <= 18
