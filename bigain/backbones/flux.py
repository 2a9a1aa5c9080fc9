"""FLUX.1: transformers over text and image with rotary embeddings, in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor

from bigain.backbones.sites import Layout, Site, layout_of
from bigain.errors import InputError
from bigain.tokens.grid import Grid

# Latent pixels per token and side; a token is a patch of the latent.
_PATCH = 2


@layout_of.register
def _(denoiser: FluxTransformer2DModel) -> Layout:
    double, single = denoiser.transformer_blocks, denoiser.single_transformer_blocks
    common: dict[str, Any] = {"self_attn": ("attn",), "cross_attn": (), "processor": FluxAttnProcessor}
    sites = [Site(f"transformer_blocks.{i}", i, None, 1, block, _PATCH, **common) for i, block in enumerate(double)]
    sites += [
        Site(
            *(f"single_transformer_blocks.{i}", len(double) + i, None, 1, block, _PATCH),
            # The MLP runs beside the attention, before it in code. Its activation is by element, so tokens may be
            # restored before it.
            mlp=("proj_mlp",),
            attn_input="proj_mlp",
            text_first=True,
            **common,
        )
        for i, block in enumerate(single)
    ]

    def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = denoiser.pos_embed(F.pad(positions, (1, 0)))
        return cos, sin

    name = type(denoiser).__name__
    return Layout(name, tuple(sites), "hidden_states", "attn_input", latent_of=_latent_of, steps=1000, rotary=rotary)


def image_ids(grid: Grid, device: torch.device) -> Tensor:
    """Positions (0, y, x) of the tokens of a map. `(n, 3)`, float32."""
    token = torch.arange(grid.n, device=device)
    ids = torch.stack((torch.zeros_like(token), token // grid.w, token % grid.w), dim=1).float()
    _remember(ids, grid)
    return ids


def _remember(ids: Tensor, grid: Grid) -> None:
    # Reading it from the device would wait in every forward.
    ids.bigain_grid = grid  # type: ignore[attr-defined]


def _latent_of(arguments: Mapping[str, Any]) -> Grid:
    """Return the latent size of a forward, whose latents are a sequence, from the positions of its tokens."""
    ids = arguments["img_ids"]
    if not hasattr(ids, "bigain_grid"):
        positions = ids[0] if ids.ndim == 3 else ids
        w = int(positions[:, 2].max()) + 1
        grid = Grid(len(positions) // w, w)
        if not torch.equal(positions.float(), image_ids(grid, positions.device)):
            raise InputError(
                "FluxTransformer2DModel was called with img_ids that are not those of one image, row by row; token "
                "maps of several images, as FLUX.1 Kontext has, are not compressed"
            )
        _remember(ids, grid)
    return Grid(*(_PATCH * side for side in ids.bigain_grid))
