"""Lists of the classes of a flat ImageNet `val/`."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from bigain.data.class_names.imagenet import wnids
from bigain.data.folders import is_number, read_lines, stem_of
from bigain.errors import InputError

# Places of the lists as unpacked from Kaggle, the devkit and Caffe.
USUAL_PLACES = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
    "data/ILSVRC2012_validation_ground_truth.txt",
    "val.txt",
)
_FORMS = (
    "expected LOC_val_solution.csv, the devkit's ILSVRC2012_validation_ground_truth.txt beside its meta.mat, lines of "
    "'image class' with a wnid or an index in 0..999, or one wnid per line in the order of the official images"
)
# Raised by scipy and numpy for a damaged file or different content.
_NOT_A_TABLE = (MatReadError, ValueError, LookupError, TypeError, OSError, NotImplementedError, zlib.error)


def read_ground_truth(path: Path) -> dict[str, str]:
    """Read the wnid of every image in a list, by stem.

    Raises:
        InputError: If the list has none of these forms, or names a class that ImageNet-1K does not have.
    """
    known = wnids()
    lines = [line for _, line in read_lines(path, _FORMS)]
    if not lines:
        raise InputError(f"ground-truth list {path} is empty; {_FORMS}")
    if lines[0].lower().startswith("imageid,"):
        # All boxes of an image have its one class.
        pairs = [(row[0], (" ".join(row[1:2]).split() or [""])[0]) for row in csv.reader(lines[1:]) if row]
    elif all(is_number(line) for line in lines):
        wnid_of = _devkit_classes(path.with_name("meta.mat"), path)
        pairs = _numbered([wnid_of.get(int(line), f"number {line}") for line in lines])
    elif set(lines) <= set(known):
        pairs = _numbered(lines)
    else:
        pairs = [(line.split()[0], line.split()[-1]) for line in lines]
    labels: dict[str, str] = {}
    allowed = set(known)
    for name, label in pairs:
        stem = stem_of(name)
        if stem in labels:
            raise InputError(f"ground-truth list {path} names {stem} twice")
        wnid = known[int(label)] if is_number(label) and int(label) < len(known) else label
        if wnid not in allowed:
            raise InputError(f"{path} gives {name} the class {label!r}, which ImageNet-1K does not have; {_FORMS}")
        labels[stem] = wnid
    return labels


def _numbered(labels: list[str]) -> list[tuple[str, str]]:
    return [(f"ILSVRC2012_val_{i:08d}", label) for i, label in enumerate(labels, 1)]


def _devkit_classes(meta: Path, path: Path) -> dict[int, str]:
    """Read the wnid of every ILSVRC2012_ID: only meta.mat defines the devkit's order of classes."""
    if not meta.is_file():
        raise InputError(f"{path} numbers classes in the order of the devkit's data/meta.mat; copy that file to {meta}")
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except _NOT_A_TABLE as error:
        raise InputError(f"{meta} is not the devkit's table of classes ({error})") from error
