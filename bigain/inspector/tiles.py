"""Token maps as pictures: heat maps, what was merged into what, which keys are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bigain.tokens.grid import Grid

Picture = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

# Distinguishable with all common kinds of colour blindness (Okabe and Ito).
DESTINATION = (230, 159, 0)
DIMMED = (10, 10, 30)
LINE = (255, 255, 255)
# Sides of a tile and of a token in it, in px.
_TILE = 160
_LEAST = 4
# How much of a token's colour is the mark's.
_DIMMED, _DESTINATION = 0.62, 0.85


def token_side(grid: Grid) -> int:
    """Pixels per token and side."""
    return max(_LEAST, _TILE // max(grid))


def fitted(picture: Picture, grid: Grid) -> Picture:
    """A picture at the size of a token map's tile. `(h, w, 3)`."""
    side = token_side(grid)
    size = (grid.w * side, grid.h * side)
    larger = picture.shape[0] > size[1]
    how = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size, how))


def heat(values: Array, grid: Grid) -> Picture:
    """A token map from its lowest value, dark, to its highest, bright; what is not finite is grey. `(n,)`."""
    import matplotlib

    finite = np.isfinite(values)
    known = values[finite]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    scaled = np.where(finite, values - low, 0) / ((high - low) or 1)
    coloured = matplotlib.colormaps["inferno"](scaled, bytes=True)[:, :3]
    coloured = np.where(finite[:, None], coloured, 128).astype(np.uint8)
    return _enlarged(coloured.reshape(grid.h, grid.w, 3), grid)


def merged(picture: Picture, leader: Array, grid: Grid) -> Picture:
    """Destinations and sources on a picture; whatever else stays is left as it is.

    Args:
        picture: `(h, w, 3)`.
        leader: The token that stands in for each token. `(n,)`.
        grid: Token map.
    """
    source, destination = roles(leader)
    shown = fitted(picture, grid).astype(np.float32)
    for marked, colour, weight in ((source, DIMMED, _DIMMED), (destination, DESTINATION, _DESTINATION)):
        _tint(shown, marked, colour, weight, grid)
    return shown.round().astype(np.uint8)


def roles(leader: Array) -> tuple[Array, Array]:
    """Which tokens go, and which of those that stay take others in. `(n,)` -> `(n,)` bool each."""
    source = leader != np.arange(len(leader))
    destination = np.zeros(len(leader), np.bool_)
    destination[leader[source]] = True
    return source, destination


def keys_read(picture: Picture, keys: Array | None, copied: Array | None, grid: Grid) -> Picture:
    """Keys on a picture: tokens that are no key are dimmed; where keys are blends, lines are drawn between them.

    Args:
        picture: `(h, w, 3)`.
        keys: Key that lies nearest to each place; None draws no lines. `(n,)`.
        copied: Token that each key is a copy of; None if keys are blends. `(m,)`.
        grid: Token map.
    """
    shown = fitted(picture, grid).astype(np.float32)
    if copied is not None:
        unread = np.ones(grid.n, np.bool_)
        unread[copied] = False
        _tint(shown, unread, DIMMED, _DIMMED, grid)
    elif keys is not None:
        region = _enlarged(keys.reshape(grid.h, grid.w, 1), grid)[..., 0]
        border = np.zeros(region.shape, np.bool_)
        border[1:] = region[1:] != region[:-1]
        border[:, 1:] |= region[:, 1:] != region[:, :-1]
        shown[border] = LINE
    return shown.round().astype(np.uint8)


def _tint(shown: Array, marked: Array, colour: tuple[int, int, int], weight: float, grid: Grid) -> None:
    """Move the marked tokens' pixels so far towards a colour. `(h, w, 3)`, `(n,)`."""
    amount = weight * _enlarged(marked.reshape(grid.h, grid.w, 1).astype(np.float32), grid)
    shown += amount * (np.asarray(colour, np.float32) - shown)


def _enlarged(values: Array, grid: Grid) -> Array:
    """`(h, w, c)` with a square of pixels per token."""
    side = token_side(grid)
    return values.repeat(side, 0).repeat(side, 1)
