"""Importance merging: tokens that guidance hardly moves merge first, and none of them is a destination."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Site
from bigain.compressors.merging import CellMerger, site_keys
from bigain.diffusion.schedules import Schedule
from bigain.errors import InputError
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import cell_count
from bigain.tokens.matching import MergePlan, bipartite_matching, highest
from bigain.tokens.randomness import random_bits


class ImportanceMerging(CellMerger):
    """Importance-based token merging: destinations and independent tokens are among the important ones.

    The importance of a token is the mean magnitude of the guidance difference, conditional minus unconditional output,
    over its pixels and channels. The most important tokens, `1 - ratio / 2` of all, are the pool, of which destinations
    are drawn at random. All tokens outside it merge into their most similar destination; of the others, the most
    similar ones do.

    Source: Wu et al., Importance-Based Token Merging for Efficient Image and Video Generation (ICCV 2025, arXiv
    2411.16720), its overview of the method. Ours: the difference is that of the step before, since a forward has to
    plan before it is known (in the first step all tokens are in the pool); the size of the pool; as many destinations
    as there are cells.
    Cost: `2 * (3n/4) * (n/4) * c` FLOPs per site for the similarities at 2x2 cells.
    """

    generation_only = "it ranks tokens by the guidance of the step before, which a classifier does not have"

    def __init__(self, *, ratio: float | Schedule, seed: int = 0, **kwargs: Any) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area].
            seed: Seed of the destinations, drawn from (seed, row key, site). Commands set it: `--seed`.
            kwargs: See the base classes.
        """
        super().__init__(ratio=ratio, **kwargs)
        self.seed = seed

    def check_module(self, module: Any) -> None:
        super().check_module(module)
        if module.guidance == 1:
            raise InputError("ImportanceMerging ranks tokens by guidance, and guidance: 1 is none; choose another")

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        if context.guidance is None:
            return x.new_zeros(x.shape[:2], dtype=torch.float32)
        return F.adaptive_avg_pool2d(context.guidance[:, None], site.grid(context.latent)).flatten(1)

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid, x = site.grid(context.latent), x.detach()
        removed = self.removed(grid, site, context)
        kernels_serve(x, "a pool of important tokens")
        draws, outside_pool = random_bits(site_keys(context, self.seed, site), grid.n), None
        if context.guidance is not None:
            with mark("scoring"):
                scores = self.token_scores(x, site, context)
            pool = 1 - self.value_in(context) / 2
            outside_pool = ~highest(scores, max(grid.n - removed, int(pool * grid.n)))
            draws = draws.masked_fill(outside_pool, -1)
        destination = draws.topk(cell_count(grid, self.cell), dim=1).indices
        return bipartite_matching(x, destination, removed, "mean", first=outside_pool)
