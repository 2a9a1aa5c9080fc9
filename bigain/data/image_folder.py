"""Your own images: one folder per class."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from bigain.data.base import EvalDataModule
from bigain.data.class_space import ClassSpace, prompts
from bigain.data.folders import listing, read_lines, scan, scan_classes, shortened
from bigain.data.selection import Item
from bigain.errors import InputError
from bigain.runs.numbers import counted

_WNID = re.compile(r"n\d{8}")
_HELP = "expected <root>/<class>/<image>, and in class_names one 'folder<tab>name' per line"


class ImageFolder(EvalDataModule):
    """Images of `<root>/<class>/`, with class names for the prompts from a file.

    Image ids are paths below `root`, e.g. `cats/1.jpg`.
    """

    name = "ImageFolder"

    def __init__(
        self, root: str, class_names: str | None = None, prompt: str = "a photo of a {}.", **kwargs: Any
    ) -> None:
        """Store the settings; nothing is read yet.

        Args:
            root: Folder with one folder of images per class.
            class_names: Text file with one class per line: the folder, a tab, and the name for the prompt; its order is
                the order of the labels. null uses the folders in name order, with spaces for `_`.
            prompt: Template for a text-conditional model; `{}` is the class name.
            **kwargs: Arguments of every dataset.
        """
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.class_names = class_names
        self.prompt = prompt

    @cached_property
    def _folders(self) -> list[str]:
        folders = scan(self.root)[0] if self.root.is_dir() else []
        if not folders:
            raise InputError(f"ImageFolder: no class folder, {listing(self.root)}; {_HELP}")
        return folders

    @cached_property
    def _names(self) -> dict[str, str]:
        """Name of every class by folder, in label order."""
        if self.class_names is None:
            if all(_WNID.fullmatch(folder) for folder in self._folders):
                fix = "set class_names, or use bigain.data.ImageNet1K"
                raise InputError(f"the folders of {self.root} are WordNet ids, which make no sense in a prompt; {fix}")
            return {folder: folder.replace("_", " ") for folder in self._folders}
        path = Path(self.class_names).expanduser()
        names: dict[str, str] = {}
        for number, line in read_lines(path, _HELP):
            folder, _, name = (part.strip() for part in line.partition("\t"))
            if not name or folder in names:
                raise InputError(f"{path}, line {number}: {line!r} is not a new class; {_HELP}")
            names[folder] = name
        return names

    @property
    def all_classes(self) -> ClassSpace:
        names = list(self._names.values())
        return ClassSpace(names=names, prompts=prompts(self.prompt, names), indices=None, ids=list(self._names))

    def find_items(self) -> list[Item]:
        label = {folder: i for i, folder in enumerate(self._names)}
        mismatched = sorted(label.keys() ^ self._folders)
        if mismatched:
            classes = f"{counted(len(mismatched), 'class')}, such as {mismatched[0]!r}"
            raise InputError(f"{self.class_names} and the folders of {self.root} differ in {classes}")
        files, self.notes = scan_classes(self.root, self._folders, _HELP)
        self.files = {f"{path.parent.name}/{path.name}": path for path in files}
        if empty := sorted(set(self.class_space.ids) - {path.parent.name for path in files}):
            problem = f"{self.root} has {counted(len(empty), 'class folder')} without an image: {shortened(empty)}"
            if self.class_names is None or not files:
                fix = "each is a possible answer, so remove it, name it in class_names or leave it out of classes"
                raise InputError(f"{problem}; {fix}; {''.join(self.notes) or _HELP}")
            self.notes.append(f"{problem}; possible answers nevertheless")
        return [Item(image_id, (label[image_id.partition("/")[0]],)) for image_id in self.files]
