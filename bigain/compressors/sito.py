"""SiTo: prune the tokens that resemble a base token, recover them from the most similar kept one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Site
from bigain.compressors.merging import CellMerger, site_keys
from bigain.diffusion.schedules import Schedule
from bigain.errors import InputError
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.matching import MergePlan
from bigain.tokens.randomness import random_normal
from bigain.tokens.similarity_pruning import similarity_pruning


class SiTo(CellMerger):
    """Similarity-based token pruning, with one base token per cell.

    Source: Zhang et al., Training-Free and Hardware-Friendly Acceleration for Diffusion Models via Similarity-based
    Token Pruning (AAAI 2025). Upstream computes the cosine graph in half precision, where the noise mostly rounds
    away; here it is float32.
    Cost: `2 * n^2 * c` FLOPs per site for the cosine graph.
    """

    def __init__(
        self,
        *,
        ratio: float | Schedule = 0.5,
        noise_alpha: float = 0.1,
        sim_beta: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens pruned, in (0, 1 - 1/area]; upstream's default is 0.5, the paper uses 0.7.
            noise_alpha: Weight of the noise in the base token choice, at least 0.
            sim_beta: Weight of the summed similarity.
            seed: Seed of the noise, which is a pure function of (seed, row key, site). Commands set it: `--seed`.
            kwargs: See the base classes.
        """
        super().__init__(ratio=ratio, **kwargs)
        if noise_alpha < 0:
            raise InputError(f"noise_alpha must be at least 0, not {noise_alpha}")
        self.noise_alpha = noise_alpha
        self.sim_beta = sim_beta
        self.seed = seed

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid, x = site.grid(context.latent), x.detach()
        removed = self.removed(grid, site, context)
        if kernels_serve(x):
            from bigain.tokens.kernels.plans import KernelPlan, similar

            draw = (context.keys, self.seed, site.index)
            tables = similar(x, grid, self.cell, removed, *draw, self.noise_alpha, self.sim_beta)
            return KernelPlan(tables, grid.n - removed, mode="prune")
        noise = random_normal(site_keys(context, self.seed, site), grid.n)
        return similarity_pruning(x, noise, grid, self.cell, removed, self.noise_alpha, self.sim_beta)
