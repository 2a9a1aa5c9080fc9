"""MosaicDiff: heads and channels pruned by second-order importance, by stages of the timestep."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from bigain.backbones.sites import Site
from bigain.compressors.structural import EVERYWHERE, StructuralPruner
from bigain.compressors.where import Where
from bigain.errors import InputError

# Added to the diagonal of the second moments, relative to its mean: they may be singular.
DAMPING = 0.01


class MosaicDiff(StructuralPruner):
    """Prunes attention heads and MLP channels, fewer in the middle of the trajectory, where training learns fastest.

    Source: Guo et al., MosaicDiff (ICCV 2025), arXiv 2510.11962: three stages of the trajectory, 1000 to 600, 600 to
    200 and 200 to 0 for DiT, each with its own sparsity and subnetwork, pruned by second-order importance on noised
    calibration images of its stage. Its formula of importance was not at hand; ours is the optimal brain surgeon for
    groups of columns (Hassibi and Stork, 1993), see `prune`. Further deviations: the stages of DiT for all models; the
    middle's sparsity is a fixed part of the others'; all blocks have the same sparsity; residual blocks of U-Nets stay
    whole; all layers are calibrated at once, on the dense network.
    Cost: only the heads and channels that are left; once per network, `scripts/calibrate_mosaicdiff.py`: forwards of
    the calibration images, and for a layer of d inputs O(d^2) per removed head or channel. Memory: the layers of each
    stage, beside the network.
    """

    script = "scripts/calibrate_mosaicdiff.py"

    def __init__(
        self,
        *,
        ratio: float,
        masks: str | None = None,
        middle: float = 0.5,
        boundaries: Sequence[int] = (200, 600),
        where: Where = EVERYWHERE,
    ) -> None:
        """Set the method up.

        Args:
            ratio: Sparsity: the part of the heads of an attention, and of the channels of an MLP, that is removed at
                early and late timesteps, rounded down; below 1.
            masks: File that `scripts/calibrate_mosaicdiff.py` writes for the weights of one network and these settings;
                null only counts FLOPs.
            middle: Sparsity of the middle stage, relative to `ratio`; 0 to 1.
            boundaries: Timesteps at which the middle stage begins and ends, of 1000.
            where: See the base class; by default all strides.
        """
        super().__init__(masks, boundaries, where)
        if not 0 < ratio < 1 or not 0 <= middle <= 1 or len(boundaries) != 2:
            raise InputError(
                "ratio must be above 0 and below 1, middle 0 to 1, and boundaries two timesteps, not "
                f"{ratio}, {middle} and {list(boundaries)}"
            )
        self.ratio = ratio
        self.middle = middle

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsity of each stage, from low to high timesteps."""
        return (self.ratio, self.ratio * self.middle, self.ratio)

    def removed(self, units: int) -> list[int]:
        """Return how many of the heads or channels of a module are removed, by stage; at least one stays."""
        # 0.29 * 100 rounds to slightly less than 29.
        return [min(int(sparsity * units + 1e-9), units - 1) for sparsity in self.sparsities]

    def smaller(self, site: Site, name: str, module: nn.Module, stage: int) -> nn.Module | None:
        output, size = output_of(name, module)
        units = output.in_features // size
        removed = self.removed(units)
        if isinstance(module, FeedForward) and not any(removed):
            raise InputError(
                f"MosaicDiff with ratio {self.ratio} removes nothing of the {units} channels of {name}; raise the ratio"
            )
        if not removed[stage]:
            return None
        kept, weight = torch.arange(kept_count := units - removed[stage]), None
        if self.tensors is not None:
            kept, weight = (self.tensors.get(f"{name}.{field}.{stage}", kept[:0]) for field in ("kept", "weight"))
        if len(kept) != kept_count:
            raise InputError(
                f"{self.masks} was made for other settings: in stage {stage} it keeps {len(kept)} of {units} heads "
                f"or channels of {name}, not {kept_count}; make it with {self.script} (see --help)"
            )
        columns = (kept[:, None] * size + torch.arange(size)).flatten().to(output.weight.device)
        last = _linear(output, output.weight[:, columns] if weight is None else weight.to(output.weight), output.bias)
        return _copy_with_columns(module, columns, last, size)


