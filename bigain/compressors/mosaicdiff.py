"""MosaicDiff: heads and channels pruned by second-order importance, by stages of the timestep."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from bigain.backbones.sites import Site
from bigain.compressors.structural import EVERYWHERE, Forward, Masks, StructuralPruner, follow
from bigain.compressors.where import Where
from bigain.errors import InputError

# Added to the diagonal of the second moments, relative to its mean: they may be singular.
DAMPING = 0.01


class MosaicDiff(StructuralPruner):
    """Prunes attention heads and MLP channels, fewer in the middle of the trajectory, where training learns fastest.

    Source: Guo et al., MosaicDiff (ICCV 2025), arXiv 2510.11962: three stages of the trajectory, 1000 to 600, 600 to
    200 and 200 to 0 for DiT, each with its own sparsity and its own subnetwork, pruned by second-order importance on
    noised calibration images of its stage. Known here are abstract, introduction and summaries of the method, not its
    formula of importance; ours is the optimal brain surgeon for groups of columns (Hassibi and Stork, 1993): one by
    one, the head or channel goes whose removal changes the output of its projection least if the other weights of
    that projection adjust, and they do. Further deviations: the stages of DiT for all models; the middle's sparsity
    is a fixed part of the others'; all blocks have the same sparsity; residual blocks of U-Nets stay whole; all
    layers are calibrated at once, on the dense network.

    Cost: nothing per forward beside what is left; once per network, `scripts/calibrate_mosaicdiff.py`: forwards of
    the calibration images, and for a layer of d inputs O(d^2) per removed head or channel. Memory: the layers of each
    stage, beside the network.
    """

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
        if not 0 < ratio < 1 or not 0 <= middle <= 1:
            raise InputError(f"ratio must be above 0 and below 1, and middle 0 to 1, not {ratio} and {middle}")
        if len(boundaries) != 2:
            raise InputError(f"boundaries must be two timesteps, not {list(boundaries)}")
        self.ratio = ratio
        self.middle = middle

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Of the stages, by timestep."""
        return (self.ratio, self.ratio * self.middle, self.ratio)

    def command(self) -> str:
        changed = self.description()["changed"]
        # `where` has a section of its own.
        options = [f"--compressor.{name} {value}" for name, value in changed.items() if name not in ("where", "masks")]
        options += [f"--compressor.where.{name} {value}" for name, value in changed.get("where", {}).items()]
        options += [f"--compressor.masks {self.masks or 'FILE'}"]
        return f"python scripts/calibrate_mosaicdiff.py --config CONFIG {' '.join(options)}"

    def removed(self, units: int) -> list[int]:
        """Return how many of the heads or channels of a module are removed, by stage; one at least stays."""
        # A product such as 0.29 * 100 is a little too small.
        return [min(int(sparsity * units + 1e-9), units - 1) for sparsity in self.sparsities]

    def variants(
        self, site: Site, name: str, module: nn.Module, masks: Masks | None, undo: ExitStack
    ) -> Sequence[Forward | None]:
        output, size = output_of(name, module)
        units = output.in_features // size
        removed = self.removed(units)
        if isinstance(module, FeedForward) and not any(removed):
            raise InputError(
                f"MosaicDiff with ratio {self.ratio} removes nothing of the {units} channels of {name}; raise the ratio"
            )
        smaller: list[nn.Module | None] = [None] * len(removed)
        for stage, count in enumerate(removed):
            if not count:
                continue
            # On the meta device: what is kept does not change the FLOPs.
            kept, weight = torch.arange(units - count), None
            if masks is not None and not output.weight.is_meta:
                try:
                    kept, weight = (masks.tensors[f"{name}.{part}.{stage}"] for part in ("kept", "weight"))
                except LookupError:
                    kept = kept[:0]
                if len(kept) != units - count:
                    raise InputError(
                        f"{self.masks} was made for other settings: in stage {stage} it keeps {len(kept)} of {units} "
                        f"heads or channels of {name}, not {units - count}; make it with `{self.command()}`"
                    )
            smaller[stage] = _smaller(module, kept, size, weight)
        follow(module, [part for part in smaller if part is not None], undo)
        return [None if part is None else part.forward for part in smaller]


