"""Sites of a compressor with their tokens, as plain values for result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bigain.compressors.base import Compressor
from bigain.errors import InputError
from bigain.tokens.grid import Grid


def site_table(compressor: Compressor, denoiser: torch.nn.Module, latent: Grid) -> list[dict[str, Any]]:
    """List name, position, and tokens in and out of every site of a compressor."""
    return [
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


def refuse_without_effect(sites: Sequence[Mapping[str, Any]]) -> None:
    """Raise an InputError if a compressor removes no token at one of its sites, which `site_table` lists."""
    for site in sites:
        if site["tokens_out"] >= site["tokens_in"]:
            raise InputError(
                f"{site['compressor']} changes nothing at {site['name']}: {site['tokens_in']} tokens; choose other "
                "sites or a stronger setting"
            )
