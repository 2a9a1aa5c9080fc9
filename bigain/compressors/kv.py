"""The KV family: queries stay full length, keys and values are downsampled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Layout, Site
from bigain.compressors.base import Compressor, meta_input
from bigain.compressors.hooks import ContextGetter
from bigain.compressors.joint import check_processor, join, rotate_after_norms, take_rotary
from bigain.compressors.where import Where
from bigain.diffusion.schedules import Schedule, by_timestep
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError
from bigain.tokens.downsampling import downsampled_grid, nearest_tokens
from bigain.tokens.grid import Grid
from bigain.tokens.precision import without_autocast


class KVDownsampler(Compressor):
    """Downsamples the self-attention input before `to_k` and `to_v`.

    The weights of the downsampling sum to one, so this equals downsampling K and V and saves their projections.
    Subclasses implement `downsample`.

    Where keys are normalised or rotated after their projection (SD 3.5, FLUX), they are downsampled afterwards. This
    is the paper's `D(K)`, Eq. 8, which then differs from `D(X) W`. Values are neither normalised nor rotated, so for
    them `D(V) = D(X) W` still holds. In attentions over text and image, those of the text are not downsampled.

    Attributes:
        skip_zero: Leave forwards at timestep 0 uncompressed, as the paper's release does when it generates with Stable
            Diffusion.
        during: See the base class.
    """

    def __init__(
        self,
        where: Where = Where(),  # noqa: B008 - frozen
        skip_zero: bool = False,
        during: Sequence[int] | None = None,
    ) -> None:
        super().__init__(where, during)
        self.skip_zero = skip_zero

    def shared_value(self, timestep: int) -> Hashable:
        return 0 if self.skip_zero and timestep == 0 else super().shared_value(timestep)

    @abstractmethod
    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        """Shorten the attention input. `(b, n, c)` -> `(b, m, c)`.

        Raises:
            InputError: If that is impossible at this site, or changes nothing.
        """

    def token_keys(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor | None:
        """Return the key nearest to each token of the map, for onlookers; None, the default, if unknown.

        Args:
            x: The attention input. `(b, n, c)`.
            site: The site.
            context: The forward.

        Returns:
            Index of a key per token. `(b, n)` or `(1, n)`, int64.
        """
        return None

    def key_tokens(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor | None:
        """Return the token that each key is a copy of, for onlookers; None, the default, if keys are blends.

        Args:
            x: The attention input. `(b, n, c)`.
            site: The site.
            context: The forward.

        Returns:
            Token ids. `(b, m)` or `(1, m)`, int64.
        """
        return None

    def shorten(self, states: Tensor, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        """Downsample normalised keys the way `downsample` does the attention input that they come from.

        Copies the tokens of `key_tokens`; without them it calls `downsample` on the keys.

        Args:
            states: Keys of all heads. `(b, n, c)`.
            x: The attention input. `(b, n, c)`.
            site: The site.
            context: The forward.
        """
        if (tokens := self.key_tokens(x, site, context)) is None:
            return self.downsample(states, site, context)
        return states.take_along_dim(tokens[..., None], 1)

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        if site.processor is not None:
            for inside in site.modules("self_attn"):
                self._hook_layers(layout, site, inside, context, undo)
            return
        attention = site.block.attn1
        assert isinstance(attention, nn.Module)
        _check_attention(attention, site)

        def shorten_keys(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            forward = context()
            if not self.value_in(forward):
                return None
            _check_attention(module, site)
            x = args[0] if args else kwargs["hidden_states"]
            return args, {**kwargs, "encoder_hidden_states": self._downsampled(x, site, forward, True)}

        undo.callback(attention.register_forward_pre_hook(shorten_keys, with_kwargs=True).remove)

    def _hook_layers(self, layout: Layout, site: Site, attention: Any, context: ContextGetter, undo: ExitStack) -> None:
        """Hook the projections and norms of one attention, whose queries and keys share their input."""
        key, rotary_key = (id(self), id(attention)), (id(self), id(attention), "rotary")
        _check_attention(attention, site)
        is_first = attention is site.modules("self_attn")[0]

        def downsample_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            _check_attention(module, site)
            forward = context()
            if not self.value_in(forward):
                return None
            n = site.grid(forward.latent).n
            _, x = site.split(args[0] if args else kwargs["hidden_states"], n)
            forward.cache[key] = (x, self._downsampled(x, site, forward, is_first))
            kwargs, forward.cache[rotary_key] = take_rotary(kwargs, site, n, lambda table: table)
            return args, kwargs

        def project_downsampled(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if (shortened := context().cache.get(key)) is None:
                return None
            x, keys = shortened
            return (join(site.split(args[0], x.shape[1])[0], keys), *args[1:])

        def shorten_keys(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            forward = context()
            if (shortened := forward.cache.get(key)) is None:
                return None
            x, _ = shortened
            text, states = site.split(output.transpose(1, site.token_dim), x.shape[1])
            with without_autocast(x), mark("matching"):
                short = self.shorten(states.flatten(2), x, site, forward).unflatten(2, states.shape[2:])
            return join(text, short).transpose(1, site.token_dim)

        undo.callback(attention.register_forward_pre_hook(downsample_input, with_kwargs=True).remove)
        undo.callback(attention.to_v.register_forward_pre_hook(project_downsampled).remove)
        if layout.rotary is not None:
            rotate_after_norms(attention, site, context, rotary_key, undo)
        if (norm := getattr(attention, "norm_k", None)) is not None:
            undo.callback(norm.register_forward_hook(shorten_keys).remove)
        else:
            undo.callback(attention.to_k.register_forward_pre_hook(project_downsampled).remove)

    def _downsampled(self, x: Tensor, site: Site, forward: ForwardContext, shown: bool) -> Tensor:
        """Return the keys of an attention, `shown` to onlookers. `(b, n, c)` -> `(b, m, c)`."""
        with without_autocast(x), mark("matching"):
            keys = self.downsample(x, site, forward)
            if shown:
                self.show_decision(site, x, None, forward)
        if not 1 <= keys.shape[1] < x.shape[1]:
            raise InputError(f"{type(self).__name__} leaves {keys.shape[1]} of {x.shape[1]} keys at {site.name}")

        def restored() -> Tensor | None:
            nearest = self.token_keys(x, site, forward)
            return None if nearest is None else keys.take_along_dim(nearest[..., None], 1)

        if shown:
            self.show_compressed(site, "self_attn", x, restored, forward)
        return keys

    def tokens_out(self, site: Site, latent: Grid) -> int:
        return self.downsample(*meta_input(site, latent)).shape[1]


def _check_attention(attention: nn.Module, site: Site) -> None:
    """Raise an InputError if downsampling the input is impossible or differs from downsampling K and V."""
    if getattr(attention, "fused_projections", False):
        # diffusers' unfuse_qkv_projections() does not reset this attribute of the attention.
        raise InputError(
            f"{site.name} has fused QKV projections; call unfuse_qkv_projections() on the network and then "
            f"fuse_projections(fuse=False) on the block's {site.self_attn[0]}"
        )
    check_processor(attention, site)
    if site.processor is None and (getattr(attention, "norm_q", None) or getattr(attention, "norm_k", None)):
        raise InputError(f"{site.name} normalises queries and keys, so downsampling before the projection differs")


def check_factor(name: str, factor: int) -> int:
    """Return `factor`, or raise an InputError if it is not an integer of at least 2."""
    if not isinstance(factor, int) or factor < 2:
        raise InputError(f"{name} needs an integer factor of at least 2 per side, not {factor!r}")
    return factor


def check_fits(name: str, factor: int, grid: Grid, site: Site) -> None:
    """Raise an InputError if a factor is larger than a side of the token map."""
    if factor > min(grid):
        raise InputError(
            f"{name} with factor {factor} does not fit the {grid.h}x{grid.w} tokens at {site.name}; expected at most "
            f"{min(grid)}"
        )


class FactorDownsampler(KVDownsampler):
    """Downsamples keys and values by an integer factor per side. Subclasses implement `resample`."""

    def __init__(self, *, factor: int | Schedule, **kwargs: Any) -> None:
        """Set the method up.

        Args:
            factor: Stride per side, at least 2; factor 2 keeps a quarter of the keys. Or `Steps` over the timestep,
                where 1 keeps all.
            kwargs: See the base class.
        """
        super().__init__(**kwargs)
        if isinstance(factor, Schedule):
            values = [int(value) if value == int(value) else value for value in by_timestep(factor)]
        else:
            values = [factor] * TIMESTEPS
        for value in {*values} - ({1} if isinstance(factor, Schedule) else set()) or [factor]:
            check_factor(type(self).__name__, value)  # type: ignore[arg-type]
        self.strengths = [0 if value == 1 else value for value in values]
        self.factor = factor

    @abstractmethod
    def resample(self, x: Tensor, grid: Grid, context: ForwardContext) -> Tensor:
        """Downsample the token map. `(b, h * w, c)` -> `(b, (h // factor) * (w // factor), c)`."""

    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        check_fits(type(self).__name__, self.value_in(context), grid, site)
        return self.resample(x, grid, context)

    def token_keys(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        return nearest_tokens(downsampled_grid(grid, self.value_in(context)), grid, x.device)[None]
