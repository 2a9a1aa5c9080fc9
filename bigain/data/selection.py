"""Selection of items: by id file, per class, or in total. Every selection is a function of (seed, image id)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigain.data.folders import read_lines
from bigain.errors import InputError
from bigain.runs.numbers import counted
from bigain.runs.results import id_in
from bigain.tokens.randomness import stable_hash


@dataclass(frozen=True)
class Item:
    """One image to evaluate.

    Attributes:
        image_id: Stable name: path relative to the dataset root, or the dataset's own id.
        labels: Class indices, ascending; one, except in a multi-label dataset, which may have several or none.
    """

    image_id: str
    labels: tuple[int, ...]


def read_subset(items: Sequence[Item], path: Path, name: str) -> list[Item]:
    """Return the items that a text file lists, one id per line, in dataset order.

    Raises:
        InputError: If the file cannot be read or is empty, or lists an id twice or one that the dataset `name` lacks.
    """
    listed = Counter(id_in(line) for _, line in read_lines(path, "expected one image id per line"))
    if not listed:
        raise InputError(f"{path} lists no image; expected one image id per line")
    absent = listed.keys() - {item.image_id for item in items}
    if absent:
        first = next(image_id for image_id in listed if image_id in absent)
        example = f"its ids look like {items[0].image_id!r}" if items else "the dataset has no images"
        missing = f"{len(absent)} of {len(listed)} ids missing"
        raise InputError(f"{path} lists {first!r}, which is not in {name} ({missing}); {example}")
    if listed.total() > len(listed):
        raise InputError(f"{path} lists {counted(listed.total() - len(listed), 'id')} twice")
    return [item for item in items if item.image_id in listed]


def per_class(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Select the `count` items of each class with the smallest hash of (seed, id), or all it has; order is kept."""
    return [items[i] for rank, i in sorted(_ranked(items, seed), key=lambda pair: pair[1]) if rank < count]


def stratified(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """Select `limit` items, classes as equally as possible, by the smallest hash of (seed, id); order is kept."""
    # First items of all classes come before any second item.
    first = sorted(_ranked(items, seed), key=lambda pair: pair[0])[:limit]
    return [items[i] for i in sorted(i for _, i in first)]


def first_of_classes(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items, the first of each class before the rest: a smaller count gives a prefix of a larger one."""
    first = {item.labels[:1]: item for item in reversed(items)}
    return sorted(items, key=lambda item: first[item.labels[:1]] is not item)[:count]


def _ranked(items: Sequence[Item], seed: int) -> list[tuple[int, int]]:
    """Return (rank within its class, position) of every item, by ascending hash of (seed, id).

    An item of several classes counts for the first, items without a class form their own group.
    """
    by_hash = sorted(range(len(items)), key=lambda i: stable_hash(f"{seed}/{items[i].image_id}"))
    counts: Counter[tuple[int, ...]] = Counter()
    pairs = []
    for i in by_hash:
        group = items[i].labels[:1]
        pairs.append((counts[group], i))
        counts[group] += 1
    return pairs
