"""SiTo: prune the tokens that resemble a base token, recover them from the most similar kept one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.sites import Metric, Site
from bigain.compressors.merging import Module, TokenMerger, check_ratio, removed_tokens, site_keys
from bigain.compressors.where import Where
from bigain.errors import InputError
from bigain.tokens.matching import MergePlan
from bigain.tokens.randomness import random_normal
from bigain.tokens.similarity_pruning import similarity_pruning


class SiTo(TokenMerger):
    """Similarity-based token pruning.

    Source: Zhang et al., Training-Free and Hardware-Friendly Acceleration for Diffusion Models via Similarity-based
    Token Pruning (AAAI 2025). Upstream runs the cosine graph in half precision, where the noise mostly rounds away;
    here it is float32.
    Cost: `2 * n^2 * c` FLOPs per site for the cosine graph.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.5,
        noise_alpha: float = 0.1,
        sim_beta: float = 1.0,
        cell: Sequence[int] = (2, 2),
        where: Where = Where(),  # noqa: B008 - frozen
        modules: Sequence[Module] = ("self_attn",),
        metric: Metric | None = None,
        seed: int = 0,
    ) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens pruned, in (0, 1 - 1/area]; upstream's default is 0.5, the paper uses 0.7.
            noise_alpha: Weight of the noise in the base token choice, at least 0.
            sim_beta: Weight of the summed similarity.
            cell: Height and width of the cells; one base token each.
            where: Sites; the default is every stride-1 block.
            modules: Any of self_attn, cross_attn, mlp; the paper's default is self-attention.
            metric: `block_input` or `attn_input`; null is the network's default.
            seed: Of the noise, a pure function of (seed, row key, site).

        Raises:
            InputError: If an argument is out of range.
        """
        super().__init__(where, modules, metric)
        if noise_alpha < 0:
            raise InputError(f"noise_alpha must be at least 0, not {noise_alpha}")
        self.ratio = ratio
        self.noise_alpha = noise_alpha
        self.sim_beta = sim_beta
        self.cell = check_ratio(ratio, cell)
        self.seed = seed

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid = site.grid(context.latent)
        removed = removed_tokens("SiTo", self.ratio, grid, self.cell, site)
        noise = random_normal(site_keys(context, self.seed, site), grid.n)
        return similarity_pruning(x, noise, grid, self.cell, removed, self.noise_alpha, self.sim_beta)
