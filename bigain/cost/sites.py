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
    sites: list[dict[str, Any]] = [
        {
            "name": site.name,
            "index": site.index,
            "part": site.part,
            "stride": site.stride,
            "tokens_in": site.grid(latent).n,
            "tokens_out": compressor.tokens_out(site, latent),
            "compressor": type(compressor).__name__,
        }
        for site in compressor.sites_of(denoiser)
    ]
    for site in sites:
        if site["tokens_out"] >= site["tokens_in"] and not compressor.pads:
            raise InputError(
                f"{site['compressor']} changes nothing at {site['name']}: {site['tokens_in']} tokens; choose other "
                "sites or a stronger setting"
            )
    return sites
