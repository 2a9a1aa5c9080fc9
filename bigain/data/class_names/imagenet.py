"""ImageNet-1K classes in their usual order, ascending by wnid, and the hundred of ImageNet-100.

Names are the ones zero-shot classifiers are usually prompted with (Radford et al., 2021); two of them occur twice:
missile (657 and 744) and sunglasses (836 and 837). ImageNet-100 is the list of Tian et al. (Contrastive Multiview
Coding, 2020).
"""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def wnids() -> tuple[str, ...]:
    """WordNet ids of the 1,000 classes; the position is the class index."""
    return tuple(line.split("\t")[0] for line in _lines("imagenet.tsv"))


@cache
def names() -> tuple[str, ...]:
    """Names of the 1,000 classes."""
    return tuple(line.split("\t")[1] for line in _lines("imagenet.tsv"))


@cache
def imagenet100_indices() -> tuple[int, ...]:
    """ImageNet indices of the classes of ImageNet-100, ascending."""
    index = {wnid: i for i, wnid in enumerate(wnids())}
    return tuple(sorted(index[wnid] for wnid in _lines("imagenet100.txt")))


def _lines(name: str) -> list[str]:
    return (resources.files("bigain.data.class_names") / name).read_text(encoding="utf-8").splitlines()
