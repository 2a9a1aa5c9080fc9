"""The limit of a method: the same number of tokens kept at the same sites, every k-th one, known in advance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.compressors import Compressor
from bigain.compressors.kv import KVDownsampler
from bigain.compressors.merging import TokenMerger
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import Grid
from bigain.tokens.matching import MergePlan


@dataclass(frozen=True)
class FreePlan(MergePlan):
    """A plan of one row for any number of rows; merging and unmerging copy tokens and do nothing else."""

    def merge(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.kept[0])

    def unmerge(self, y: Tensor) -> Tensor:
        return y.index_select(1, self.restore[0])


def free_plan(x: Tensor, kept: int) -> MergePlan:
    """Keep the first token of each of `kept` equal stretches, which stands for the whole stretch.

    Args:
        x: Sequences that it is for; only its shape, dtype and device count. `(b, n, c)`.
        kept: Tokens of each.
    """
    b, n, _ = x.shape
    token = torch.arange(n, device=x.device)
    chosen, restore = -(-token[:kept] * n // kept), token * kept // n
    if kernels_serve(x):
        from bigain.tokens.kernels.plans import KernelPlan
        from bigain.tokens.kernels.tables import ORDER, RESTORE, TABLES

        tables = torch.zeros(b, TABLES.value, n, dtype=torch.int32, device=x.device)
        tables[:, ORDER.value, :kept], tables[:, RESTORE.value] = chosen, restore
        return KernelPlan(tables, kept, mode="prune")
    # Nothing reads the removed tokens.
    return FreePlan(chosen[None], chosen[None, :0], chosen[None, :0], restore[None], "prune")


class FreeMerger(TokenMerger):
    """Keeps as many tokens as another merger, around the same modules, without deciding."""

    def __init__(self, imitated: TokenMerger, plans: Mapping[int, MergePlan]) -> None:
        super().__init__(imitated.where, imitated.modules, imitated.metric)
        self.imitated = imitated
        self._plans = plans

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        return self._plans[site.index]


class FreeKeys(KVDownsampler):
    """Keeps as many keys as another method, without deciding."""

    def __init__(self, imitated: KVDownsampler, plans: Mapping[int, MergePlan]) -> None:
        super().__init__(imitated.where)
        self.imitated = imitated
        self._plans = plans

    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return self._plans[site.index].merge(x)


def limit_of(compressor: Compressor, denoiser: nn.Module, noisy: Tensor) -> tuple[object, Compressor] | None:
    """Return the compressor that keeps as many tokens with a decision that costs nothing.

    Returns:
        What is equal for compressors with the same limit, and the limit, not installed; None for a compressor that is
        neither a merger nor a downsampler of keys.
    """
    latent, weight = Grid(*noisy.shape[-2:]), next(denoiser.parameters())
    counts = {site.index: compressor.tokens_out(site, latent) for site in compressor.sites_of(denoiser)}
    plans = {
        site.index: free_plan(weight.new_empty(len(noisy), site.grid(latent).n, 0), counts[site.index])
        for site in compressor.sites_of(denoiser)
    }
    if isinstance(compressor, TokenMerger):
        return (compressor.modules, *counts.items()), FreeMerger(compressor, plans)
    if isinstance(compressor, KVDownsampler):
        return tuple(counts.items()), FreeKeys(compressor, plans)
    return None
