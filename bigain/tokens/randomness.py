"""Counter-based randomness: every draw is a pure function of integer keys.

The numbers of a stateful generator depend on batch size, order and process count. A hash of (seed, image, trial,
site) does not. The mixer is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on wrapping
int64 tensors, so integer draws are identical on every device; no global random state is read or changed.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from bigain.tokens.precision import widest_float

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def stable_hash(text: str) -> int:
    """Map a string to an integer in [0, 2**63), the same in every process and Python version (blake2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it the logical shift of SplitMix64.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def mix(first: Tensor, *others: Tensor | int) -> Tensor:
    """Fold integer keys into one; the order of the keys matters.

    Args:
        first: int64 keys of any shape.
        others: int64 tensors that broadcast against `first`, or plain integers below 2**63 in magnitude.

    Returns:
        int64 keys of the broadcast shape.
    """
    key = _scramble(first + _GOLDEN)
    for other in others:
        key = _scramble((key ^ other) + _GOLDEN)
    return key


def random_bits(keys: Tensor, n: int) -> Tensor:
    """Draw `n` non-negative 63-bit integers per key. `(...)` -> `(..., n)`, int64."""
    counter = torch.arange(1, n + 1, device=keys.device, dtype=torch.int64)
    return _shift_right(_scramble(keys[..., None] + counter * _GOLDEN), 1)


def random_integers(keys: Tensor, n: int, high: int) -> Tensor:
    """Draw `n` integers in [0, high) per key. `(...)` -> `(..., n)`, int64; `high` far below 2**63."""
    return random_bits(keys, n) % high


def random_uniform(keys: Tensor, n: int) -> Tensor:
    """Draw `n` float32 numbers in [0, 1) per key, on a grid of 2**-24. `(...)` -> `(..., n)`."""
    return (random_bits(keys, n) >> 39).to(torch.float32) * 2.0**-24


def random_normal(keys: Tensor, n: int) -> Tensor:
    """Draw `n` standard normal float32 numbers per key (Box-Muller). `(...)` -> `(..., n)`.

    Computed in float64 so that rounding hides the last-bit differences of log and cos between devices; MPS has no
    float64 and computes in float32.
    """
    dtype = widest_float(keys.device)
    pairs = (n + 1) // 2
    bits = random_bits(keys, 2 * pairs)
    # 31-bit uniforms, shifted off zero for the logarithm.
    uniform = ((bits >> 32).to(dtype) + 0.5) * 2.0**-31
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., :pairs]))
    angle = 2.0 * math.pi * uniform[..., pairs:]
    normals = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return normals[..., :n].to(torch.float32)
