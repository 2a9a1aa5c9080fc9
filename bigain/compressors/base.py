"""The compressor interface: hooks on selected sites, removed when an ExitStack closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bigain.backbones.compilation import forget_compiled
from bigain.backbones.cuda_graphs import watch_for
from bigain.backbones.forward import ForwardContext, rows_now
from bigain.backbones.marks import mark
from bigain.backbones.sites import Layout, Site, layout_of
from bigain.compressors.hooks import ContextGetter, watch_forward
from bigain.compressors.onlookers import Decision, Observation, Onlooker
from bigain.compressors.settings import changed, constructor_parameters, plain
from bigain.compressors.where import Where
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError
from bigain.tokens.grid import Grid
from bigain.tokens.matching import MergePlan

# Distinct values of a compressor over the timesteps: FLOPs are counted and a CUDA graph recorded for each.
_MAX_VALUES = 50

# The compressor installed on each block, across all callers; entries vanish with the hooks.
_owners: WeakKeyDictionary[nn.Module, Compressor] = WeakKeyDictionary()


class Compressor(Callback, ABC):
    """A training-free token compressor.

    As a Lightning callback it hooks `pl_module.backbone.denoiser` at setup. On a plain diffusers pipeline use
    `with compressor.applied_to(pipe.unet): pipe(...)`. Subclasses implement `hook_site`.

    Attributes:
        where: Selected sites; by default every stride-1 block.
        during: First and last timestep, in 0..999 with more noise at higher ones, of the forwards that are compressed;
            null for all.
        strengths: How strong the compression is, such as its ratio, by timestep in 0..999; 0 where there is none.
        onlookers: Notified of every decision and every compressed module. An empty list costs nothing.
        pads: Whether sequences keep their length: merged ones are padded, since the data decide how many tokens leave;
            pruners remove none.
        generation_only: Why it can only generate images; empty if it can classify, too.
        steps_differ: Whether the steps of a sampler cost different FLOPs.
    """

    where: Where
    during: tuple[int, int] | None
    onlookers: list[Onlooker]
    pads: bool = False
    generation_only: str = ""
    steps_differ: bool = False

    def __init__(self, where: Where = Where(), during: Sequence[int] | None = None) -> None:  # noqa: B008 - frozen
        self.where = where
        if during is not None and (len(during) != 2 or not 0 <= during[0] <= during[1] < TIMESTEPS):
            raise InputError(f"during must be the first and the last timestep, such as [0, 499], not {list(during)}")
        self.during = None if during is None else (during[0], during[1])
        self.strengths: Sequence[Hashable] = (True,) * TIMESTEPS
        self.onlookers = []
        self._installed = ExitStack()

    # Implemented by methods.

    @abstractmethod
    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        """Register hooks on one site and push their removal on `undo`."""

    def tokens_out(self, site: Site, latent: Grid) -> int:
        """Return the number of merged tokens or keys left at a site for a latent size; by default all."""
        return site.grid(latent).n

    def sites_of(self, denoiser: nn.Module) -> tuple[Site, ...]:
        """Return the sites of a network that this compressor acts on."""
        return self.where.select(layout_of(denoiser))

    def token_scores(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor | None:
        """Return the token scores that the decision at a site is based on; None, the default, if there are none.

        Args:
            x: The tokens of the decision. `(b, n, c)`.
            site: The site.
            context: The forward, for these rows.

        Returns:
            Larger means more detail. `(b, n)`, float32.
        """
        return None

    def shared_value(self, timestep: int) -> Hashable:
        """Return what all rows of a forward must have in common, by timestep in 0..999; false if it is not compressed.

        Tasks cut their forwards by it, costs are counted once for each value, and hooks read it with `value_in`. The
        default is the strength at a timestep, 0 outside of `during`.
        """
        return self.strengths[timestep] if self.during is None or self.during[0] <= timestep <= self.during[1] else 0

    def acts_at(self, timestep: int) -> bool:
        """Return whether forwards at a timestep, in 0..999, are compressed; callers install the compressor before."""
        return bool(self.shared_value(timestep))

    def check_module(self, module: Any) -> None:
        """Check a task module, whose weights are not needed.

        Raises:
            InputError: If this compressor cannot do the task.
        """
        if self.generation_only and not module.generates:
            raise InputError(
                f"{type(self).__name__} only generates: {self.generation_only}; choose another compressor, or a "
                "configuration of a generation"
            )

    # Used by hooks.

    @cached_property
    def shared_values(self) -> tuple[Hashable, ...]:
        """`shared_value` of all timesteps; one value if they are equal.

        Raises:
            InputError: If there are too many.
        """
        values = tuple(map(self.shared_value, range(TIMESTEPS)))
        if (distinct := len(set(values))) > _MAX_VALUES:
            raise InputError(
                f"{type(self).__name__} has {distinct} different values over the timesteps; a forward has one, so at "
                f"most {_MAX_VALUES} are possible: use a schedule of steps"
            )
        return values if distinct > 1 else values[:1]

    def value_in(self, context: ForwardContext) -> Any:
        """Return the value that the rows of a forward share. On the meta device, without `row_keys`: the largest.

        Raises:
            InputError: If its rows do not share one.
        """
        if len(self.shared_values) == 1:
            return self.shared_values[0]
        if (rows := rows_now()) is not None and rows.timestep is not None:
            return self.shared_values[rows.timestep]
        if context.timesteps.is_meta:
            return max(self.shared_values)  # type: ignore[type-var]
        # Read from the device once per forward of the network.
        if (key := (id(self), "value")) not in context.cache:
            values = {self.shared_values[step] for step in nearest_timesteps(context.timesteps)}
            if len(values) > 1:
                raise InputError(
                    f"{type(self).__name__} treats the rows of a forward alike, but has {len(values)} values for the "
                    "timesteps of this one; give each forward timesteps of one value"
                )
            context.cache[key] = values.pop()
        return context.cache[key]

    def show_decision(self, site: Site, tokens: Tensor, plan: MergePlan | None, context: ForwardContext) -> None:
        """Notify the onlookers of a decision."""
        for onlooker in self.onlookers:
            with mark("onlooker", len(tokens)):
                onlooker.decided(Decision(self, site, tokens, plan, context))

    def show_compressed(
        self, site: Site, module: str, before: Tensor, restored: Callable[[], Tensor | None], context: ForwardContext
    ) -> None:
        """Notify the onlookers of a module whose input is compressed."""
        for onlooker in self.onlookers:
            with mark("onlooker", len(before)):
                onlooker.compressed(Observation(site, module, before, restored, context))

    # Used by callers.

    def install(self, denoiser: nn.Module) -> ExitStack:
        """Hook every selected site. Closing the result restores the network exactly.

        A compiled network compiles again at its next forward, and once more after closing.

        Raises:
            InputError: If the network is unknown, no site is selected, a site has an owner, or there are too many
                `shared_values`. Nothing stays behind.
        """
        layout = layout_of(denoiser)
        sites = self.where.select(layout)
        _ = self.shared_values
        forget_compiled()
        with ExitStack() as undo:
            undo.callback(forget_compiled)
            undo.callback(watch_for(denoiser, lambda: bool(self.onlookers)))
            for site in sites:
                if site.block in _owners:
                    raise InputError(
                        f"{type(self).__name__} cannot act on {site.name}: {type(_owners[site.block]).__name__} is "
                        "installed there; give them disjoint sites with `where`"
                    )
                _owners[site.block] = self
                undo.callback(_owners.pop, site.block, None)
            context = watch_forward(denoiser, layout, undo)
            for site in sites:
                self.hook_site(layout, site, context, undo)
            return undo.pop_all()

    @contextmanager
    def applied_to(self, denoiser: nn.Module) -> Iterator[nn.Module]:
        """Compress inside a `with` block, e.g. `with LGTM(ratio=0.5).applied_to(pipe.unet): pipe(...)`."""
        with self.install(denoiser):
            yield denoiser

    def settings(self) -> dict[str, Any]:
        """Return the constructor arguments, after validation."""
        # Not vars(self): Lightning sets attributes on callbacks.
        return {name: getattr(self, name) for name in constructor_parameters(type(self)) if hasattr(self, name)}

    def description(self) -> dict[str, Any]:
        """Return `class`, `settings` and `changed` as plain values for JSON, and `generation_only` if there is any.

        `changed` holds the settings that differ from the constructor's defaults; of `where` only those fields.
        """
        settings = {name: plain(value) for name, value in self.settings().items()}
        extra = {"generation_only": self.generation_only} if self.generation_only else {}
        return {"class": type(self).__name__, "settings": settings, "changed": changed(type(self), settings), **extra}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.check_module(pl_module)
        # Callbacks are set up before the module, so the network may not be loaded yet.
        pl_module.backbone.load()  # type: ignore[operator,union-attr]
        self._installed.close()
        self._installed = self.install(pl_module.backbone.denoiser)  # type: ignore[arg-type,union-attr]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._installed.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning calls this instead of teardown.
        self._installed.close()


def compressors_of(trainer: Trainer) -> list[Compressor]:
    """Return the compressors among the callbacks of a trainer."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Compressor)]  # type: ignore[attr-defined]


