"""Token maps of the followed images, collected from the forwards of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from bigain.backbones.forward import ForwardContext, RowKeys
from bigain.compressors.kv import KVDownsampler
from bigain.compressors.onlookers import Decision
from bigain.data.selection import Item
from bigain.diffusion.sampling import item_keys, step_keys
from bigain.runs.files import replacing
from bigain.tasks.classifier import DiffusionClassifier
from bigain.tasks.probe import FeatureProbe
from bigain.tasks.sampler import DiffusionSampler
from bigain.tokens.grid import Grid
from bigain.tokens.randomness import stable_hash
from bigain.tokens.scores import laplacian_l1

Array = npt.NDArray[Any]
Arrays = dict[str, Tensor]
T = TypeVar("T")

_ARRAYS = ("timesteps", "salience", "scores", "leader", "copied")


@dataclass(frozen=True)
class SiteMap:
    """One image at one site, under d noise draws in the order of timesteps; n tokens.

    Attributes:
        timesteps: `(d,)`, float32.
        salience: Laplacian score (Eq. 7) of the tokens that the compressor saw. `(d, n)`, float32.
        scores: The score behind the decision; None if there was none. `(d, n)`, float32.
        leader: For mergers: the token that represents each token; a token that stays represents itself. `(d, n)`.
        copied: For KV methods: the token that each key is a copy of; None if keys are blends. `(d, m)`.
    """

    name: str
    index: int
    grid: Grid
    timesteps: Array
    salience: Array
    scores: Array | None = None
    leader: Array | None = None
    copied: Array | None = None


class Collector:
    """Collects the decisions about some images in one batch; they stay on the device until they are read."""

    def __init__(self, rows: Mapping[str, RowKeys], sites: Collection[int], device: torch.device) -> None:
        """Follow rows, by image id, at sites, by index, in forwards on a device."""
        self._sites = sites
        self._draws = [(image_id, draw) for image_id, keys in rows.items() for draw in range(len(keys.keys))]
        classes = [keys.classes for keys in rows.values() if keys.classes is not None]
        keys = torch.cat([keys.keys for keys in rows.values()]).to(device)
        self._followed = RowKeys(keys, torch.cat(classes).to(device) if classes else None)
        self._site_info: dict[int, tuple[str, Grid]] = {}
        # By image, site and draw; a forward that is repeated with fewer rows decides the same.
        self._arrays: dict[tuple[str, int], dict[int, Arrays]] = {}

    def add(self, decision: Decision) -> None:
        """Keep the followed rows of a decision."""
        site, context = decision.site, decision.context
        if site.index not in self._sites:
            return
        if self not in context.cache:
            context.cache[self] = matches(context, self._followed)
        rows, positions = context.cache[self]
        if not positions:
            return
        self._site_info[site.index] = (site.name, site.grid(context.latent))
        arrays = arrays_of(decision, rows)
        for row, (image_id, draw) in enumerate(self._draws[position] for position in positions):
            draws = self._arrays.setdefault((image_id, site.index), {})
            draws[draw] = {name: array[row] for name, array in arrays.items()}

    def maps(self) -> dict[str, list[SiteMap]]:
        """Return the maps of every image in the order of sites."""
        maps: dict[str, list[SiteMap]] = {}
        for (image_id, index), draws in sorted(self._arrays.items()):
            by_timestep = sorted(draws.values(), key=lambda draw: float(draw["timesteps"]))
            stacked = {name: torch.stack([draw[name] for draw in by_timestep]).cpu() for name in by_timestep[0]}
            arrays = {name: (x.float() if x.is_floating_point() else x.int()).numpy() for name, x in stacked.items()}
            name, grid = self._site_info[index]
            maps.setdefault(image_id, []).append(SiteMap(name, index, grid, **arrays))
        return maps


def rows_of(module: LightningModule, item: Item, draws: int) -> RowKeys:
    """Return rows `(d,)` of forwards that every run computes for an image: at most as many noise draws, or steps."""
    if isinstance(module, DiffusionClassifier):
        # Every class is evaluated in the first stage or before the first look of a race, so the true one is, too.
        trials = torch.tensor(evenly(module.stages_of(item.image_id)[0], draws))
        keys = module.keys_of([item.image_id])[0, trials]
        return RowKeys(keys, torch.full_like(keys, next(iter(item.labels), 0)))
    if isinstance(module, DiffusionSampler):
        image = torch.tensor([stable_hash(item.image_id)])
        key, steps = item_keys(image, module.seed), evenly(range(len(module.scheduler.timesteps)), draws)
        return RowKeys(torch.cat([step_keys(key, step) for step in steps]))
    assert isinstance(module, FeatureProbe)
    return RowKeys(torch.stack(evenly(module.keys_of([item.image_id])[0].unbind(), draws)))


def evenly(values: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the values, evenly spaced, including the first and the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]


def matches(context: ForwardContext, followed: RowKeys) -> tuple[Tensor, list[int]]:
    """Find the followed rows in a forward by their keys; synchronizes with the device once.

    Of several rows with the same key the last one counts: of a guided pair the one with its condition.

    Returns:
        Row numbers `(r,)`, int64 on the device, and the position of each in `followed`.
    """
    same = context.keys[:, None] == followed.keys
    if followed.classes is not None:
        same &= context.classes[:, None] == followed.classes
    number = torch.arange(1, len(same) + 1, device=same.device)[:, None]
    last = (same * number).amax(0).cpu()
    present = last.nonzero().squeeze(1)
    return (last[present] - 1).to(same.device), present.tolist()


def arrays_of(decision: Decision, rows: Tensor) -> Arrays:
    """Return the arrays of `SiteMap` that exist, `(r, ...)` each, for some rows of a decision. `(r,)`, int64."""
    site, tokens, context = decision.site, decision.tokens[rows], decision.context.of_rows(rows)
    arrays: dict[str, Tensor | None] = {
        "timesteps": context.timesteps,
        "salience": laplacian_l1(tokens, site.grid(context.latent)),
        "scores": decision.compressor.token_scores(tokens, site, context),
    }
    if decision.plan is not None:
        arrays["leader"] = decision.plan.kept[rows].gather(1, decision.plan.restore[rows])
    if isinstance(decision.compressor, KVDownsampler):
        arrays["copied"] = decision.compressor.key_tokens(tokens, site, context)
    return {name: array.expand(len(rows), *array.shape[1:]) for name, array in arrays.items() if array is not None}


def write_site(path: Path, maps: Mapping[str, SiteMap]) -> None:
    """Store the maps of several images, by id, at one site; token maps as `(images, draws, h, w)`.

    Raises:
        InputError: If the file cannot be written.
    """
    sites = list(maps.values())
    names = [name for name in _ARRAYS if getattr(sites[0], name) is not None]
    arrays: dict[str, Any] = {name: np.stack([getattr(site, name) for site in sites]) for name in names}
    for name in arrays.keys() - {"timesteps", "copied"}:
        arrays[name] = arrays[name].reshape(len(sites), -1, *sites[0].grid)
    with replacing(path, "choose another --output") as file:
        np.savez_compressed(file, image_id=np.array([*maps]), site=np.array(sites[0].name), **arrays)
