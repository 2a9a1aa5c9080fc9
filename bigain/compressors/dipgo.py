"""DiP-GO: attentions and MLPs skipped at some timesteps, chosen by learned scores for a budget of FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigain.backbones.sites import Site
from bigain.compressors.structural import EVERYWHERE, Masks, StructuralPruner, prunable
from bigain.compressors.where import Where
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError

# How far the saving may exceed `ratio`, relative to it.
_TOLERANCE = 0.005


class DiPGO(StructuralPruner):
    """Skips the attentions and MLPs that matter least at each timestep, as scores say that were learned by gradients.

    Source: Zhu et al., DiP-GO (NeurIPS 2024), arXiv 2410.16942: gates of all blocks at all timesteps, predicted by a
    pruner network from one query each; a consistency and a sparsity loss in a few gradient steps on the network's own
    samples, without images; then scores are turned into a subnetwork of a given cost. A skipped block of the paper
    takes its features from the neighbouring timestep. A classifier has no neighbouring timestep, so what replaces an
    attention or MLP here is its residual path, in generation as well. Further deviations: attentions and MLPs are
    gated rather than blocks; residual blocks of U-Nets stay; timesteps are grouped in bins, since a classifier uses
    any of them; consistency is that of single predictions, not of finished images, so that one forward learns all
    bins; scores enter as soft gates while they are learned; the subnetwork is the best one (a knapsack), where the
    paper has a threshold. Of the paper we read an excerpt, which leaves the hyperparameters open.

    Cost: only the modules that still run, and the norms before those that do not. Once per network
    `scripts/fit_dipgo.py`: some hundred gradient steps of as many rows as there are bins.
    """

    script = "scripts/fit_dipgo.py"

    def __init__(self, *, ratio: float, masks: str, bins: int = 20, where: Where = EVERYWHERE) -> None:
        """Set the method up.

        Args:
            ratio: Part of the network's FLOPs that is saved, averaged over timesteps 0 to 999; above 0. The nearest
                possible one is taken.
            masks: File of scores that `scripts/fit_dipgo.py` writes for the weights of one network; it serves all
                ratios.
            bins: Groups of neighbouring timesteps, of equal size; 2 to 50.
            where: See the base class; by default all strides.

        Raises:
            InputError: If a number is out of range.
        """
        if not 0 < ratio < 1 or not 2 <= bins <= 50:
            raise InputError(f"ratio must be above 0 and below 1, and bins 2 to 50, not {ratio} and {bins}")
        super().__init__(masks, [round(TIMESTEPS * end / bins) for end in range(1, bins)], where)
        self.ratio = ratio
        self.bins = bins

    @property
    def largest_ratio(self) -> float:
        """Part of the FLOPs that all attentions and MLPs in the file cost; an InputError if there is no file."""
        return sum(float(cost) for name, cost in self.read_masks().items() if name.endswith(".cost"))

    def masks_of(self, denoiser: nn.Module) -> Masks:
        """Return whether a module runs, `(bins,)` bool, for this budget."""
        tensors = self.read_masks(denoiser)
        names = list(prunable(self.sites_of(denoiser)))
        try:
            scores, costs = (torch.stack([tensors[f"{name}.{field}"] for name in names]) for field in ("score", "cost"))
        except LookupError as error:
            raise InputError(f"{self.masks} was made for another network: it has no {error}") from error
        if scores.shape[1] != self.bins:
            raise InputError(f"{self.masks} has scores of {scores.shape[1]} bins, not of {self.bins}: set bins")
        return dict(zip(names, choose_kept(scores, costs, self.ratio), strict=True))

    def smaller(self, site: Site, name: str, module: nn.Module, stage: int) -> nn.Module | None:
        if site.processor is not None:
            raise InputError(f"DiP-GO skips residual branches of image tokens; {site.name} has text in them")
        return None if self.tensors[name][stage] else _Zero()


class _Zero(nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what leaves a residual path unchanged."""
        return torch.zeros_like(hidden_states)


def choose_kept(scores: Tensor, costs: Tensor, ratio: float, steps: int = 20_000) -> Tensor:
    """Choose which modules run in which bins, so that the others cost `ratio` with the least score lost.

    The score that is lost is the sum of score times cost over what is skipped: a knapsack, solved by dynamic
    programming over what is saved, between `ratio` and 0.5 % more. If no choice lies there, the nearest is taken.

    Args:
        scores: How important a module is in a bin, in [0, 1]. `(n, bins)`.
        costs: FLOPs of each module, relative to those of the network. `(n,)`.
        ratio: FLOPs to save, relative to those of the network, averaged over bins.
        steps: Number of steps that `ratio` is divided into; increased if rounding to them misses the budget.

    Returns:
        `(n, bins)`, bool.

    Raises:
        InputError: If all modules together cost less.
    """
    if ratio > (total := float(costs.sum())):
        raise InputError(f"ratio must be at most {total:.3f}, which attentions and MLPs cost together, not {ratio}")
    shares = (costs.double()[:, None] / scores.shape[1]).expand_as(scores).flatten()
    weights = (shares * (steps / ratio)).round().long().tolist()
    # Least loss for each saving, over the items so far.
    losses = torch.full((steps + max(weights) + 1,), torch.inf, dtype=torch.float64)
    losses[0] = 0
    skipped = []
    for weight, loss in zip(weights, (scores.double().flatten() * shares).tolist(), strict=True):
        with_item = torch.cat([losses.new_full((weight,), torch.inf), losses[: len(losses) - weight] + loss])
        skipped.append(with_item < losses)
        losses = torch.minimum(losses, with_item)
    possible = losses.isfinite().nonzero().flatten()
    close = possible[(possible >= steps) & (possible <= (1 + _TOLERANCE) * steps)]
    best = close[losses[close].argmin()] if len(close) else possible[(possible - steps).abs().argmin()]
    kept, remaining = [], (saved := int(best))
    for item_skipped, weight in zip(reversed(skipped), reversed(weights), strict=True):
        kept.append(not item_skipped[remaining])
        remaining -= 0 if kept[-1] else weight
    chosen = torch.tensor(kept[::-1])
    relative_saving = float(shares[~chosen].sum()) / ratio
    if abs(relative_saving - 1) > _TOLERANCE and abs(relative_saving - saved / steps) > _TOLERANCE / 5:
        # Weights of many equal modules add up their rounding.
        return choose_kept(scores, costs, ratio, 10 * steps)
    return chosen.view_as(scores)
