"""Sites of a compressor with their tokens, as plain values for result files."""

from __future__ import annotations

from typing import Any

import torch

from bigain.compressors.base import Compressor
from bigain.errors import InputError
from bigain.tokens.grid import Grid


def site_table(compressor: Compressor, denoiser: torch.nn.Module, latent: Grid) -> list[dict[str, Any]]:
    """List name, position, and tokens in and out of every site of a compressor.

    Raises:
        InputError: If it removes no token at one of them, unless it pads sequences.
    """
    rows, name = [], type(compressor).__name__
    for site in compressor.sites_of(denoiser):
        n, left = site.grid(latent).n, compressor.tokens_out(site, latent)
        if left >= n and not compressor.pads:
            raise InputError(
                f"{name} changes nothing at {site.name}: {n} tokens; choose other sites or a stronger setting"
            )
        place = {"name": site.name, "index": site.index, "part": site.part, "stride": site.stride}
        rows.append({**place, "tokens_in": n, "tokens_out": left, "compressor": name})
    return rows
