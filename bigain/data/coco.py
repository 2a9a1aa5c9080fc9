"""COCO-2017 val: several labels per image for classification, captions for generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bigain.data.base import EvalDataModule
from bigain.data.class_names.coco import CATEGORIES
from bigain.data.class_space import ClassSpace, prompts
from bigain.data.folders import listed_files, listing
from bigain.data.selection import Item
from bigain.errors import InputError

_HELP = (
    "expected <root>/val2017/*.jpg and <root>/annotations/{instances,captions}_val2017.json, as unpacked from "
    "val2017.zip and annotations_trainval2017.zip of https://cocodataset.org/#download"
)


class Coco2017(EvalDataModule):
    """5,000 images with 80 categories (Lin et al., 2014); annotations CC BY 4.0, images under Flickr's terms.

    48 images have no label: they are classified, left out of the metrics and counted. Image ids are COCO's own, e.g.
    `397133`. `per_class` and `limit` count an image for its first category.
    """

    name = "COCO-2017"

    def __init__(self, root: str = "data/coco", prompt: str = "a photo of a {}.", **kwargs: Any) -> None:
        """Store the settings; nothing is read yet.

        Args:
            root: Folder that holds `val2017/` and `annotations/`.
            prompt: Template for a text-conditional model; `{}` is the category's name.
            **kwargs: Arguments of every dataset.
        """
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.prompt = prompt

    @property
    def all_classes(self) -> ClassSpace:
        names = list(CATEGORIES.values())
        return ClassSpace(names=names, prompts=prompts(self.prompt, names), indices=None, multilabel=True)

    @property
    def official_images(self) -> int:
        return 5000

    def find_items(self) -> list[Item]:
        path = self.root / "annotations" / "instances_val2017.json"
        fields = {"images": ("id", "file_name", str), "annotations": ("image_id", "category_id", int)}
        images, annotations, categories = _read(path, **fields, categories=("id", "name", str))
        for number, name in categories:
            if CATEGORIES.get(number) != name:
                advice = "for your own categories use bigain.data.ImageFolder"
                raise InputError(f"{path} has the category {number}, {name!r}, unknown to COCO-2017; {advice}")
        names = {str(number): name for number, name in sorted(images)}
        self.files = listed_files(self.root / "val2017", names, path, _HELP)
        label_of = {category: label for label, category in enumerate(CATEGORIES)}
        labels: dict[str, set[int]] = {image_id: set() for image_id in names}
        for number, category in annotations:
            if str(number) not in labels or category not in label_of:
                raise InputError(
                    f"{path} has category {category} for image {number}, but lists no such category or image"
                )
            labels[str(number)].add(label_of[category])
        return [Item(image_id, tuple(sorted(categories))) for image_id, categories in labels.items()]

    def generation_prompts(self) -> list[str]:
        """Return the first caption of each image, in file order.

        Raises:
            InputError: If the captions are missing, or an image has none.
        """
        path = self.root / "annotations" / "captions_val2017.json"
        captions: dict[str, str] = {}
        (annotations,) = _read(path, annotations=("image_id", "caption", str))
        for number, caption in annotations:
            captions.setdefault(str(number), caption.strip())
        without = [item.image_id for item in self.items if not captions.get(item.image_id)]
        if without:
            images = f"{len(without)} of {len(self.items)} images, the first {without[0]}"
            raise InputError(f"{path} has no caption for {images}; {_HELP}")
        return [captions[item.image_id] for item in self.items]


def _read(path: Path, **fields: tuple[str, str, type]) -> list[list[tuple[int, Any]]]:
    """Read lists of objects from a JSON file: by the name of each list, the number and the value to return of each."""
    if not path.is_file():
        raise InputError(f"{path} is missing, {listing(path.parent)}; {_HELP}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            [(int(entry[number]), kind(entry[value])) for entry in content[name]]
            for name, (number, value, kind) in fields.items()
        ]
    except (ValueError, RecursionError, LookupError, TypeError, ArithmeticError) as error:
        raise InputError(f"{path} does not hold {' and '.join(fields)} of COCO ({error!r}); unpack it again") from error