def nearest_timesteps(timesteps: Tensor) -> list[int]:
    """Return the nearest timestep in 0..999 of each row, on the host. `(b,)`."""
    steps: list[int] = timesteps.round().clamp(0, TIMESTEPS - 1).int().tolist()
    return steps


def installed_on(denoiser: nn.Module) -> list[Compressor]:
    """Return the compressors installed on a network."""
    owners = (_owners.get(site.block) for site in layout_of(denoiser).sites)
    return list(dict.fromkeys(owner for owner in owners if owner is not None))


def first_timesteps(compressors: Iterable[Compressor]) -> Sequence[int] | None:
    """Return for each timestep the first at which the compressors have the same values; None if these never change.

    The rows of a forward must agree in it.
    """
    varying = [compressor.shared_values for compressor in compressors if len(compressor.shared_values) > 1]
    first: dict[Any, int] = {}
    return [first.setdefault(values, step) for step, values in enumerate(zip(*varying, strict=True))] or None


def meta_input(site: Site, latent: Grid) -> tuple[Tensor, Site, ForwardContext]:
    """Return tokens `(1, n, 1)` on the meta device, the site and a context: arguments to compute shapes with."""
    context = ForwardContext.of(torch.empty(1, 1, *latent, device="meta"), 0, None)
    return torch.empty(1, site.grid(latent).n, 1, device="meta"), site, context
