"""The limit of a method: the same number of tokens kept at the same sites, every k-th one, known in advance."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Layout, Site
from bigain.compressors import Compressor
from bigain.compressors.base import ContextGetter
from bigain.compressors.kv import KVDownsampler
from bigain.compressors.merging import TokenMerger
from bigain.tokens.grid import Grid
from bigain.tokens.matching import MergePlan


@dataclass(frozen=True)
class FreePlan(MergePlan):
    """A plan for rows of any number, whose merging and unmerging copies rows and does nothing else."""

    def merge(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.kept[0])

    def unmerge(self, y: Tensor) -> Tensor:
        return y.index_select(1, self.restore[0])


class FreeMerger(TokenMerger):
    """Keeps as many tokens as another merger, around the same modules, without deciding.

    Attributes:
        key: Equal for mergers whose limits are the same.
    """

    def __init__(self, imitated: TokenMerger, kept: Mapping[int, int], latent: Grid) -> None:
        super().__init__(imitated.where, imitated.modules, imitated.metric)
        self.imitated = imitated
        self.key = (FreeMerger, self.modules, *kept.items())
        self._kept, self._latent, self._plans = kept, latent, dict[int, MergePlan]()

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        n, kept = site.grid(self._latent).n, self._kept[site.index]
        token = torch.arange(n, device=_device(site))
        restore, chosen = token * kept // n, _evenly(n, kept, token.device)
        # Nothing reads the removed tokens.
        self._plans[site.index] = FreePlan(chosen[None], chosen[None, :0], chosen[None, :0], restore[None], "prune")
        super().hook_site(layout, site, context, undo)

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        return self._plans[site.index]


class FreeKeys(KVDownsampler):
    """Keeps as many keys as another method, by an index that is known in advance. `key` as in `FreeMerger`."""

    def __init__(self, imitated: KVDownsampler, kept: Mapping[int, int], latent: Grid) -> None:
        super().__init__(imitated.where)
        self.imitated = imitated
        self.key = (FreeKeys, *kept.items())
        self._kept, self._latent, self._index = kept, latent, dict[int, Tensor]()

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        self._index[site.index] = _evenly(site.grid(self._latent).n, self._kept[site.index], _device(site))
        super().hook_site(layout, site, context, undo)

    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return x.index_select(1, self._index[site.index])


def limit_of(compressor: Compressor, denoiser: nn.Module, latent: Grid) -> FreeMerger | FreeKeys | None:
    """Return what a decision of this compressor would take if it cost nothing; None for a kind of its own.

    Args:
        compressor: Any; it is not installed.
        denoiser: The network.
        latent: Size of the latents.
    """
    kept = {site.index: compressor.tokens_out(site, latent) for site in compressor.sites_of(denoiser)}
    if isinstance(compressor, TokenMerger):
        return FreeMerger(compressor, kept, latent)
    return FreeKeys(compressor, kept, latent) if isinstance(compressor, KVDownsampler) else None


def _evenly(n: int, kept: int, device: torch.device) -> Tensor:
    """Return `kept` of `n` tokens, the first of equally long stretches. `(kept,)`, int64, ascending."""
    return -(-torch.arange(kept, device=device) * n // kept)


def _device(site: Site) -> torch.device:
    return next(site.block.parameters()).device
