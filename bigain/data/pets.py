"""Oxford-IIIT Pets in the layout of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from bigain.data.base import EvalDataModule
from bigain.data.class_names.pets import BREEDS, CATS
from bigain.data.class_space import ClassSpace
from bigain.data.folders import is_number, listed_files, read_lines
from bigain.data.selection import Item
from bigain.errors import InputError, check_choice

Prompts = Literal["paper", "released"]

_OFFICIAL = {"test": 3669, "trainval": 3680}
_HELP = (
    "expected <root>/oxford-iiit-pet/images/*.jpg and <root>/oxford-iiit-pet/annotations/{test,trainval}.txt, as made "
    "by torchvision.datasets.OxfordIIITPet(root, download=True) (https://www.robots.ox.ac.uk/~vgg/data/pets/)"
)


class OxfordPets(EvalDataModule):
    """37 breeds of cats and dogs (Parkhi et al., 2012); annotations and images CC BY-SA 4.0.

    Image ids are paths, e.g. `images/Abyssinian_201.jpg`.
    """

    name = "Oxford-IIIT Pets"

    def __init__(
        self, root: str = "data", split: Literal["test", "trainval"] = "test", prompts: Prompts = "paper", **kwargs: Any
    ) -> None:
        """Store the settings; nothing is read yet.

        Args:
            root: Folder that holds `oxford-iiit-pet/`, as for torchvision.
            split: `test` (3,669 images) or `trainval` (3,680).
            prompts: `paper`: "a photo of a Abyssinian, a type of pet."; `released`: with the species,
                "a photo of a Abyssinian cat, a type of pet.".
            **kwargs: Arguments of every dataset.
        """
        super().__init__(**kwargs)
        check_choice("prompts", prompts, get_args(Prompts))
        check_choice("split", split, [*_OFFICIAL])
        self.folder = Path(root).expanduser() / "oxford-iiit-pet"
        self.split = split
        self.prompts: Prompts = prompts

    @property
    def all_classes(self) -> ClassSpace:
        released = self.prompts == "released"
        names = [f"{name} {'cat' if name in CATS else 'dog'}" if released else name for name in BREEDS]
        prompts = [f"a photo of a {name}, a type of pet." for name in names]
        factors = {"species": [int(name not in CATS) for name in BREEDS]}
        return ClassSpace(BREEDS, prompts, indices=None, factors=factors)

    @property
    def official_images(self) -> int:
        return _OFFICIAL[self.split]

    def find_items(self) -> list[Item]:
        path = self.folder / "annotations" / f"{self.split}.txt"
        items = [_parse(path, number, line) for number, line in read_lines(path, _HELP) if not line.startswith("#")]
        names = {item.image_id: item.image_id.removeprefix("images/") for item in items}
        self.files = listed_files(self.folder / "images", names, path, _HELP)
        return items


def _parse(path: Path, number: int, line: str) -> Item:
    """Parse `Abyssinian_201 1 1 1`: name, class id from 1, species, breed id."""
    fields = line.split()
    if len(fields) != 4 or not is_number(fields[1]) or not 1 <= int(fields[1]) <= len(BREEDS):
        form = "'name class species breed' with a class in 1..37"
        raise InputError(f"{path}, line {number}: expected {form}, not {line!r}")
    label = int(fields[1]) - 1
    if fields[0].rpartition("_")[0].replace("_", " ").lower() != BREEDS[label].lower():
        raise InputError(f"{path}, line {number}: {fields[0]} is listed as class {label + 1}, {BREEDS[label]}")
    return Item(f"images/{fields[0]}.jpg", (label,))
