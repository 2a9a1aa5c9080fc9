"""Choosing items: id files, so many per class, so many in all. Every choice is a function of (seed, image id)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigain.errors import InputError
from bigain.tokens.randomness import stable_hash

_MOST_DIGITS = 18


@dataclass(frozen=True)
class Item:
    """One image to evaluate.

    Attributes:
        image_id: Stable name: path relative to the dataset root, or the dataset's own id.
        labels: Class indices, ascending; one, except in a multi-label dataset, where there may also be none.
    """

    image_id: str
    labels: tuple[int, ...]


def only(items: Sequence[Item], path: Path, name: str, id_of: Callable[[str], str] = str) -> list[Item]:
    """The items that an id file names, in dataset order.

    Args:
        items: All items.
        path: Text file with one image id per line.
        name: Of the dataset, for messages.
        id_of: Makes an image id of a line.

    Raises:
        InputError: If the file is missing, names an absent image, or names one twice.
    """
    if not path.is_file():
        raise InputError(f"subset file {path} does not exist; expected one image id per line")
    wanted = [id_of(line.strip()) for line in read_lines(path) if line.strip()]
    known = {item.image_id for item in items}
    absent = [image_id for image_id in wanted if image_id not in known]
    if absent:
        raise InputError(
            f"{path} names {absent[0]!r}, which is not in {name} ({len(absent)} of {len(wanted)} ids are not); "
            + (f"its ids look like {items[0].image_id!r}" if items else "it lists no image at all")
        )
    chosen = set(wanted)
    if len(chosen) < len(wanted):
        raise InputError(f"{path} names {len(wanted) - len(chosen)} ids twice")
    return [item for item in items if item.image_id in chosen]


def is_number(text: str) -> bool:
    """Whether this is a number that Python reads: of thousands of digits it makes an error."""
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file, with or without a byte order mark.

    Raises:
        InputError: If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def per_class(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Choose the `count` items of each class with the smallest hash of (seed, id), or all it has; order is kept."""
    return [items[i] for turn, i in sorted(_turns(items, seed), key=lambda pair: pair[1]) if turn < count]


def stratified(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """Choose `limit` items, classes as equally as possible, by the smallest hash of (seed, id); order is kept.

    Raises:
        InputError: If there are fewer items than asked for.
    """
    if limit > len(items):
        raise InputError(f"limit asks for {limit} images, but there are {len(items)}")
    # All classes' first picks come before any second pick.
    first = sorted(_turns(items, seed), key=lambda pair: pair[0])[:limit]
    return [items[i] for i in sorted(i for _, i in first)]


def first_of_classes(items: Sequence[Item], count: int) -> list[Item]:
    """The first item of each class until there are `count`, then the first of the others: fewer are a part of more."""
    seen: set[tuple[int, ...]] = set()
    firsts: list[Item] = []
    others: list[Item] = []
    for item in items:
        (others if item.labels[:1] in seen else firsts).append(item)
        seen.add(item.labels[:1])
    return [*firsts, *others][:count]


def _turns(items: Sequence[Item], seed: int) -> list[tuple[int, int]]:
    """(turn in its class, position) of every item, by ascending hash of (seed, id).

    An item of several classes takes its turn in the first of them, one without a class among its like.
    """
    ranked = sorted(range(len(items)), key=lambda i: stable_hash(f"{seed}/{items[i].image_id}"))
    taken: dict[tuple[int, ...], int] = {}
    turns = []
    for i in ranked:
        group = items[i].labels[:1]
        turns.append((taken.get(group, 0), i))
        taken[group] = taken.get(group, 0) + 1
    return turns
