"""Your own images: one folder per class."""

from __future__ import annotations

import re
from pathlib import Path

from bigain.data.base import EvalDataModule, OnBadImage
from bigain.data.class_space import ClassSpace, check_template, prompts
from bigain.data.folders import class_folders, found_in
from bigain.data.selection import Item, read_lines
from bigain.errors import InputError

_WNID = re.compile(r"n\d{8}")
_HELP = "expected <root>/<class>/<image>, and in class_names one 'folder<tab>name' per line"


class ImageFolder(EvalDataModule):
    """Images of `<root>/<class>/`, with names for a text-conditional model from a file."""

    name = "ImageFolder"

    def __init__(
        self,
        root: str,
        class_names: str | None = None,
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
            root: Folder with one folder of images per class.
            class_names: Text file with one class per line, the folder, a tab, and the name that goes into the prompt;
                its order is the order of the labels. null takes the folders in name order, `_` read as a space.
            prompt: Template for a text-conditional model; `{}` is the class name.
            image_size: Side of the preprocessed images in px.
            batch_size: Images per batch.
            num_workers: Processes that decode images.
            subset: File with one image id per line, e.g. `cats/1.jpg`.
            per_class: Evaluate at most this many images of each class.
            limit: Evaluate this many images, spread evenly over the classes.
            on_bad_image: `stop` at an image that cannot be read, or `skip` it and count it in the results.
            seed: Of `per_class` and `limit`.
        """
        super().__init__(image_size, batch_size, num_workers, subset, per_class, limit, on_bad_image, seed)
        check_template(prompt)
        self.root = Path(root).expanduser()
        self.class_names = class_names
        self.prompt = prompt

    def _names(self) -> dict[str, str]:
        """Name of every class by folder, in label order."""
        if self.class_names is None:
            folders = self._folders()
            if folders and all(_WNID.fullmatch(folder) for folder in folders):
                raise InputError(
                    f"the folders of {self.root} are WordNet ids, which no prompt should hold; give class_names, or "
                    "use bigain.data.ImageNet1K"
                )
            return {folder: folder.replace("_", " ") for folder in folders}
        path = Path(self.class_names).expanduser()
        if not path.is_file():
            raise InputError(f"class_names file {path} does not exist; {_HELP}")
        names: dict[str, str] = {}
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            folder, tab, name = line.partition("\t")
            if not tab or not folder.strip() or not name.strip() or folder.strip() in names:
                raise InputError(f"{path}, line {number}: {line!r} is no new class; {_HELP}")
            names[folder.strip()] = name.strip()
        if not names:
            raise InputError(f"{path} names no class; {_HELP}")
        return names

    def _folders(self) -> list[str]:
        if not self.root.is_dir():
            raise InputError(f"ImageFolder: {found_in(self.root)}; {_HELP}")
        return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and entry.name[0] != ".")

    @property
    def class_space(self) -> ClassSpace:
        names = list(self._names().values())
        return ClassSpace(names=names, prompts=prompts(self.prompt, names), indices=None)

    def find_items(self) -> list[Item]:
        names, folders = self._names(), self._folders()
        if not folders:
            raise InputError(f"ImageFolder: no class folder, {found_in(self.root)}; {_HELP}")
        for which, extra, there in (
            ("names", set(names) - set(folders), self.root),
            ("lacks", set(folders) - set(names), self.root),
        ):
            if extra:
                raise InputError(f"{self.class_names} {which} {sorted(extra)[0]!r} ({len(extra)} such), unlike {there}")
        self._source = class_folders(self.root, by_stem=False)
        label = {folder: i for i, folder in enumerate(names)}
        items = [
            Item(image_id, (label[folder],)) for image_id, folder in self._source.labels().items() if folder in label
        ]
        if not items:
            raise InputError(f"ImageFolder: no image in any of the {len(folders)} folders of {self.root}; {_HELP}")
        return items

    def read_bytes(self, item: Item) -> bytes:
        return self._source.read(item.image_id)

    def where(self, item: Item) -> str:
        return self._source.where(item.image_id)
