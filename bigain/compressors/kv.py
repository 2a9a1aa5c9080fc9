"""The KV family: queries stay full length, keys and values are downsampled."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from bigain.backbones.forward import ForwardContext
from bigain.backbones.marks import mark
from bigain.backbones.sites import Layout, Site
from bigain.compressors.base import Compressor, ContextGetter, meta_input, own
from bigain.errors import InputError
from bigain.tokens.downsampling import upsampling_indices
from bigain.tokens.grid import Grid
from bigain.tokens.precision import without_autocast


class KVDownsampler(Compressor):
    """Downsamples the self-attention input before `to_k` and `to_v`.

    The weights of the downsampling sum to one, so this equals downsampling K and V and saves their projections.
    Subclasses implement `downsample`.
    """

    @abstractmethod
    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        """Shorten the attention input. `(b, n, c)` -> `(b, m, c)`.

        Raises:
            InputError: If that is impossible at this site, or changes nothing.
        """

    def token_keys(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor | None:
        """Return the key nearest to each place of the token map, for onlookers; None, the default, if unknown.

        Args:
            x: The attention input. `(b, n, c)`.
            site: The site.
            context: The forward.

        Returns:
            Index of a key per place. `(b, n)` or `(1, n)`, int64.
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

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        attention = site.block.attn1
        assert isinstance(attention, nn.Module)
        _refuse_unsuitable(attention, site)

        def shorten_keys(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            _refuse_unsuitable(module, site)
            if kwargs.get("attention_mask") is not None:
                raise InputError(f"{site.name} is called with an attention mask, which does not fit downsampled keys")
            x = args[0] if args else kwargs["hidden_states"]
            with without_autocast(x), mark("matching"):
                forward = context()
                keys = self.downsample(x, site, forward)
                self.show_decision(site, x, None, forward)
            if not 1 <= keys.shape[1] < x.shape[1]:
                raise InputError(f"{type(self).__name__} leaves {keys.shape[1]} of {x.shape[1]} keys at {site.name}")
            self.show_compressed(
                site, "self_attn", x, lambda: _read_back(keys, self.token_keys(x, site, forward)), forward
            )
            if len(args) > 1:
                return (x, keys, *args[2:]), kwargs
            return args, {**kwargs, "encoder_hidden_states": keys}

        own(attention.register_forward_pre_hook(shorten_keys, with_kwargs=True), undo)

    def tokens_out(self, site: Site, latent: Grid) -> int:
        return self.downsample(*meta_input(site, latent)).shape[1]


def _read_back(keys: Tensor, index: Tensor | None) -> Tensor | None:
    """Read the key of each place. `(b, m, c)`, `(b, n)` -> `(b, n, c)`."""
    if index is None:
        return None
    return keys.gather(1, index.expand(len(keys), -1)[..., None].expand(-1, -1, keys.shape[2]))


def _refuse_unsuitable(attention: nn.Module, site: Site) -> None:
    """Raise an InputError if downsampling the input is impossible or differs from downsampling K and V."""
    if getattr(site.block, "only_cross_attention", False):
        raise InputError(f"{site.name} has no self-attention whose keys could be downsampled")
    if getattr(attention, "fused_projections", False):
        # diffusers' unfuse_qkv_projections() does not reset this attribute of the attention.
        raise InputError(
            f"{site.name} has fused QKV projections; call unfuse_qkv_projections() on the network and then "
            "fuse_projections(fuse=False) on the block's attn1"
        )
    if getattr(attention, "norm_q", None) is not None or getattr(attention, "norm_k", None) is not None:
        raise InputError(f"{site.name} normalises queries and keys, so downsampling before the projection differs")


def check_factor(name: str, factor: int) -> int:
    """Return `factor`, or raise an InputError if it is not an integer of at least 2."""
    if not isinstance(factor, int) or factor < 2:
        raise InputError(f"{name} needs an integer factor of at least 2 per side, not {factor!r}")
    return factor


def check_fits(name: str, factor: int, grid: Grid, site: Site) -> None:
    """Raise an InputError if a factor is larger than a side of the token map."""
    if factor > min(grid):
        raise InputError(f"{name} with factor {factor} does not fit the {grid.h}x{grid.w} tokens at {site.name}")


class FactorDownsampler(KVDownsampler):
    """Downsamples keys and values by an integer factor per side. Subclasses implement `resample`."""

    def __init__(self, *, factor: int, **kwargs: Any) -> None:
        """Set the method up.

        Args:
            factor: Stride per side, at least 2; factor 2 keeps a quarter of the keys.
            kwargs: See the base class.
        """
        super().__init__(**kwargs)
        self.factor = check_factor(type(self).__name__, factor)

    @abstractmethod
    def resample(self, x: Tensor, grid: Grid, context: ForwardContext) -> Tensor:
        """Downsample the token map. `(b, h * w, c)` -> `(b, (h // factor) * (w // factor), c)`."""

    def downsample(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        grid = site.grid(context.latent)
        check_fits(type(self).__name__, self.factor, grid, site)
        return self.resample(x, grid, context)

    def token_keys(self, x: Tensor, site: Site, context: ForwardContext) -> Tensor:
        return upsampling_indices(site.grid(context.latent), self.factor, x.device)