def output_of(name: str, module: nn.Module) -> tuple[nn.Linear, int]:
    """Return the projection that ends an attention or MLP, and its input columns per head or channel.

    Raises:
        InputError: If the module has another structure than those of U-Nets, DiT and PixArt.
    """
    if isinstance(module, FeedForward):
        return _plain_linear(name, module.net[2]), 1
    known = isinstance(module, Attention) and type(module.processor) in (AttnProcessor, AttnProcessor2_0)
    if not known or module.fused_projections or module.added_kv_proj_dim is not None:
        raise InputError(f"MosaicDiff does not know the structure of {name}, a {type(module).__name__}; exclude it")
    output = _plain_linear(name, module.to_out[0])
    return output, output.in_features // module.heads


def _plain_linear(name: str, layer: nn.Module) -> nn.Linear:
    if type(layer) is not nn.Linear:
        raise InputError(f"{name} ends in a {type(layer).__name__}, perhaps with adapters; merge them into its weights")
    return layer


def _smaller(module: Any, kept: Tensor, size: int, weight: Tensor | None) -> Any:
    """Return a copy of an attention or MLP with some of its heads or channels, which shares hooks and other modules."""
    if isinstance(module, FeedForward):
        expand: Any = module.net[0]
        output: Any = module.net[2]
        # A gated one has the gates of all channels after them.
        rows = torch.cat([kept + first for first in range(0, expand.proj.out_features, output.in_features)])
        first = _with(expand, proj=_layer(expand.proj, rows))
        net = _with(module.net, **{"0": first, "2": _layer(output, columns=kept, weight=weight)})
        return _with(module, net=net)
    columns = (kept[:, None] * size + torch.arange(size)).flatten()
    last = _layer(module.to_out[0], columns=columns, weight=weight)
    projections = {name: _layer(getattr(module, name), columns) for name in ("to_q", "to_k", "to_v")}
    twin = _with(module, **projections, to_out=_with(module.to_out, **{"0": last}))
    twin.heads, twin.inner_dim, twin.inner_kv_dim = len(kept), len(columns), len(columns)
    return twin


def _with(module: nn.Module, **children: nn.Module) -> Any:
    """Return a copy of a module with other children and the same hooks, also those that are registered later."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin


def _layer(
    layer: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None, weight: Tensor | None = None
) -> nn.Linear:
    """Return some rows or columns of a linear layer; `weight` replaces the weights of the columns."""
    device = layer.weight.device
    sliced: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if rows is not None:
        rows = rows.to(device)
        sliced, bias = sliced[rows], None if bias is None else bias[rows]
    if columns is not None:
        sliced = sliced[:, columns.to(device)] if weight is None else weight.to(sliced)
    twin = copy.copy(layer)
    twin.out_features, twin.in_features = sliced.shape
    given = {"weight": sliced, "bias": bias}
    twin._parameters = {
        name: None if value is None else nn.Parameter(value.detach().clone(), requires_grad=layer.weight.requires_grad)
        for name, value in given.items()
    }
    return twin


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
    weight, moments = weight.double().clone(), moments.double()
    diagonal = moments.diagonal()
    damping = DAMPING * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)
    inverse = torch.linalg.inv(moments + damping * torch.eye(len(moments), dtype=moments.dtype, device=moments.device))
    groups = torch.arange(len(moments), device=moments.device).view(-1, size)
    alive = torch.ones(len(groups), dtype=torch.bool, device=moments.device)
    identity = torch.eye(size, dtype=inverse.dtype, device=inverse.device)
    for _ in range(removed):
        blocks = inverse[groups[:, :, None], groups[:, None, :]]
        curvature = torch.linalg.inv(torch.where(alive[:, None, None], blocks, identity))
        columns = weight.view(len(weight), -1, size).transpose(0, 1)
        change = ((columns @ curvature) * columns).sum((1, 2)).masked_fill(~alive, torch.inf)
        worst = change.argmin()
        chosen = groups[worst]
        step = curvature[worst] @ inverse[chosen]
        weight -= weight[:, chosen] @ step
        inverse -= inverse[:, chosen] @ step
        weight[:, chosen] = 0
        alive[worst] = False
    kept = alive.nonzero().flatten()
    return kept, weight[:, groups[kept].flatten()]
