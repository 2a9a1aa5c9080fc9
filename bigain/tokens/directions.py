"""Cosines between tokens of any float dtype, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.tokens.precision import products

_NORM_FLOOR = 1e-12


def unit_tokens(x: Tensor) -> Tensor:
    """Scale tokens to unit length in float32, with norms of at least 1e-12. `(b, n, c)`."""
    return F.normalize(x.float(), dim=-1, eps=_NORM_FLOOR)


@dataclass(frozen=True)
class Directions:
    """Tokens prepared for computing cosines.

    Attributes:
        tokens: Scaled to unit length; in half precision not scaled, because products of half-precision tokens are
            exact and those of rounded unit tokens are not. `(b, n, c)`.
        lengths: Norms to divide the products by, in half precision. `(b, n)`, float32.
    """

    tokens: Tensor
    lengths: Tensor | None

    @classmethod
    def of(cls, x: Tensor) -> Directions:
        """Prepare tokens. `(b, n, c)`, any float dtype."""
        if x.dtype not in (torch.float16, torch.bfloat16):
            return cls(unit_tokens(x), None)
        return cls(x, x.float().norm(dim=-1).clamp_(min=_NORM_FLOOR))

    def cosines(self, others: Directions, room: Tensor) -> Tensor:
        """Compute the cosine of each of these tokens to each of the others.

        Args:
            others: Of the same dtype. `(b, m, c)`.
            room: Memory for the result. At least `b * n * m`, float32.

        Returns:
            `(b, n, m)`, float32.
        """
        b, n, m = *self.tokens.shape[:2], others.tokens.shape[1]
        out = room[: b * n * m].view(b, n, m)
        cosines = products(self.tokens, others.tokens.transpose(1, 2), out)
        if self.lengths is None or others.lengths is None:
            return cosines
        return cosines.div_(others.lengths[:, None]).div_(self.lengths[..., None])
