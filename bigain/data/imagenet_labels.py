"""Lists that say which class the images of a flat ImageNet `val/` belong to."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from bigain.data.class_names.imagenet import wnids
from bigain.data.folders import stem_of
from bigain.data.selection import is_number, read_lines
from bigain.errors import InputError

# Where the lists lie in the trees that Kaggle, the devkit and Caffe make.
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
# What scipy and numpy raise on a file that is damaged or holds something else.
_NOT_A_TABLE = (MatReadError, ValueError, LookupError, TypeError, OSError, NotImplementedError, zlib.error)


def read_ground_truth(path: Path) -> dict[str, str]:
    """Wnid of every image that a list names, by stem.

    Args:
        path: Kaggle's CSV, the devkit's text file (with `meta.mat` beside it), lines of `image class`, or lines of
            wnids in the order of the images' official numbers.

    Raises:
        InputError: If the list is missing or in none of these forms.
    """
    if not path.is_file():
        raise InputError(f"ground-truth list {path} does not exist; {_FORMS}")
    lines = [line.strip() for line in read_lines(path) if line.strip()]
    if not lines:
        raise InputError(f"ground-truth list {path} is empty; {_FORMS}")
    if lines[0].lower().startswith("imageid,"):
        # An image's boxes are all of its one class.
        pairs = [(row[0], (" ".join(row[1:2]).split() or [""])[0]) for row in csv.reader(lines[1:]) if row]
    elif all(is_number(line) for line in lines):
        by_number = _devkit_classes(path.with_name("meta.mat"), path)
        pairs = _numbered([by_number.get(int(line), f"number {line}") for line in lines])
    elif set(lines) <= set(wnids()):
        pairs = _numbered(lines)
    else:
        pairs = [(line.split()[0], line.split()[-1]) for line in lines]
    labels: dict[str, str] = {}
    for name, label in pairs:
        stem = stem_of(name)
        if stem in labels:
            raise InputError(f"ground-truth list {path} names {stem} twice")
        labels[stem] = _wnid(label, name, path)
    return labels


def _numbered(labels: list[str]) -> list[tuple[str, str]]:
    """Labels in the order of the official images, with their names."""
    return [(f"ILSVRC2012_val_{i:08d}", label) for i, label in enumerate(labels, 1)]


def _wnid(label: str, name: str, path: Path) -> str:
    known = wnids()
    if is_number(label) and int(label) < len(known):
        return known[int(label)]
    if label in known:
        return label
    raise InputError(f"{path} gives {name} the class {label!r}, which ImageNet-1K does not have; {_FORMS}")


def _devkit_classes(meta: Path, path: Path) -> dict[int, str]:
    """Wnid of every ILSVRC2012_ID: the devkit counts classes in an order of its own, which only meta.mat tells."""
    if not meta.is_file():
        raise InputError(
            f"{path} numbers classes as the devkit does, in an order that only meta.mat tells; put the devkit's "
            f"data/meta.mat at {meta}"
        )
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except _NOT_A_TABLE as error:
        raise InputError(f"{meta} is not the devkit's table of classes ({error})") from error