def output_of(name: str, module: Any) -> tuple[nn.Linear, int]:
    """Return the projection that ends an attention or MLP, and its input columns per head or channel.

    Raises:
        InputError: If the module has another structure than those of U-Nets, DiT and PixArt.
    """
    if isinstance(module, FeedForward):
        output, size = module.net[2], 1
    else:
        is_known = isinstance(module, Attention) and type(module.processor) in (AttnProcessor, AttnProcessor2_0)
        if not is_known or module.fused_projections or module.added_kv_proj_dim is not None:
            raise InputError(f"MosaicDiff does not know the structure of {name} ({type(module).__name__}); exclude it")
        output = module.to_out[0]
        size = output.in_features // module.heads
    if type(output) is not nn.Linear:
        raise InputError(f"{name} ends in a {type(output).__name__}, perhaps with adapters; merge them into weights")
    return output, size


def _copy_with_columns(module: Any, columns: Tensor, last: nn.Linear, size: int) -> nn.Module:
    """Return a copy of an attention or MLP with some of its heads or channels, which shares hooks and other modules."""

    def projection(layer: nn.Linear, rows: Tensor) -> nn.Linear:
        return _linear(layer, layer.weight[rows], None if layer.bias is None else layer.bias[rows])

    if isinstance(module, FeedForward):
        expand, width = module.net[0], module.net[2].in_features
        # In a gated projection, the gates of all channels follow the channels.
        rows = torch.cat([columns + first for first in range(0, expand.proj.out_features, width)])
        first = _copy_with(expand, proj=projection(expand.proj, rows))
        return _copy_with(module, net=_copy_with(module.net, **{"0": first, "2": last}))
    projections = {name: projection(getattr(module, name), columns) for name in ("to_q", "to_k", "to_v")}
    copied = _copy_with(module, **projections, to_out=_copy_with(module.to_out, **{"0": last}))
    copied.heads, copied.inner_dim, copied.inner_kv_dim = len(columns) // size, len(columns), len(columns)
    return copied


def _copy_with(module: nn.Module, **children: nn.Module) -> Any:
    """Return a copy of a module with other children and the same hooks, also those that are registered later."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, **children}
    return copied


def _linear(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a copy of a linear layer with copies of other weights and the same hooks."""
    copied = copy.copy(layer)
    copied.out_features, copied.in_features = weight.shape
    copied._parameters = {"bias": None}
    copied.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        copied.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return copied


def prune(weight: Tensor, moments: Tensor, size: int, removed: int) -> tuple[Tensor, Tensor]:
    """Remove groups of input columns of a linear layer one by one, and adjust the others: optimal brain surgeon.

    With the second moments H of the inputs, removing the columns P changes the output by tr(W_P (H^-1_PP)^-1 W_P^T)
    if the others become W - W_P (H^-1_PP)^-1 H^-1_P. Each time, the group with the smallest change is removed.

    Args:
        weight: `(out, in)`.
        moments: Sums of products of the inputs. `(in, in)`.
        size: Columns per group: the head's dimension, or 1.
        removed: Groups to remove, fewer than there are.

    Returns:
        The groups that are kept, ascending, int64, and their weights, `(out, kept * size)`, float64.
    """
    weight, damped = weight.double().clone(), moments.double().clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    inverse = torch.linalg.inv(damped)
    groups = torch.arange(len(moments), device=moments.device).view(-1, size)
    is_kept = torch.ones(len(groups), dtype=torch.bool, device=moments.device)
    identity = torch.eye(size, dtype=inverse.dtype, device=inverse.device)
    for _ in range(removed):
        blocks = inverse[groups[:, :, None], groups[:, None, :]]
        curvature = torch.linalg.inv(torch.where(is_kept[:, None, None], blocks, identity))
        columns = weight.view(len(weight), -1, size).transpose(0, 1)
        change = ((columns @ curvature) * columns).sum((1, 2)).masked_fill(~is_kept, torch.inf)
        group = change.argmin()
        removed_columns = groups[group]
        step = curvature[group] @ inverse[removed_columns]
        weight -= weight[:, removed_columns] @ step
        inverse -= inverse[:, removed_columns] @ step
        weight[:, removed_columns] = 0
        is_kept[group] = False
    kept = is_kept.nonzero().flatten()
    return kept, weight[:, groups[kept].flatten()]
