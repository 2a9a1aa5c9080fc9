"""Merge plans, and the bipartite matching of ToMe and LGTM."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bigain.tokens.precision import NORM_FLOOR, products, unit_tokens, without_autocast

Mode = Literal["mean", "prune", "mlerp"]

# Similarities computed at a time, in elements. On a CPU one block of memory is reused, because fresh pages cost more
# than the maximum over them; a GPU only needs a bound.
_BLOCK_ON_CPU = 2**20
_BLOCK = 2**28


@dataclass(frozen=True)
class MergePlan:
    """Tokens that leave a sequence and the rows that replace them: **M** and **U** of Eq. 6 as data.

    The `k` rows of the merged sequence are the remaining tokens in their original order. Plans whose rows or restored
    tokens are weighted sums are subclasses, in `weighted.py`.

    Attributes:
        kept: Token id of every merged row. `(b, k)`, int64.
        removed: Token ids that leave. `(b, n - k)`, int64.
        target: Merged row that each removed token goes into. `(b, n - k)`, int64.
        restore: Merged row that each token reads back. `(b, n)`, int64.
        mode: `mean`: a row is the mean of its own token and all merged into it; `prune`: its own token; `mlerp`: the
            mean, lengthened to the largest norm of these tokens.
        present: Rows of a padded plan that are not padding; None if the plan is not padded. `(b, n)`, bool.
    """

    kept: Tensor
    removed: Tensor
    target: Tensor
    restore: Tensor
    mode: Mode = "mean"
    present: Tensor | None = None

    @classmethod
    def from_leaders(cls, leader: Tensor, removed: int, mode: Mode = "mean") -> MergePlan:
        """Build a plan from the token that represents each token.

        Args:
            leader: A remaining token leads itself; a removed one is led by the token that replaces it. `(b, n)`, int64.
            removed: Number of removed tokens, the same in each row.
            mode: Content of the leader's row.
        """
        b, n = leader.shape
        token = torch.arange(n, device=leader.device).expand(b, n)
        is_kept = leader == token
        # A stable partition without a sort: a token's position is its rank among kept or removed tokens.
        rank = is_kept.cumsum(1) - 1
        position = torch.where(is_kept, rank, n - removed + token - rank - 1)
        order = torch.empty_like(leader).scatter_(1, position, token)
        restore = rank.gather(1, leader)
        removed_ids = order[:, n - removed :]
        return cls(order[:, : n - removed], removed_ids, restore.gather(1, removed_ids), restore, mode)

    @classmethod
    def padded(cls, leader: Tensor) -> MergePlan:
        """Build a plan of n rows in mode `mean`, for sequences that lose different numbers of tokens.

        See `from_leaders`. Rows of removed tokens are padding, which `key_mask` hides from attention; `removed` holds
        all tokens.
        """
        token = torch.arange(leader.shape[1], device=leader.device).expand_as(leader)
        return cls(token, token, leader, leader, "mean", leader == token)

    def key_mask(self, x: Tensor, proportional: bool = False) -> Tensor | None:
        """Return what is added to the attention logits of merged `x`: minus infinity at padding. `(b, 1, k)`.

        With `proportional` the logarithm of `sizes`; None if there is nothing to add.
        """
        if proportional:
            return self.sizes().log().to(x.dtype)[:, None]
        if self.present is None:
            return None
        return x.new_zeros(self.present.shape).masked_fill(~self.present, -torch.inf)[:, None]

    def of_rows(self, rows: Tensor) -> MergePlan:
        """Return the plans of some sequences, possibly repeated. `(r,)`, int64."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def merge(self, x: Tensor) -> Tensor:
        """Shorten a sequence. `(b, n, c)` -> `(b, k, c)`, same dtype; sums are taken in float32."""
        if self.mode == "prune":
            return _take(x, self.kept)
        mean = self.average(x)
        if self.mode == "mlerp":
            norm = torch.linalg.vector_norm(x.float(), dim=2)
            largest = norm.gather(1, self.kept).scatter_reduce(1, self.target, norm.gather(1, self.removed), "amax")
            mean = mean * (largest / torch.linalg.vector_norm(mean, dim=2).clamp_min(1e-12))[..., None]
        return mean.to(x.dtype)

    def average(self, x: Tensor) -> Tensor:
        """Return the mean of the tokens of each row. `(b, n, c)` -> `(b, k, c)`, float32."""
        kept = _take(x, self.kept)
        b, k, c = kept.shape
        # Rows of all sequences in one matrix: torch's fast scatter path needs dimension 0.
        row = torch.arange(b, device=x.device)[:, None] * k + self.target
        total, added = kept.float().view(b * k, c), _take(x, self.removed).float().view(-1, c)
        ones = torch.ones(b * k + row.numel(), device=x.device, dtype=torch.float32)
        weight = ones[b * k :]
        if self.present is not None:
            added = added.masked_fill(self.present.view(-1, 1), 0)
            weight = weight.masked_fill(self.present.flatten(), 0)
        if x.device.type == "cuda":
            # On CUDA, the order of sums in scatter_add changes from run to run.
            total = total.index_put((row.flatten(),), added, accumulate=True)
        else:
            total = total.scatter_add(0, row.view(-1, 1).expand(-1, c), added)
        count = ones[: b * k].scatter_add(0, row.flatten(), weight)
        return (total / count[:, None]).view(b, k, c)

    def sizes(self) -> Tensor:
        """Return how many tokens each merged row stands for; 0 where a row is padding. `(b, k)`, float32."""
        ones = torch.ones(self.restore.shape, device=self.restore.device, dtype=torch.float32)
        return ones.new_zeros(self.kept.shape).scatter_add(1, self.restore, ones)

    def unmerge(self, y: Tensor) -> Tensor:
        """Copy merged rows back to every token they stand for. `(b, k, c)` -> `(b, n, c)`."""
        return _take(y, self.restore)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Gather rows of each sequence. `(b, n, c)`, `(b, m)` -> `(b, m, c)`."""
    b, n, c = x.shape
    flat = index + torch.arange(b, device=x.device)[:, None] * n
    return x.reshape(b * n, c).index_select(0, flat.flatten()).view(b, -1, c)


def sources_of(destination: Tensor, n: int) -> Tensor:
    """Return the tokens that are not destinations, ascending. `(b, m)` -> `(b, n - m)`."""
    b, m = destination.shape
    is_source = torch.ones(b, n, dtype=torch.int64, device=destination.device).scatter_(1, destination, 0)
    token = torch.arange(n, device=destination.device).expand(b, n)
    rank = is_source.cumsum(1)
    position = torch.where(is_source.bool(), rank - 1, n - m + token - rank)
    return torch.empty_like(position).scatter_(1, position, token)[:, : n - m]


def _most_similar(x: Tensor, source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    """Find the destination with the highest cosine for each source, the first on ties.

    Args:
        x: Tokens. `(b, n, c)`, any float dtype.
        source: Token ids. `(b, s)`, int64.
        destination: Token ids. `(b, m)`, int64.

    Returns:
        `(b, s)` float32, and positions in `destination`, `(b, s)` int64.
    """
    s, m = source.shape[1], destination.shape[1]
    block = _BLOCK_ON_CPU if x.device.type == "cpu" else _BLOCK
    # A block holds several sequences, or a sequence takes several blocks.
    rows, tokens = _even_part_size(len(x), block // (s * m)), _even_part_size(s, block // m)
    buffer = torch.empty(rows * tokens * m, device=x.device, dtype=torch.float32)
    best, choice = [], []
    for x_rows, source_ids, target_ids in zip(x.split(rows), source.split(rows), destination.split(rows), strict=True):
        targets, target_norms = _directions(_take(x_rows, target_ids))
        for ids in source_ids.split(tokens, dim=1):
            sources, source_norms = _directions(_take(x_rows, ids))
            cosines = products(sources, targets.mT, buffer[: ids.numel() * m].view(*ids.shape, m))
            if source_norms is not None and target_norms is not None:
                cosines.div_(target_norms[:, None]).div_(source_norms[..., None])
            nearest = cosines.max(dim=2)
            best.append(nearest.values.flatten())
            choice.append(nearest.indices.flatten())
    return torch.cat(best).view(-1, s), torch.cat(choice).view(-1, s)


def _directions(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return unit tokens `(b, n, c)`, in half precision the tokens and the norms to divide products by, `(b, n)`.

    Products of half-precision tokens are exact, those of rounded unit tokens are not.
    """
    if x.dtype not in (torch.float16, torch.bfloat16):
        return unit_tokens(x), None
    return x, x.float().norm(dim=-1).clamp_(min=NORM_FLOOR)


