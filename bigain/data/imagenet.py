"""ImageNet-1K and ImageNet-100 validation images, in all layouts in which they are distributed."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from bigain.data.base import EvalDataModule
from bigain.data.class_names.imagenet import imagenet100_indices, names, wnids
from bigain.data.class_space import ClassSpace, prompts
from bigain.data.folders import by_stem, listing, read_lines, scan, scan_classes, shortened, stem_of
from bigain.data.parquet import read_rows
from bigain.data.selection import Item
from bigain.errors import InputError
from bigain.runs.numbers import counted

# Folders of the images, as unpacked and as in Kaggle's archive.
_FOLDERS = ("val", "ILSVRC/Data/CLS-LOC/val")
_TRAINING = ("train", "ILSVRC/Data/CLS-LOC/train")
_PARQUET = ("validation-*.parquet", "val-*.parquet", "data/validation-*.parquet", "data/val-*.parquet")
_PER_CLASS = 50
_WNID = re.compile(r"n\d{8}")
_HELP = (
    "expected val/<wnid>/*.JPEG, or val/*.JPEG with LOC_val_solution.csv or the devkit's ground-truth list, or Hugging "
    "Face's data/validation-*.parquet under `root`; the images are at https://image-net.org/download-images"
)
# Paths of the lists as unpacked from Kaggle and the devkit.
_LISTS = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
    "data/ILSVRC2012_validation_ground_truth.txt",
)
_FORMS = "expected LOC_val_solution.csv, or the devkit's ILSVRC2012_validation_ground_truth.txt beside its meta.mat"
# Raised by scipy and numpy for a damaged file or different content.
_NOT_A_TABLE = (MatReadError, ValueError, LookupError, TypeError, OSError, NotImplementedError, zlib.error)


class ImageNet1K(EvalDataModule):
    """The ILSVRC-2012 validation set, 50,000 images of 1,000 classes (Russakovsky et al., 2015); research use only.

    An image's id is its file's stem, e.g. `ILSVRC2012_val_00000293`, so every layout gives the same ids, noise and
    numbers. `per_class: 2` is our rule for the paper's 2,000 images.
    """

    name = "ImageNet-1K"

    def __init__(
        self,
        root: str = "data/imagenet",
        prompt: str = "a photo of a {}.",
        train: bool = False,
        **kwargs: Any,
    ) -> None:
        """Store the settings; nothing is read yet.

        Args:
            root: Folder that holds `val/`, or the parquet files.
            prompt: Template for a text-conditional model; `{}` is the class name.
            train: Take the training images instead, from `train/<wnid>/`; with `per_class`, so many of each class.
            **kwargs: Arguments of every dataset.
        """
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.prompt = prompt
        self.train = train

    @property
    def indices(self) -> Sequence[int]:
        """ImageNet indices of all classes, ascending; the position is the label."""
        return range(1000)

    @property
    def official_images(self) -> int | None:
        return None if self.train else _PER_CLASS * len(self.class_space)

    @property
    def expected_images(self) -> int | None:
        if self.train or self.subset is not None or self.limit is not None:
            return None
        return min(_PER_CLASS, self.per_class or _PER_CLASS) * len(self.class_space)

    @property
    def all_classes(self) -> ClassSpace:
        class_names, ids = ([texts[index] for index in self.indices] for texts in (names(), wnids()))
        return ClassSpace(names=class_names, prompts=prompts(self.prompt, class_names), indices=self.indices, ids=ids)

    def find_items(self) -> list[Item]:
        wnid_of = self._find_images()
        label = {wnids()[index]: label for label, index in enumerate(self.indices)}
        # By id, so that the order does not depend on the layout either.
        items = [Item(image_id, (label[wnid],)) for image_id, wnid in sorted(wnid_of.items()) if wnid in label]
        if not items:
            number = counted(len(wnid_of), "image")
            raise InputError(f"{self.name}: {self.root} has {number}, none of the {len(label)} classes; {_HELP}")
        return items

    def _find_images(self) -> Mapping[str, str]:
        """Find the images and return the wnid of each by id."""
        if self.train:
            folder = next((f for name in _TRAINING if (f := self.root / name).is_dir()), self.root / _TRAINING[0])
            classes = scan(folder)[0] if folder.is_dir() else []
            if not classes:
                raise InputError(f"{self.name}: no class folder, {listing(folder)}; expected train/<wnid>/*.JPEG")
            return self._class_folders(folder, classes)
        shards = sorted(file for pattern in _PARQUET for file in self.root.glob(pattern))
        folders = [self.root / name for name in _FOLDERS]
        # A single image beside parquet files is not a dataset.
        for folder in folders if shards else [*folders, self.root]:
            if folder.is_dir():
                classes, images, _ = scan(folder)
                if any(_WNID.fullmatch(name) for name in classes):
                    return self._class_folders(folder, classes)
                if images:
                    return self._listed(folder, images)
        if shards:
            self.files = rows = read_rows(shards, wnids())
            return {image_id: row.label for image_id, row in rows.items()}
        nearest = next((folder for folder in folders if folder.is_dir()), self.root)
        raise InputError(f"{self.name}: no images found, {listing(nearest)}; {_HELP}")

    def _class_folders(self, folder: Path, classes: list[str]) -> Mapping[str, str]:
        paths, self.notes = scan_classes(folder, classes, "expected <wnid>/*.JPEG")
        self.files = files = by_stem(paths)
        wnid_of = {image_id: path.parent.name for image_id, path in files.items()}
        unknown = sorted(set(wnid_of.values()) - set(wnids()))
        if unknown:
            number = counted(len(unknown), "such folder")
            raise InputError(f"{folder / unknown[0]} is not a class of ImageNet-1K ({number}); move it")
        return wnid_of

    def _listed(self, folder: Path, images: list[str]) -> Mapping[str, str]:
        list_file = next((self.root / path for path in _LISTS if (self.root / path).is_file()), None)
        if list_file is None:
            problem = f"{', '.join(_LISTS)} does not exist; put a list there"
            raise InputError(f"{self.name}: {self.root} has images but no list of their classes: {problem}")
        self.files = by_stem(folder / name for name in images)
        wnid_of = _read_list(list_file)
        if unlisted := [image_id for image_id in self.files if image_id not in wnid_of]:
            problem = f"{list_file} has no class for {len(unlisted)} of the {len(images)} images of {folder}"
            if len(unlisted) == len(images):
                raise InputError(f"{problem}, such as {unlisted[0]}; the list has images such as {next(iter(wnid_of))}")
            self.notes = [f"{problem}, which are not read: {shortened(unlisted)}"]
        return {image_id: wnid for image_id, wnid in wnid_of.items() if image_id in self.files}


class ImageNet100(ImageNet1K):
    """The hundred classes of Tian et al. (2020) from the same files: 5,000 images, labels ascending by index."""

    name = "ImageNet-100"

    @property
    def indices(self) -> Sequence[int]:
        return imagenet100_indices()


def _read_list(path: Path) -> dict[str, str]:
    """Read the wnid of every image in a list, by stem.

    Raises:
        InputError: If the list has none of these forms, or names a class that ImageNet-1K does not have.
    """
    lines = [line for _, line in read_lines(path, _FORMS)]
    if path.suffix == ".csv":
        # All boxes of an image have its one class.
        pairs = [(row[0], (" ".join(row[1:2]).split() or [""])[0]) for row in csv.reader(lines[1:]) if row]
    else:
        # In the order of the official images.
        wnid_of = _devkit_classes(path.with_name("meta.mat"), path)
        classes = enumerate((wnid_of.get(line, f"number {line}") for line in lines), 1)
        pairs = [(f"ILSVRC2012_val_{number:08d}", wnid) for number, wnid in classes]
    labels: dict[str, str] = {}
    known = set(wnids())
    for name, wnid in pairs:
        stem = stem_of(name)
        if stem in labels:
            raise InputError(f"ground-truth list {path} names {stem} twice")
        if wnid not in known:
            raise InputError(f"{path} gives {name} the class {wnid!r}, which ImageNet-1K does not have; {_FORMS}")
        labels[stem] = wnid
    if not labels:
        raise InputError(f"ground-truth list {path} is empty; {_FORMS}")
    return labels


def _devkit_classes(meta: Path, path: Path) -> dict[str, str]:
    """Read the wnid of every ILSVRC2012_ID, as text: only meta.mat defines the devkit's order of classes."""
    if not meta.is_file():
        raise InputError(f"{path} numbers classes in the order of the devkit's data/meta.mat; copy that file to {meta}")
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        numbers = [str(int(number)) for number in synsets["ILSVRC2012_ID"]]
        return dict(zip(numbers, map(str, synsets["WNID"]), strict=True))
    except _NOT_A_TABLE as error:
        raise InputError(f"{meta} is not the devkit's table of classes ({error})") from error
