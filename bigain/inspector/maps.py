"""What a compressor decided about one image at some sites and noise draws, on the device and on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.compressors.base import Decision
from bigain.compressors.kv import KVDownsampler
from bigain.runs.columns import read_arrays
from bigain.runs.files import replacing
from bigain.tokens.grid import Grid
from bigain.tokens.scores import laplacian_l1

Array = npt.NDArray[Any]
Part = dict[str, Tensor]


@dataclass(frozen=True)
class SiteMap:
    """One image at one site, under d noise draws in the order of timesteps; n tokens.

    Attributes:
        name: Of the site.
        index: Of the site.
        grid: Token map.
        timesteps: `(d,)`, float32.
        salience: Laplacian score (Eq. 7) of the tokens that were decided on. `(d, n)`, float32.
        scores: The score that decided; None if none did. `(d, n)`, float32.
        leader: Of a merger: the token that stands in for each token; one that stays leads itself. `(d, n)`.
        keys: Of a KV method: the key that lies nearest to each place, where that is known. `(d, n)`.
        copied: Of a KV method: the token that each key is a copy of; None if keys are blends. `(d, m)`.
    """

    name: str
    index: int
    grid: Grid
    timesteps: Array
    salience: Array
    scores: Array | None = None
    leader: Array | None = None
    keys: Array | None = None
    copied: Array | None = None


_ARRAYS = ("timesteps", "salience", "scores", "leader", "keys", "copied")


def parts_of(decision: Decision, rows: Tensor) -> Part:
    """What is kept of a decision, for some rows of the forward.

    Args:
        decision: About all b rows.
        rows: Of those to keep. `(r,)`, int64.

    Returns:
        The arrays of `SiteMap` that there are, `(r, ...)` each, on the device.
    """
    site, tokens, context = decision.site, decision.tokens[rows], decision.context.of_rows(rows)
    found: dict[str, Tensor | None] = {
        "timesteps": context.timesteps,
        "salience": laplacian_l1(tokens, site.grid(context.latent)),
        "scores": decision.compressor.token_scores(tokens, site, context),
    }
    if decision.plan is not None:
        found["leader"] = decision.plan.kept[rows].gather(1, decision.plan.restore[rows])
    if isinstance(decision.compressor, KVDownsampler):
        found["keys"] = decision.compressor.token_keys(tokens, site, context)
        found["copied"] = decision.compressor.key_tokens(tokens, site, context)
    return {name: part.expand(len(rows), *part.shape[1:]) for name, part in found.items() if part is not None}


class Collected:
    """Decisions about some images at some sites, on their device until they are written."""

    def __init__(self) -> None:
        self._about: dict[int, tuple[str, Grid]] = {}
        # By image, site and draw: a forward that is repeated with fewer rows says the same again.
        self._parts: dict[tuple[int, int], dict[int, Part]] = {}

    def add(self, decision: Decision, parts: Part, which: list[tuple[int, int]]) -> None:
        """Add rows of a forward; `which` names the (image, draw) of each."""
        site = decision.site
        self._about[site.index] = (site.name, _grid(decision.context, decision))
        for row, (image, draw) in enumerate(which):
            of_draw = {name: part[row] for name, part in parts.items()}
            self._parts.setdefault((image, site.index), {})[draw] = of_draw

    def of_image(self, image: int) -> list[SiteMap]:
        """What there is of an image, in the order of sites; leaves the device."""
        return [self._site_map(index, draws) for (whose, index), draws in sorted(self._parts.items()) if whose == image]

    def _site_map(self, index: int, draws: Mapping[int, Part]) -> SiteMap:
        parts = sorted(draws.values(), key=lambda part: float(part["timesteps"]))
        stacked = {name: torch.stack([part[name] for part in parts]).cpu() for name in parts[0]}
        arrays = {
            name: (one.float() if one.is_floating_point() else one.int()).numpy() for name, one in stacked.items()
        }
        name, grid = self._about[index]
        return SiteMap(name, index, grid, **arrays)


def _grid(context: ForwardContext, decision: Decision) -> Grid:
    return decision.site.grid(context.latent)


def write_maps(path: Path, image_id: str, maps: list[SiteMap]) -> None:
    """Store the maps of one image."""
    about = [{"name": one.name, "index": one.index, "grid": list(one.grid)} for one in maps]
    header = np.array(json.dumps({"image_id": image_id, "sites": about}))
    arrays = {
        f"{number}.{name}": getattr(one, name)
        for number, one in enumerate(maps)
        for name in _ARRAYS
        if getattr(one, name) is not None
    }
    with replacing(path) as file:
        np.savez_compressed(file, header=header, **arrays)


def read_maps(path: Path, image_id: str) -> list[SiteMap] | None:
    """Maps of an image; None if they are not there, damaged, or of another image."""
    if not path.is_file():
        return None
    try:
        columns = read_arrays(path)
        header = json.loads(str(columns["header"]))
        if header["image_id"] != image_id:
            return None
        return [_read(columns, number, site) for number, site in enumerate(header["sites"])]
    except (ValueError, LookupError, TypeError):
        return None


def _read(columns: Mapping[str, Array], number: int, site: Mapping[str, Any]) -> SiteMap:
    arrays = {name: columns[f"{number}.{name}"] for name in _ARRAYS if f"{number}.{name}" in columns}
    found = SiteMap(site["name"], site["index"], Grid(*site["grid"]), **arrays)
    draws = len(found.timesteps)
    for name in ("salience", "scores", "leader", "keys"):
        one = getattr(found, name)
        if one is not None and one.shape != (draws, found.grid.n):
            raise ValueError(f"{name} has the shape {one.shape}")
    return found
