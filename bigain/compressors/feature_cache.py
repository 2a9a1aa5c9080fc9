"""FeatureCache: reuse features of earlier steps, through the caches of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import torch
from diffusers import CacheMixin, hooks
from torch import nn

from bigain.backbones.cuda_graphs import watch_for
from bigain.backbones.forward import rows_now
from bigain.backbones.sites import Layout, Site
from bigain.compressors.base import Compressor
from bigain.compressors.hooks import ContextGetter
from bigain.compressors.where import Where
from bigain.errors import InputError, check_choice

_APPLY = {
    "PyramidAttentionBroadcastConfig": hooks.apply_pyramid_attention_broadcast,
    "TaylorSeerCacheConfig": hooks.apply_taylorseer_cache,
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")
# Attributes that diffusers adds to modules.
_DIFFUSERS_ATTRIBUTES = ("forward", "_diffusers_hook", "_cache_config")


class FeatureCache(Compressor):
    """Reuses outputs of modules from earlier sampling steps instead of computing them.

    Networks that have `enable_cache` (of those here FLUX) get it; on the others, which diffusers gives no such method,
    the same hooks of diffusers are applied. No tokens leave. FLOPs are the mean over all steps of the sampler.

    Source: Pyramid Attention Broadcast (arXiv 2408.12588) and TaylorSeer (ICCV 2025, arXiv 2503.06923), as implemented
    in diffusers. Its other caches are refused: some decide from the features of a whole forward, which would make an
    image depend on its batch, others are for one model.
    Cost: none in matrix products; the outputs that are kept take memory.
    """

    generation_only = "it reuses features of earlier steps, and a classifier has none"
    steps_differ = True

    def __init__(self, *, cache: str, options: Mapping[str, Any] | None = None) -> None:
        """Set the method up.

        Args:
            cache: `PyramidAttentionBroadcastConfig` or `TaylorSeerCacheConfig`, the configuration's class in diffusers.
            options: Its fields, e.g. `spatial_attention_block_skip_range: 2`, or `cache_interval: 3` and
                `cache_identifiers: ['transformer_blocks.*(attn1|ff)']`; a dtype by its name.
        """
        super().__init__(Where(max_stride=2**31))
        check_choice("cache", cache, [*_APPLY])
        self.cache = cache
        self.options = options and dict(options)
        self._timestep = 0.0
        self._configuration()

    def _configuration(self) -> Any:
        """Create the configuration of diffusers, or raise an InputError."""
        kind: Any = getattr(hooks, self.cache)
        options = dict(self.options or {})
        callbacks = {field.name for field in fields(kind)} & {"current_timestep_callback"}
        for name, value in options.items():
            if name.endswith(("block_skip_range", "interval", "before_step")):
                least = 1 if name.endswith("before_step") else 2  # the first step has nothing to reuse
                if not isinstance(value, int) or value < least:
                    raise InputError(f"options: {name} must be a whole number of at least {least}, not {value!r}")
            if name.endswith("timestep_skip_range") and not (isinstance(value, (list, tuple)) and len(value) == 2):
                raise InputError(f"options: {name} must be two timesteps, such as [100, 800], not {value!r}")
            if name.endswith("identifiers") and not _are_patterns(value):
                raise InputError(f"options: {name} must be a list of regular expressions, not {value!r}")
        if "taylor_factors_dtype" in options:
            check_choice("options: taylor_factors_dtype", options["taylor_factors_dtype"], _DTYPES)
            options["taylor_factors_dtype"] = getattr(torch, options["taylor_factors_dtype"])
        try:
            return kind(**options, **dict.fromkeys(callbacks, lambda: self._timestep))
        except TypeError as error:
            raise InputError(f"options of {self.cache}: {error}") from error

    def check_module(self, module: Any) -> None:
        super().check_module(module)
        if module.backbone.compilation != "none":
            raise InputError("FeatureCache changes what a forward computes from step to step; use compile: none")

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        """Do nothing: diffusers finds the modules. All blocks are claimed, as plans do not fit old features."""

    def sites_of(self, denoiser: nn.Module) -> tuple[Site, ...]:
        return ()

    def install(self, denoiser: nn.Module) -> ExitStack:
        with ExitStack() as undo:
            undo.enter_context(super().install(denoiser))
            # A graph would replay the computation of one step.
            undo.callback(watch_for(denoiser, lambda: True))
            for module in denoiser.modules():
                saved = {name: value for name, value in vars(module).items() if name in _DIFFUSERS_ATTRIBUTES}
                if "_diffusers_hook" in saved and saved["_diffusers_hook"].hooks:
                    raise InputError(
                        f"{type(module).__name__} has hooks of diffusers already; call disable_cache() first"
                    )
                vars(module).pop("_diffusers_hook", None)
                undo.callback(_restore, vars(module), saved)
            apply: Any = denoiser.enable_cache if isinstance(denoiser, CacheMixin) else None
            apply(self._configuration()) if apply else _APPLY[self.cache](denoiser, self._configuration())
            if not any("forward" in vars(module) for module in denoiser.modules()):
                raise InputError(
                    f"{self.cache} with options {self.options} finds no module to cache in {type(denoiser).__name__}; "
                    "name modules with the identifiers among its options"
                )
            registry = hooks.HookRegistry.check_if_exists_or_initialize(denoiser)
            cache_context = ExitStack()

            def begin(module: nn.Module, args: Any) -> None:
                rows = rows_now()
                if rows is None or rows.step is None:
                    raise InputError(
                        "FeatureCache follows the steps of DiffusionSampler, and this forward is of no step: its FLOPs "
                        "are counted by `bigain predict`; in a pipeline of diffusers, call enable_cache"
                    )
                if rows.step.number == 0:
                    # The first step of other images: nothing may be reused.
                    registry.reset_stateful_hooks()
                self._timestep = rows.step.timestep
                cache_context.enter_context(CacheMixin.cache_context(denoiser, "rows"))

            undo.callback(denoiser.register_forward_pre_hook(begin).remove)
            undo.callback(denoiser.register_forward_hook(lambda *_: cache_context.close(), always_call=True).remove)
            return undo.pop_all()


def _are_patterns(value: Any) -> bool:
    try:
        return isinstance(value, (list, tuple)) and all(map(re.compile, value))
    except (re.error, TypeError):
        return False


def _restore(attributes: dict[str, Any], saved: Mapping[str, Any]) -> None:
    for name in _DIFFUSERS_ATTRIBUTES:
        attributes.pop(name, None)
    attributes.update(saved)
