"""Where labelled images lie: class folders, a flat folder with a list, or parquet files. Labels never need decoding."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigain.data.preprocessing import read_bytes
from bigain.errors import InputError

_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
# Hugging Face appends the class to the official name: ILSVRC2012_val_00000293_n01440764.JPEG.
_OFFICIAL = re.compile(r"(ILSVRC2012_val_\d{8})_n\d{8}")


class ImageSource(ABC):
    """A collection of labelled images, each with an id."""

    @abstractmethod
    def labels(self) -> dict[str, str]:
        """Class of every image by id: a WordNet id, or whatever names the class. In a fixed order."""

    def position(self, image_id: str) -> tuple[int, ...]:
        """Where the image lies among the others on disk, for reading neighbours together."""
        return ()

    @abstractmethod
    def read(self, image_id: str) -> bytes:
        """The encoded image.

        Raises:
            InputError: If it cannot be read.
        """

    @abstractmethod
    def where(self, image_id: str) -> str:
        """Where the image is, for messages."""


class Files(ImageSource):
    """Image files with known paths and classes."""

    def __init__(self, files: Mapping[str, tuple[Path, str]]) -> None:
        """Take the files.

        Args:
            files: Path and class of every image by id.
        """
        self._files = files

    def labels(self) -> dict[str, str]:
        return {image_id: label for image_id, (_, label) in self._files.items()}

    def read(self, image_id: str) -> bytes:
        return read_bytes(self._files[image_id][0])

    def where(self, image_id: str) -> str:
        return str(self._files[image_id][0])


def class_folders(folder: Path, by_stem: bool) -> Files:
    """Images of `<folder>/<class>/<image>`, folders and files in name order.

    Args:
        folder: The tree.
        by_stem: Identify images by the file's stem alone, which must then be unique; otherwise by `class/file`.

    Raises:
        InputError: If two images have the same id.
    """
    paths: dict[str, Path] = {}
    for label in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        for name in image_files(folder / label):
            _add(paths, stem_of(name) if by_stem else f"{label}/{name}", folder / label / name)
    return Files({image_id: (path, path.parent.name) for image_id, path in paths.items()})


def listed_files(folder: Path, labels: Mapping[str, str], source: Path) -> Files:
    """Images of a flat folder whose classes a list gives.

    Args:
        folder: Holds the images.
        labels: Class by image id (the stem).
        source: The list, for messages.

    Raises:
        InputError: If the list names an image that is not there, or two images have the same id.
    """
    present: dict[str, Path] = {}
    for name in image_files(folder):
        _add(present, stem_of(name), folder / name)
    absent = [image_id for image_id in labels if image_id not in present]
    if absent:
        raise InputError(
            f"{source} names {len(absent)} of {len(labels)} images that are not in {folder}, the first {absent[0]}; "
            "complete the folder or shorten the list"
        )
    return Files({image_id: (present[image_id], label) for image_id, label in sorted(labels.items())})


def _add(paths: dict[str, Path], image_id: str, path: Path) -> None:
    if image_id in paths:
        raise InputError(f"{path} and {paths[image_id]} have the same image id {image_id!r}; rename or remove one")
    paths[image_id] = path


def image_files(folder: Path) -> list[str]:
    """Names of the image files of a folder, sorted; not the hidden ones, such as the `._` files that macOS leaves."""
    names = (entry.name for entry in os.scandir(folder))
    return sorted(name for name in names if name.lower().endswith(_SUFFIXES) and name[0] != ".")


def stem_of(name: str) -> str:
    """Image id of a file name: without folder, suffix and appended class, so that every layout gives the same id."""
    base = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    stem = stem if dot and f".{suffix.lower()}" in _SUFFIXES else base
    official = _OFFICIAL.fullmatch(stem)
    return official[1] if official else stem


def found_in(folder: Path, most: int = 6) -> str:
    """What a folder holds, for messages."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    names: Sequence[str] = sorted(entry.name for entry in os.scandir(folder))
    if not names:
        return f"{folder} is empty"
    return f"{folder} holds {', '.join(names[:most])}" + (f" and {len(names) - most} more" if len(names) > most else "")
