"""FrequencyKV: keep the keys with the highest or the lowest Laplacian score (Table 12)."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Site
from bigain.compressors.kv import KVDownsampler
from bigain.diffusion.schedules import Schedule, by_timestep
from bigain.errors import InputError, check_choice
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.downsampling import Keep, frequency_selection, nearest_selected, selected_tokens
from bigain.tokens.scores import laplacian_l1


class FrequencyKV(KVDownsampler):
    """Keys and values of one frequency band only.

    Source: BiGain (CVPR 2026), Table 12.
    Cost: `2 * 9 * n * c` FLOPs per site for the Laplacian.
    """

    def __init__(self, *, ratio: float | Schedule, keep: Keep, **kwargs: Any) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of the keys removed, in (0, 1), or `Steps` over the timestep, where 0 removes none.
            keep: `high` or `low` scores.
            kwargs: See the base class.
        """
        super().__init__(**kwargs)
        self.strengths = by_timestep(ratio)
        if any(not 0 < value < 1 for value in {*self.strengths} - {0}) or not any(self.strengths):
            raise InputError(f"ratio must be above 0 and below 1, not {ratio}")
        check_choice("keep", keep, get_args(Keep))
        self.ratio = ratio
        self.keep: Keep = keep

    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        ratio = self.value_in(context)
        count = int(grid.n * (1 - ratio))
        if not 1 <= count < grid.n:
            raise InputError(f"FrequencyKV with ratio {ratio} keeps {count} of {grid.n} keys at {site.name}")
        if kernels_serve(x):
            from bigain.tokens.kernels.plans import frequency

            return frequency(x, grid, count, self.keep)
        with mark("scoring"):
            score = laplacian_l1(x, grid)
        return frequency_selection(x, score, count, self.keep)

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return laplacian_l1(x, site.grid(context.latent))

    def key_tokens(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        return selected_tokens(laplacian_l1(x, grid), int(grid.n * (1 - self.value_in(context))), self.keep)

    def token_keys(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return nearest_selected(self.key_tokens(x, site, context), site.grid(context.latent))
