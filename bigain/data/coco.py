"""COCO-2017 val: several labels per image for classification, captions for generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bigain.data.base import EvalDataModule, OnBadImage
from bigain.data.class_names.coco import CATEGORIES
from bigain.data.class_space import ClassSpace, check_template, prompts
from bigain.data.folders import found_in, stem_of
from bigain.data.preprocessing import read_bytes
from bigain.data.selection import Item, is_number
from bigain.errors import InputError

_HELP = (
    "expected <root>/val2017/*.jpg and <root>/annotations/{instances,captions}_val2017.json, as val2017.zip and "
    "annotations_trainval2017.zip of https://cocodataset.org/#download unpack"
)


class Coco2017(EvalDataModule):
    """5,000 images with 80 categories (Lin et al., 2014); annotations CC BY 4.0, images under Flickr's terms.

    48 images have no label: they are classified, left out of the metrics and counted. Ids are COCO's own.
    """

    name = "COCO-2017"

    def __init__(
        self,
        root: str = "data/coco",
        prompt: str = "a photo of a {}.",
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
            root: Folder that holds `val2017/` and `annotations/`.
            prompt: Template for a text-conditional model; `{}` is the category's name.
            image_size: Side of the preprocessed images in px; 512 for SD 2.0.
            batch_size: Images per batch.
            num_workers: Processes that decode images.
            subset: File with one COCO image id per line, e.g. `397133`.
            per_class: Evaluate at most this many images per category, counting an image for its first one.
            limit: Evaluate this many images, spread evenly over the categories.
            on_bad_image: `stop` at an image that cannot be read, or `skip` it and count it in the results.
            seed: Of `per_class` and `limit`.
        """
        super().__init__(image_size, batch_size, num_workers, subset, per_class, limit, on_bad_image, seed)
        check_template(prompt)
        self.root = Path(root).expanduser()
        self.prompt = prompt

    @property
    def class_space(self) -> ClassSpace:
        names = list(CATEGORIES.values())
        return ClassSpace(names=names, prompts=prompts(self.prompt, names), indices=None, multilabel=True)

    @property
    def official_images(self) -> int:
        return 5000

    def find_items(self) -> list[Item]:
        path = self._annotations("instances")
        content = _read_json(path, ("images", "annotations", "categories"))
        _check_categories(path, content["categories"])
        self._files = _image_files(path, content["images"])
        present = {file.name for file in (self.root / "val2017").glob("*")}
        absent = [name for name in self._files.values() if name not in present]
        if absent:
            raise InputError(
                f"{path} names {len(absent)} of {len(self._files)} images that are not in {self.root / 'val2017'}, the "
                f"first {absent[0]}; {_HELP}"
            )
        label_of = {category: label for label, category in enumerate(CATEGORIES)}
        labels: dict[str, set[int]] = {image_id: set() for image_id in self._files}
        for annotation in content["annotations"]:
            image_id, category = _fields(path, annotation, "image_id", "category_id")
            if str(image_id) not in labels:
                raise InputError(f"{path} annotates image {image_id}, which its list of images does not have")
            if type(category) is not int or category not in label_of:
                raise InputError(
                    f"{path} gives image {image_id} the category {category}, which COCO-2017 does not have"
                )
            labels[str(image_id)].add(label_of[category])
        return [Item(image_id, tuple(sorted(found))) for image_id, found in labels.items()]

    def generation_prompts(self) -> list[str]:
        """The first caption of each image, in file order.

        Raises:
            InputError: If the captions are missing, or an image has none.
        """
        path = self._annotations("captions")
        captions: dict[str, str] = {}
        for annotation in _read_json(path, ("annotations",))["annotations"]:
            image_id, caption = _fields(path, annotation, "image_id", "caption")
            captions.setdefault(str(image_id), str(caption).strip())
        without = [item.image_id for item in self.items if not captions.get(item.image_id)]
        if without:
            raise InputError(
                f"{path} has no caption for {len(without)} of {len(self.items)} images, the first {without[0]}; {_HELP}"
            )
        return [captions[item.image_id] for item in self.items]

    def _annotations(self, kind: str) -> Path:
        path = self.root / "annotations" / f"{kind}_val2017.json"
        if not path.is_file():
            raise InputError(f"{self.name}: {path} is missing, {found_in(path.parent)}; {_HELP}")
        return path

    def id_of(self, line: str) -> str:
        # File names are ids with leading zeros.
        stem = stem_of(line)
        return str(int(stem)) if is_number(stem) else line

    def read_bytes(self, item: Item) -> bytes:
        return read_bytes(self.root / "val2017" / self._files[item.image_id])

    def where(self, item: Item) -> str:
        return str(self.root / "val2017" / self._files[item.image_id])


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); unpack it again") from error
    lacking = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise InputError(f"{path} has no list of {lacking[0]}; {_HELP}")
    return content


def _fields(path: Path, annotation: Any, *keys: str) -> list[Any]:
    if not isinstance(annotation, dict) or any(key not in annotation for key in keys):
        raise InputError(f"{path}: an annotation without {' and '.join(keys)}: {str(annotation)[:80]}; {_HELP}")
    return [annotation[key] for key in keys]


def _check_categories(path: Path, categories: list[Any]) -> None:
    for category in categories:
        number, name = _fields(path, category, "id", "name")
        if type(number) is not int or CATEGORIES.get(number) != name:
            raise InputError(
                f"{path} has the category {number}, {name!r}; COCO-2017 has {_category(number)!r} "
                "there. For categories of your own, use bigain.data.ImageFolder"
            )


def _category(number: Any) -> str:
    return CATEGORIES.get(number, "no such id") if type(number) is int else "no such id"


def _image_files(path: Path, images: list[Any]) -> dict[str, str]:
    """File name of every image by id, ascending."""
    files: dict[int, str] = {}
    for image in images:
        number, name = _fields(path, image, "id", "file_name")
        if type(number) is not int or number in files:
            raise InputError(f"{path} lists image {number!r} twice, or not by a number; {_HELP}")
        files[number] = str(name)
    return {str(number): files[number] for number in sorted(files)}
