"""FLOPs of one evaluation by category, counted by torch on a copy of the network without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from bigain.backbones.base import Backbone
from bigain.backbones.forward import Step, row_keys
from bigain.backbones.marks import PHASES, Mark, marks_reported_to
from bigain.backbones.sites import layout_of
from bigain.compressors.base import Compressor, first_timesteps
from bigain.cost.sites import site_table
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError
from bigain.tokens.grid import Grid

Category = Literal[
    "self_attention", "projections", "cross_attention", "mlp", "convolution", "matching", "scoring"
]  # fmt: skip
CATEGORIES: tuple[Category, ...] = get_args(Category)


@dataclass(frozen=True)
class Flops:
    """FLOPs of one row: 2 per multiply-add, matrix products, attention and convolutions only.

    Attributes:
        by_category: `self_attention`: its products of queries, keys and values; `cross_attention`: all of it, its
            projections included; `mlp`; `convolution`: of the network; `matching` and `scoring`: of compressors;
            `projections`: every other linear layer, most of it Q, K, V and output of self-attention.
    """

    by_category: dict[Category, int]

    @property
    def total(self) -> int:
        """Total FLOPs."""
        return sum(self.by_category.values())

    @property
    def gflops(self) -> dict[str, float]:
        """GFLOPs by category."""
        return {category: flops / 1e9 for category, flops in self.by_category.items()}


def reduction_percent(flops: Flops, baseline: Flops) -> float:
    """Return how much less `flops` is than `baseline`, in percent."""
    return 100 * (1 - flops.total / baseline.total)


class Counted:
    """A network and one row of its inputs, whose FLOPs are counted with and without compressors.

    The network has no weights: no attention kernel hides FLOPs from the count on the meta device.

    Attributes:
        backbone: Its denoiser is on the meta device.
        latent: (channels, height, width).
        condition: One row of its conditions. `(1, ...)`.
        baseline: FLOPs without any compressor.
    """

    def __init__(self, backbone: Backbone, latent: tuple[int, int, int], condition: torch.Tensor) -> None:
        self.backbone, self.latent, self.condition = backbone, latent, condition
        self.baseline = count_flops(backbone, latent, condition)

    def count(
        self,
        compressors: Sequence[Compressor],
        evaluations: Mapping[int, int] | None = None,
        steps: Sequence[Step] = (),
    ) -> Flops:
        """Return the FLOPs of one row with compressors, the mean over all evaluations.

        Args:
            compressors: On disjoint sites.
            evaluations: See `mean_flops`.
            steps: All steps of the sampler, which are counted one by one if they cost different FLOPs.

        Raises:
            InputError: If a compressor cannot work on this network and latent, removes no token at a site, or reuses
                nothing in these steps.
        """
        if not compressors:
            return self.baseline
        steps = steps if any(compressor.steps_differ for compressor in compressors) else ()
        with ExitStack() as installed:
            for compressor in compressors:
                installed.enter_context(compressor.install(self.backbone.denoiser))
                # Refuses a compressor that removes nothing.
                site_table(compressor, self.backbone.denoiser, Grid(*self.latent[1:]))
            compressed = mean_flops(
                lambda timestep: count_flops(self.backbone, self.latent, self.condition, timestep, steps),
                compressors,
                evaluations,
            )
        if steps and compressed.total >= self.baseline.total:
            raise InputError(
                f"{type(compressors[0]).__name__} saves nothing in {len(steps)} steps; reuse features earlier or for "
                "longer"
            )
        return compressed


def mean_flops(
    count: Callable[[int | None], Flops],
    compressors: Sequence[Compressor],
    evaluations: Mapping[int, int] | None = None,
) -> Flops:
    """Return the mean FLOPs of evaluations with compressors that may differ between timesteps.

    Args:
        count: Counts at a timestep; None if it does not matter.
        compressors: Installed together.
        evaluations: Number of evaluations by timestep, in 0..999; None or none: one at each.
    """
    if (first := first_timesteps(compressors)) is None:
        return count(None)
    rows: Counter[int] = Counter()
    for timestep, number in (evaluations or dict.fromkeys(range(TIMESTEPS), 1)).items():
        rows[first[timestep]] += number
    counts = [(number, count(timestep)) for timestep, number in sorted(rows.items())]

    def mean(category: Category) -> int:
        return round(sum(number * flops.by_category[category] for number, flops in counts) / rows.total())

    return Flops({category: mean(category) for category in CATEGORIES})


@torch.inference_mode()
def count_flops(
    backbone: Backbone,
    latent: tuple[int, int, int],
    condition: torch.Tensor,
    timestep: int | None = None,
    steps: Sequence[Step] = (),
) -> Flops:
    """Count one denoiser row with the hooks that are installed now.

    Args:
        backbone: Its denoiser is on the meta device.
        latent: (channels, height, width).
        condition: One row of its conditions, on any device. `(1, ...)`.
        timestep: In 0..999, if compressors differ between timesteps.
        steps: All steps of a sampler, in order, of which the mean is returned, rounded down.
    """
    noisy = torch.empty(1, *latent, device="meta")
    timesteps = torch.full((1,), 500, device="meta")
    with FlopCounterMode(display=False) as counter, ExitStack() as undo:
        ledger = _Ledger(counter)
        # Not all MLPs are of one class.
        mlps = {mlp for site in layout_of(backbone.denoiser).sites for mlp in site.modules("mlp")}
        for module, category in _categories(backbone.denoiser, None, mlps):
            undo.callback(module.register_forward_pre_hook(ledger.opening(category)).remove)
            undo.callback(module.register_forward_hook(ledger.close, always_call=True).remove)
        undo.enter_context(marks_reported_to(ledger.spending))
        for step in steps or (None,):
            without_step = timestep is None and step is None
            with nullcontext() if without_step else row_keys(timesteps, timestep=timestep, step=step):
                backbone.predict(noisy, timesteps, condition.to("meta"))
        ledger.settle()
    forwards = len(steps) or 1
    return Flops({category: flops // forwards for category, flops in ledger.spent.items()})


class _Ledger:
    """Assigns the FLOPs counted since the last call to the category that is open."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.spent: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
        self._counter = counter
        self._seen = 0
        self._open: list[Category] = ["projections"]

    def settle(self) -> None:
        total = self._counter.get_total_flops()
        self.spent[self._open[-1]] += total - self._seen
        self._seen = total

    def opening(self, category: Category) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self.settle()
            self._open.append(category)

        return hook

    def close(self, module: nn.Module, args: Any, output: Any) -> None:
        self.settle()
        self._open.pop()

    @contextmanager
    def spending(self, name: Mark, rows: int) -> Iterator[None]:
        if name not in PHASES:
            yield
            return
        self.settle()
        # Merging gathers tokens; if an implementation multiplies matrices for it, those count as matching.
        self._open.append("matching" if name == "merging" else name)
        try:
            yield
        finally:
            self.settle()
            self._open.pop()


def _categories(
    module: nn.Module, parent: Category | None, mlps: Collection[nn.Module]
) -> Iterator[tuple[nn.Module, Category]]:
    """Yield the modules at which the category changes, with the new category."""
    category = "mlp" if parent is None and module in mlps else _category(module, parent)
    if category is not None and category != parent:
        yield module, category
    for child in module.children():
        yield from _categories(child, category or parent, mlps)


def _category(module: nn.Module, parent: Category | None) -> Category | None:
    if parent == "self_attention":
        return "projections" if isinstance(module, nn.Linear) else parent
    if parent is not None:
        return parent
    if isinstance(module, (Attention, AttentionModuleMixin)):
        return "cross_attention" if getattr(module, "is_cross_attention", False) else "self_attention"
    if isinstance(module, FeedForward):
        return "mlp"
    return "convolution" if isinstance(module, _ConvNd) else None
