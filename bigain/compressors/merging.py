"""The merge family: shorten the sequence before a module and restore it after."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Layout, Metric, Module, Site
from bigain.compressors.base import Compressor, meta_input
from bigain.compressors.hooks import ContextGetter
from bigain.compressors.joint import Table, check_processor, join, rotate_after_norms, take_rotary
from bigain.compressors.where import Where
from bigain.diffusion.schedules import Schedule, by_timestep
from bigain.errors import InputError, check_choice
from bigain.tokens.destinations import first_destinations, random_destinations
from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import Cell, Grid, cell_count
from bigain.tokens.matching import MergePlan, Mode, bipartite_matching
from bigain.tokens.precision import without_autocast
from bigain.tokens.randomness import mix

Position = Literal["destination", "mean"]


class TokenMerger(Compressor):
    """Merges tokens around modules of a block: `x + unmerge(attn(merge(norm(x))))`.

    Subclasses implement `plan`.

    Attributes:
        modules: Any of `self_attn`, `cross_attn` (queries only), `mlp`; the paper's default is self-attention.
        metric: Tensor that similarities and scores are computed on: `block_input` (before norm1; default on a U-Net)
            or `attn_input` (after it; default on a DiT); null is the network's default.
        position: Where rotary embeddings place a merged row: at its `destination`, the token that stays, or at the
            `mean` of the positions of its tokens. Text tokens are never merged.
        proportional: Let a merged key of self-attention count as often as the tokens that it stands for: the logarithm
            of their number is added to its attention logits. Source: Bolya et al., Token Merging: Your ViT But Faster
            (ICLR 2023), Eq. 1; its release for Stable Diffusion leaves it out. Refused where text and image attend
            together, as the attention there takes no mask.
        during: See the base class.
    """

    def __init__(
        self,
        where: Where = Where(),  # noqa: B008 - frozen
        modules: Sequence[Module] = ("self_attn",),
        metric: Metric | None = None,
        position: Position = "destination",
        during: Sequence[int] | None = None,
        proportional: bool = False,
    ) -> None:
        super().__init__(where, during)
        unknown = [module for module in modules if module not in get_args(Module)]
        if unknown or not modules or len(set(modules)) < len(modules):
            raise InputError(f"modules must be distinct names of {', '.join(get_args(Module))}, not {list(modules)}")
        if metric not in (None, "block_input", "attn_input"):
            raise InputError(f"metric must be block_input, attn_input or null, not {metric!r}")
        check_choice("position", position, get_args(Position))
        self.modules = tuple(modules)
        self.metric = metric
        self.position: Position = position
        if proportional and "self_attn" not in modules:
            raise InputError(f"proportional concerns self-attention, which {list(modules)} does not name; leave it out")
        self.proportional = proportional

    @abstractmethod
    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        """Decide what to merge at a site.

        Args:
            x: The metric tensor. `(b, n, c)`.
            site: The site; `site.grid(context.latent)` is the token map.
            context: The forward; `context.keys` identify the rows.

        Raises:
            InputError: If nothing would be merged here.
        """

    @property
    def depends_on_class(self) -> bool:
        """Whether rows of the same input and key but different classes may have different plans."""
        return False

    def plan_of(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        """Call `plan`, once for all rows that differ only in their condition if the input does not depend on it."""
        sharing = context.sharing
        if sharing is not None and site.unconditional and self.depends_on_class:
            # From the attention of this site on, the rows differ.
            sharing.active = False
        if sharing is None or not sharing.active or not site.unconditional:
            return self.plan(x, site, context)
        plan = self.plan(x.index_select(0, sharing.first), site, context.of_rows(sharing.first))
        return plan.of_rows(sharing.group)

    def plan_of_stage(
        self, x: Tensor, site: Site, context: ForwardContext, plan_of: Callable[..., MergePlan]
    ) -> MergePlan:
        """Call `plan_of` at the first site of each stage (down, mid, up by stride; a transformer is one stage) only."""
        stage = (id(self), "stage", site.part, site.stride)
        if stage not in context.cache:
            context.cache[stage] = (site.index, plan_of(x, site, context))
        return context.cache[stage][1]

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        targets = {target: module for module in self.modules for target in _modules_of(site, module)}
        key, rotary_key = (id(self), site.index), (id(self), site.index, "rotary")
        if self.position == "mean" and layout.rotary is None:
            raise InputError(f"position is mean, but {layout.model} has no rotary embeddings; leave it at destination")
        if (self.pads or self.proportional) and not isinstance(site.block, BasicTransformerBlock):
            reason = "pads sequences" if self.pads else "with proportional attention weighs keys"
            raise InputError(f"{type(self).__name__} {reason}, but the attention of {site.name} takes no mask")

        def plan_on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, forward = args[0] if args else kwargs["hidden_states"], context()
            if not self.value_in(forward):
                return
            if module is not site.block:
                _, x = site.split(x, site.grid(forward.latent).n)
            with without_autocast(x), mark("matching"):
                plan = forward.cache[key] = self.plan_of(x, site, forward)
                self.show_decision(site, x, plan, forward)

        def merge(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            forward = context()
            plan: MergePlan | None = forward.cache.get(key)
            if plan is None:
                return None
            grid = site.grid(forward.latent)
            text, x = site.split(args[0] if args else kwargs["hidden_states"], grid.n)
            with mark("merging"):
                merged = plan.merge(x)
                tokens = join(text, merged)
            if module is site.modules(targets[module])[0]:
                self.show_compressed(site, targets[module], x, lambda: plan.unmerge(merged), forward)
            if layout.rotary is not None and targets[module] == "self_attn":
                check_processor(module, site)
                kwargs, tables = take_rotary(kwargs, site, grid.n, lambda t: self._merged_rotary(t, plan, grid, layout))
                forward.cache[rotary_key] = tables
            if targets[module] == "self_attn" and (mask := plan.key_mask(merged, self.proportional)) is not None:
                kwargs = {**kwargs, "attention_mask": mask}
            return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": tokens})

        def unmerge(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            plan: MergePlan | None = context().cache.get(key)
            if plan is None:
                return None
            # Joint attentions return the image tokens, then those of the text.
            states = output[0] if isinstance(output, tuple) else output
            with mark("merging"):
                text, y = site.split(states, plan.kept.shape[1]) if site.text_first else (None, states)
                restored = join(text, plan.unmerge(y))
            return (restored, *output[1:]) if isinstance(output, tuple) else restored

        if (self.metric or layout.metric) == "block_input":
            planner = site.block
        elif site.attn_input is not None:
            planner = site.block.get_submodule(site.attn_input)
        else:
            planner = _modules_of(site, "self_attn")[0]
        undo.callback(planner.register_forward_pre_hook(plan_on_input, with_kwargs=True).remove)
        for target in targets:
            if layout.rotary is not None and targets[target] == "self_attn":
                rotate_after_norms(target, site, context, rotary_key, undo)
            undo.callback(target.register_forward_pre_hook(merge, with_kwargs=True).remove)
            undo.callback(target.register_forward_hook(unmerge).remove)

    def _merged_rotary(self, table: Table, plan: MergePlan, grid: Grid, layout: Layout) -> Table:
        """Return the rotary embeddings of merged rows. `(n, d)` each -> `(b, k, d)`."""
        kept = plan.kept
        if self.position == "destination" or layout.rotary is None:
            return table[0][kept], table[1][kept]
        token = torch.arange(grid.n, device=kept.device)
        positions = torch.stack((token // grid.w, token % grid.w), dim=1).float()
        reduce = MergePlan.merge if plan.mode == "prune" else MergePlan.average
        mean = reduce(plan, positions.expand(len(kept), -1, -1))
        cos, sin = layout.rotary(mean.flatten(0, 1))
        return cos.unflatten(0, kept.shape), sin.unflatten(0, kept.shape)

    def tokens_out(self, site: Site, latent: Grid) -> int:
        return self.plan(*meta_input(site, latent)).kept.shape[1]


def _modules_of(site: Site, module: Module) -> tuple[nn.Module, ...]:
    if not (modules := site.modules(module)):
        raise InputError(f"{site.name} has no {module} to merge tokens around")
    return modules


def check_ratio(ratio: float | Schedule | None, cell: Sequence[int]) -> Cell:
    """Check a merge ratio against a cell size, and return the cell.

    Raises:
        InputError: If the ratio is not in (0, 1 - 1/area].
    """
    if len(cell) != 2 or min(cell) < 1 or cell[0] * cell[1] < 2:
        raise InputError(f"cell must be (height, width) of at least two tokens, not {tuple(cell)}")
    size = Cell(*cell)
    largest = 1 - 1 / size.area
    if not isinstance(ratio, (int, float)) or not 0 < ratio <= largest:
        raise InputError(
            f"ratio must be above 0 and at most {largest:g} (one token of each {size.h}x{size.w} cell stays), "
            f"not {ratio}"
        )
    return size


def removed_tokens(name: str, ratio: float, grid: Grid, cell: Cell, site: Site) -> int:
    """Return the number of tokens to remove, `int(n * ratio)` or all sources if they are fewer.

    Raises:
        InputError: If it is 0.
    """
    # Each complete cell has one destination; in leftover strips every token is a source.
    removed = min(int(grid.n * ratio), grid.n - cell_count(grid, cell)) if cell_count(grid, cell) else 0
    if removed < 1:
        raise InputError(
            f"{name} with ratio {ratio} and {cell.h}x{cell.w} cells removes nothing of the {grid.h}x{grid.w} tokens "
            f"at {site.name}; raise the ratio or select other sites"
        )
    return removed


def site_keys(context: ForwardContext, seed: int, site: Site) -> Tensor:
    """Return keys for random draws at a site, a function of (row key, seed, site) only. `(b,)`, int64."""
    return mix(context.keys, seed, site.index)


class CellMerger(TokenMerger):
    """A merger that removes a fraction of the tokens, at most all but one of each cell."""

    def __init__(self, *, ratio: float | Schedule | None, cell: Sequence[int] = (2, 2), **kwargs: Any) -> None:
        """Set the method up.

        Args:
            ratio: Fraction of all tokens removed, in (0, 1 - 1/area], or `Steps` over the timestep, where 0 leaves
                forwards uncompressed; None if the subclass does not use it.
            cell: Height and width of the cells.
            kwargs: See the base class.
        """
        super().__init__(**kwargs)
        self.strengths = by_timestep(0.5 if ratio is None else ratio)
        for value in {*self.strengths} - {0} or [ratio]:
            self.cell = check_ratio(value, cell)
        self.ratio = ratio

    @property
    def largest_ratio(self) -> float:
        """The largest `ratio` that the cells allow."""
        return 1 - 1 / self.cell.area

    def removed(self, grid: Grid, site: Site, context: ForwardContext) -> int:
        """Return the number of tokens to remove at a site, see `removed_tokens`."""
        return removed_tokens(type(self).__name__, self.value_in(context), grid, self.cell, site)


class BipartiteMerger(CellMerger):
    """Merges the tokens that are most similar to a destination. Every cell has one destination."""

    def __init__(self, *, destination: str, mode: Mode = "mean", seed: int = 0, **kwargs: Any) -> None:
        """Set the method up.

        Args:
            destination: `first`: the top-left token; `random`: drawn from (seed, row key, site); `redrawn`: drawn from
                the class of the row as well.
            mode: `mean` averages; `prune` drops the merged tokens; `mlerp` keeps the largest norm: see `ToFu`.
            seed: Seed of the `random` and `redrawn` destinations. Commands set it: `--seed`.
            kwargs: See the base class.
        """
        super().__init__(**kwargs)
        check_choice("mode", mode, get_args(Mode))
        self.destination = destination
        self.mode: Mode = mode
        self.seed = seed

    @property
    def depends_on_class(self) -> bool:
        return self.destination == "redrawn"

    def mode_at(self, site: Site) -> Mode:
        """Return how tokens are merged at a site."""
        return self.mode

    def destinations(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        """Choose the destination of each cell. `(b, cells)` or `(1, cells)` token ids, int64."""
        grid = site.grid(context.latent)
        if self.destination == "first":
            return first_destinations(grid, self.cell, x.device)
        keys = site_keys(context, self.seed, site)
        return random_destinations(mix(keys, context.classes) if self.depends_on_class else keys, grid, self.cell)

    def kernel_rule(self, x: Tensor, site: Site, context: ForwardContext) -> tuple[str, Tensor | None]:
        """Return how kernels choose destinations, and the destinations if they are `given`; see `kernels.plans`."""
        if self.destination in ("random", "redrawn"):
            return "drawn", None
        return ("first", None) if self.destination == "first" else ("given", self.destinations(x, site, context))

    def gate(self, x: Tensor, site: Site, context: ForwardContext) -> tuple[Tensor, int] | None:
        """Return which sources may merge, see `bipartite_matching`; None, the default, if all may."""
        return None

    def plan(self, x: Tensor, site: Site, context: ForwardContext) -> MergePlan:
        grid, x = site.grid(context.latent), x.detach()
        removed = self.removed(grid, site, context)
        gate = self.gate(x, site, context)
        # Kernels do not know how a subclass outside this package chooses destinations.
        shipped = type(self).destinations.__module__.startswith("bigain.compressors.")
        unsupported = "gated sources" if gate else "" if shipped else f"destinations of {type(self).__name__}"
        if not kernels_serve(x, unsupported):
            return bipartite_matching(x, self.destinations(x, site, context), removed, self.mode_at(site), gate)
        from bigain.tokens.kernels.plans import KernelPlan, bipartite

        rule, destinations = self.kernel_rule(x, site, context)
        classes = context.classes if self.depends_on_class else None
        draw_key = (context.keys, classes, self.seed, site.index)
        tables = bipartite(x, grid, self.cell, removed, rule, destinations, *draw_key)
        return KernelPlan(tables, grid.n - removed, mode=self.mode_at(site))
