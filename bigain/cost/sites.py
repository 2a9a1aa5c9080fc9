"""Sites of a compressor with their tokens, as plain values for result files."""

from __future__ import annotations

from collections.abc import Collection
from textwrap import shorten
from typing import Any

import torch

from bigain.compressors.base import Compressor
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError
from bigain.runs.summary import compressor_text
from bigain.tokens.grid import Grid


def site_table(
    compressor: Compressor, denoiser: torch.nn.Module, latent: Grid, timesteps: Collection[int] = range(TIMESTEPS)
) -> list[dict[str, Any]]:
    """List name, position, tokens in and out of every site of a compressor, installed before, for these timesteps.

    Raises:
        InputError: If it does nothing at all of the timesteps, or removes no token at a site, unless it pads sequences.
    """
    rows, name = [], type(compressor).__name__
    if not any(map(compressor.acts_at, timesteps)):
        evaluated = shorten(", ".join(map(str, sorted(timesteps))), 100, placeholder=f" ..., {max(timesteps)}")
        raise InputError(
            f"{compressor_text(compressor.description())} changes nothing at the timesteps that are evaluated: "
            f"{evaluated}; let it act at some of these"
        )
    for site in compressor.sites_of(denoiser):
        n, tokens_out = site.grid(latent).n, compressor.tokens_out(site, latent)
        if tokens_out >= n and not compressor.pads:
            raise InputError(
                f"{name} changes nothing at {site.name}: {n} tokens; choose other sites or a stronger setting"
            )
        position = {"name": site.name, "index": site.index, "part": site.part, "stride": site.stride}
        rows.append({**position, "tokens_in": n, "tokens_out": tokens_out, "compressor": name})
    return rows