def _even_part_size(count: int, limit: int) -> int:
    """Return the size of nearly equal parts of at most `limit`, which threads share better than unequal ones."""
    return -(-count // -(-count // max(1, limit)))


def highest(values: Tensor, count: int) -> Tensor:
    """Mark the `count` highest values of each row, the first on ties. `(b, s)` -> `(b, s)`, bool."""
    # Comparisons with NaN are false, which would mark too few.
    values = values.nan_to_num(nan=-torch.inf)
    threshold = values.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = values > threshold, values == threshold
    remaining = count - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= remaining))


def bipartite_matching(
    metric: Tensor,
    destination: Tensor,
    removed: int,
    mode: Mode = "mean",
    gate: tuple[Tensor, int] | None = None,
    first: Tensor | None = None,
) -> MergePlan:
    """Merge the sources most similar to their best destination (ToMe for SD; Algorithm 2 of BiGain).

    Args:
        metric: Tensor that cosine similarities are taken on, in float32. `(b, n, c)`, any float dtype.
        destination: Token ids, distinct in each row. `(b, m)` or `(1, m)`, int64.
        removed: Number of sources to merge, at most `n - m`.
        mode: See `MergePlan`.
        gate: Detail per token, `(b, n)`, and the number of sources, those of lowest detail, that may merge.
        first: Tokens that merge before all others. `(b, n)`, bool.

    Returns:
        The plan. Equal similarities go to the lower destination and the lower source index.

    Raises:
        ValueError: If `removed` is not in 1..n - m, or more than the gate lets through.
    """
    b, n, _ = metric.shape
    # Ascending, so that the first maximum is the lowest token.
    destination = destination.sort(dim=1).values.expand(b, -1)
    m = destination.shape[1]
    if not 1 <= removed <= (n - m if gate is None else min(gate[1], n - m)):
        raise ValueError(f"cannot merge {removed} of {n - m} source tokens")
    source = sources_of(destination, n)
    # Plans are indices and have no gradients.
    with without_autocast(metric), torch.no_grad():
        best, choice = _most_similar(metric, source, destination)
    if gate is not None:
        best = best.masked_fill(~highest(-gate[0].gather(1, source), gate[1]), -torch.inf)
    if first is not None:
        best = best.masked_fill(first.gather(1, source), torch.inf)
    merged_into = torch.where(highest(best, removed), destination.gather(1, choice), source)
    leader = torch.arange(n, device=metric.device).repeat(b, 1).scatter_(1, source, merged_into)
    return MergePlan.from_leaders(leader, removed, mode)
