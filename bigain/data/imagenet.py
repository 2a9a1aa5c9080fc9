"""ImageNet-1K and ImageNet-100 validation images, in every layout they are kept in."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bigain.data.base import EvalDataModule, OnBadImage
from bigain.data.class_names.imagenet import imagenet100_indices, names, wnids
from bigain.data.class_space import ClassSpace, check_template, prompts
from bigain.data.folders import ImageSource, class_folders, found_in, image_files, listed_files, stem_of
from bigain.data.imagenet_labels import USUAL_PLACES, read_ground_truth
from bigain.data.parquet import ParquetImages
from bigain.data.selection import Item
from bigain.errors import InputError

# As unpacked, and as Kaggle packs it.
_FOLDERS = ("val", "ILSVRC/Data/CLS-LOC/val")
_PARQUET = ("validation-*.parquet", "val-*.parquet", "data/validation-*.parquet", "data/val-*.parquet")
_PER_CLASS = 50
_WNID = re.compile(r"n\d{8}")
_HELP = (
    "expected val/<wnid>/*.JPEG, or val/*.JPEG with LOC_val_solution.csv or the devkit's ground-truth list, or Hugging "
    "Face's data/validation-*.parquet under `root`; the images are at https://image-net.org/download-images"
)


class ImageNet1K(EvalDataModule):
    """The ILSVRC-2012 validation set, 50,000 images of 1,000 classes (Russakovsky et al., 2015); research use only.

    An image's id is its file's stem, so every layout gives the same ids, the same noise and the same numbers.
    """

    name = "ImageNet-1K"

    def __init__(
        self,
        root: str = "data/imagenet",
        prompt: str = "a photo of a {}.",
        ground_truth: str | None = None,
        image_size: int = 512,
        batch_size: int = 8,
        num_workers: int = 4,
        subset: str | None = None,
        per_class: int | None = None,
        limit: int | None = None,
        on_bad_image: OnBadImage = "stop",
        seed: int = 0,
    ) -> None:
        """Set the dataset up.

        Args:
            root: Folder that holds `val/`, or the parquet files.
            prompt: Template for a text-conditional model; `{}` is the class name.
            ground_truth: List of classes of a flat `val/`; null looks in the usual places under `root`.
            image_size: Side of the preprocessed images in px; 512 for SD 2.0 and DiT-XL/2-512.
            batch_size: Images per batch.
            num_workers: Processes that decode images.
            subset: File with one image id per line, e.g. `ILSVRC2012_val_00000293`, or paths of such files.
            per_class: Evaluate at most this many images of each class; 2 is our rule for the paper's 2,000 images.
            limit: Evaluate this many images, spread evenly over the classes.
            on_bad_image: `stop` at an image that cannot be read, or `skip` it and count it in the results.
            seed: Of `per_class` and `limit`.
        """
        super().__init__(image_size, batch_size, num_workers, subset, per_class, limit, on_bad_image, seed)
        check_template(prompt)
        self.root = Path(root).expanduser()
        self.prompt = prompt
        self.ground_truth = ground_truth

    @property
    def classes(self) -> Sequence[int]:
        """ImageNet indices of the classes, ascending; the position is the label."""
        return range(1000)

    @property
    def official_images(self) -> int:
        return _PER_CLASS * len(self.classes)

    @property
    def expected_images(self) -> int | None:
        if self.subset is not None or self.limit is not None:
            return None
        return min(_PER_CLASS, self.per_class or _PER_CLASS) * len(self.classes)

    @property
    def class_space(self) -> ClassSpace:
        chosen = [names()[index] for index in self.classes]
        return ClassSpace(names=chosen, prompts=prompts(self.prompt, chosen), indices=self.classes)

    def find_items(self) -> list[Item]:
        self._source = self._find_source()
        label = {wnids()[index]: label for label, index in enumerate(self.classes)}
        there = self._source.labels()
        # By id, so that the order does not depend on the layout either.
        items = [Item(image_id, (label[wnid],)) for image_id, wnid in sorted(there.items()) if wnid in label]
        label_most, most = Counter(item.labels[0] for item in items).most_common(1)[0] if items else (0, 0)
        if most > _PER_CLASS:
            raise InputError(
                f"{self.name}: {self.root} has {most} images of class {wnids()[self.classes[label_most]]}, but the "
                f"validation set {_PER_CLASS}; point root at the validation images"
            )
        if not items:
            raise InputError(
                f"{self.name}: {self.root} has {len(there)} images, none of the {len(label)} classes; {_HELP}"
            )
        return items

    def _find_source(self) -> ImageSource:
        folders = [self.root / name for name in _FOLDERS if (self.root / name).is_dir()]
        files = sorted(file for pattern in _PARQUET for file in self.root.glob(pattern))
        # A picture beside parquet files is no dataset.
        for folder in [*folders, *([self.root] if self.root.is_dir() and not files else [])]:
            if _has_class_folders(folder):
                return _checked(folder)
            if image_files(folder):
                truth = self._list()
                return listed_files(folder, read_ground_truth(truth), truth)
        if files:
            return ParquetImages(files, wnids())
        raise InputError(f"{self.name}: no images found, {found_in([*folders, self.root][0])}; {_HELP}")

    def _list(self) -> Path:
        if self.ground_truth is not None:
            return Path(self.ground_truth).expanduser()
        for name in USUAL_PLACES:
            if (self.root / name).is_file():
                return self.root / name
        raise InputError(
            f"{self.name}: {self.root} has images but no classes: none of {', '.join(USUAL_PLACES)} is there; put one "
            "there or set data.ground_truth"
        )

    def id_of(self, line: str) -> str:
        return stem_of(line)

    def position(self, item: Item) -> tuple[int, ...]:
        return self._source.position(item.image_id)

    def read_bytes(self, item: Item) -> bytes:
        return self._source.read(item.image_id)

    def where(self, item: Item) -> str:
        return self._source.where(item.image_id)


class ImageNet100(ImageNet1K):
    """The hundred classes of Tian et al. (2020) out of the same files: 5,000 images, labels ascending by index."""

    name = "ImageNet-100"

    @property
    def classes(self) -> Sequence[int]:
        return imagenet100_indices()


def _has_class_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_WNID.fullmatch(entry.name) and entry.is_dir() for entry in entries)


def _checked(folder: Path) -> ImageSource:
    source = class_folders(folder, by_stem=True)
    unknown = sorted(set(source.labels().values()) - set(wnids()))
    if unknown:
        raise InputError(f"{folder / unknown[0]} is not a class of ImageNet-1K ({len(unknown)} such folders); move it")
    return source
