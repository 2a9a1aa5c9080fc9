"""Digests of networks, to identify the weights behind a cached number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


def module_digest(module: nn.Module) -> str:
    """Return a hash of a module's class, configuration and weights; takes about a second per gigabyte."""
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=16)
    config: dict[str, Any] = dict(getattr(module, "config", {}))
    # Names with a leading underscore say where it was loaded from.
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
