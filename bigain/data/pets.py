"""Oxford-IIIT Pets in the layout of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bigain.data.base import EvalDataModule, OnBadImage
from bigain.data.class_names.pets import BREEDS, CATS
from bigain.data.class_space import ClassSpace
from bigain.data.preprocessing import read_bytes
from bigain.data.selection import Item, is_number, read_lines
from bigain.errors import InputError

Prompts = Literal["paper", "released"]

_OFFICIAL = {"test": 3669, "trainval": 3680}
_HELP = (
    "expected <root>/oxford-iiit-pet/images/*.jpg and <root>/oxford-iiit-pet/annotations/{test,trainval}.txt, as "
    "torchvision.datasets.OxfordIIITPet(root, download=True) makes them "
    "(https://www.robots.ox.ac.uk/~vgg/data/pets/)"
)


class OxfordPets(EvalDataModule):
    """37 breeds of cats and dogs (Parkhi et al., 2012); annotations and images CC BY-SA 4.0."""

    name = "Oxford-IIIT Pets"

    def __init__(
        self,
        root: str = "data",
        split: Literal["test", "trainval"] = "test",
        prompts: Prompts = "paper",
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
            root: Folder that holds `oxford-iiit-pet/`, as for torchvision.
            split: `test` (3,669 images) or `trainval`.
            prompts: `paper`: "a photo of a Abyssinian, a type of pet."; `released`: the species joins the name,
                "a photo of a Abyssinian cat, a type of pet.".
            image_size: Side of the preprocessed images in px; 512 for SD 2.0.
            batch_size: Images per batch.
            num_workers: Processes that decode images.
            subset: File with one image id per line, e.g. `images/Abyssinian_201.jpg`.
            per_class: Evaluate at most this many images of each class.
            limit: Evaluate this many images, spread evenly over the classes.
            on_bad_image: `stop` at an image that cannot be read, or `skip` it and count it in the results.
            seed: Of `per_class` and `limit`.
        """
        super().__init__(image_size, batch_size, num_workers, subset, per_class, limit, on_bad_image, seed)
        if prompts not in ("paper", "released") or split not in _OFFICIAL:
            raise InputError(
                f"prompts must be paper or released, split test or trainval, not {prompts!r} and {split!r}"
            )
        self.folder = Path(root).expanduser() / "oxford-iiit-pet"
        self.split = split
        self.prompts: Prompts = prompts

    @property
    def class_space(self) -> ClassSpace:
        spoken = [
            f"{name} {'cat' if name in CATS else 'dog'}" if self.prompts == "released" else name for name in BREEDS
        ]
        return ClassSpace(
            names=BREEDS,
            prompts=[f"a photo of a {name}, a type of pet." for name in spoken],
            indices=None,
            factors={"species": [int(name not in CATS) for name in BREEDS]},
        )

    def find_items(self) -> list[Item]:
        path = self.folder / "annotations" / f"{self.split}.txt"
        if not path.is_file():
            raise InputError(f"Oxford-IIIT Pets: {path} is missing; {_HELP}")
        items = [self._item(path, number, line) for number, line in enumerate(read_lines(path), 1) if _has_entry(line)]
        present = {file.name for file in (self.folder / "images").glob("*.jpg")}
        absent = [item for item in items if item.image_id.removeprefix("images/") not in present]
        if absent:
            raise InputError(
                f"{path} names {len(absent)} images that are not in {self.folder / 'images'}, the first "
                f"{absent[0].image_id}; {_HELP}"
            )
        return items

    @property
    def official_images(self) -> int:
        return _OFFICIAL[self.split]

    def _item(self, path: Path, number: int, line: str) -> Item:
        """Parse `Abyssinian_201 1 1 1`: name, class id from 1, species, breed id."""
        fields = line.split()
        if len(fields) != 4 or not is_number(fields[1]) or not 1 <= int(fields[1]) <= len(BREEDS):
            raise InputError(
                f"{path}, line {number}: expected 'name class species breed' with a class in 1..37, found {line!r}"
            )
        label = int(fields[1]) - 1
        named = fields[0].rpartition("_")[0].replace("_", " ").lower()
        if named != BREEDS[label].lower():
            raise InputError(f"{path}, line {number}: {fields[0]} is listed as class {label + 1}, {BREEDS[label]}")
        return Item(f"images/{fields[0]}.jpg", (label,))

    def read_bytes(self, item: Item) -> bytes:
        return read_bytes(self.folder / item.image_id)

    def where(self, item: Item) -> str:
        return str(self.folder / item.image_id)


def _has_entry(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")
