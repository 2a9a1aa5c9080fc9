"""Sheets of token maps: what is merged into what, which tokens are copied as keys, scores and salience.

Drawn with Pillow, because matplotlib takes twice as long for the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from bigain.data.images import Colour, Picture, Row, sheet
from bigain.inspector.maps import SiteMap, evenly
from bigain.runs.numbers import counted
from bigain.tokens.grid import Grid

Array = npt.NDArray[Any]

# Distinguishable with all common kinds of colour blindness (Okabe and Ito).
DESTINATION = (230, 159, 0)
DIMMED = (10, 10, 30)
# Opacity of a mark over the picture.
_DIMMED, _DESTINATION = 0.62, 0.85
# Largest side of a token map and smallest side of a token, in px.
_SIDE, _MIN_TOKEN = 160, 4
# Most timesteps that are drawn.
_COLUMNS = 5


class Subject(NamedTuple):
    """The image of a sheet, `(h, w, 3)`, and lines that describe it and the run."""

    picture: Picture
    lines: Sequence[str]


def token_sheet(subject: Subject, maps: Sequence[SiteMap]) -> Image.Image | None:
    """Draw which tokens of an image are merged or used as keys, by site and timestep; None if there are none."""
    drawn = [site for site in maps if site.leader is not None or site.copied is not None]
    if not drawn:
        return None
    rows = [(_caption(site), _token_pictures(subject.picture, site)) for site in drawn]
    return sheet(subject.lines, rows, _token_legend(drawn), fitted(subject.picture, drawn[0].grid))


def noise_sheet(subjects: Sequence[Subject], maps: Sequence[SiteMap]) -> Image.Image:
    """Draw salience and decisions at one site over the noises of one timestep: averaged, and of the first noise."""
    rows = []
    for subject, site in zip(subjects, maps, strict=True):
        salience = site.salience.mean(0)
        tiles = [("image", fitted(subject.picture, site.grid))]
        tiles.append((f"salience: {salience.min():.2g} to {salience.max():.2g}", heat(salience, site.grid)))
        if (share := _removed_share(site)) is not None:
            action = "not a key" if site.leader is None else "merged"
            tiles.append((f"{action}: {100 * share.min():.0f} to {100 * share.max():.0f} %", heat(share, site.grid)))
            tiles.append(("the first noise", token_picture(subject.picture, site, 0)))
        rows.append((subject.lines[0], tiles))
    description = f"timestep {maps[0].timesteps[0]:.0f}, {counted(len(maps[0].timesteps), 'noise')}, no class prompt"
    description += ": mean Laplacian salience (Eq. 7), and how often a token is removed"
    title = [*subjects[0].lines[1:], _caption(maps[0]), description]
    return sheet(title, rows, [*_heat_legend(""), *_token_legend(maps)])


def _removed_share(site: SiteMap) -> Array | None:
    """Return how often each token is merged away or is not a key, in [0, 1]; None if keys are blends. `(n,)`."""
    if site.leader is not None:
        return (site.leader != np.arange(site.grid.n)).mean(0)
    if site.copied is not None:
        return 1 - np.bincount(site.copied.ravel(), minlength=site.grid.n) / len(site.copied)
    return None


def _token_legend(maps: Sequence[SiteMap]) -> list[tuple[Colour, str]]:
    """Return the colours of `token_picture` with their meaning."""
    legend: list[tuple[Colour, str]] = []
    if any(site.leader is not None for site in maps):
        legend = [(DESTINATION, "destination: stays and represents others")]
        legend.append((DIMMED, "source, dimmed: merged away; the others stay unchanged"))
    if any(site.copied is not None for site in maps):
        legend.append((DIMMED, "dimmed: not a key; the others are keys, unchanged"))
    return legend


def score_sheet(subject: Subject, maps: Sequence[SiteMap]) -> Image.Image | None:
    """Draw the scores behind the decisions by site and timestep; None if no decision was made by score."""
    scored = [(site, site.scores) for site in maps if site.scores is not None]
    if not scored:
        return None
    rows: list[Row] = []
    for site, scores in scored:
        captions = [f"t {site.timesteps[i]:.0f}: {scores[i].min():.2g} to {scores[i].max():.2g}" for i in _draws(site)]
        heats = [heat(scores[i], site.grid) for i in _draws(site)]
        rows.append((_caption(site), list(zip(captions, heats, strict=True))))
    title = [*subject.lines, "score behind the decision"]
    return sheet(title, rows, _heat_legend(), fitted(subject.picture, scored[0][0].grid))


def salience_sheet(subject: Subject, maps: Sequence[SiteMap]) -> Image.Image:
    """Draw the Laplacian salience of an image by site, averaged over noise draws."""
    draws = max(len(site.timesteps) for site in maps)
    title = [*subject.lines[1:], f"Laplacian salience (Eq. 7), mean of {counted(draws, 'noise draw')}, by site"]
    heats = [(f"site {site.index}", heat(site.salience.mean(0), site.grid)) for site in maps]
    tiles = [("image", fitted(subject.picture, maps[0].grid)), *heats]
    return sheet(title, [(subject.lines[0], tiles)], _heat_legend())


def _heat_legend(remark: str = ": most detail") -> list[tuple[Colour, str]]:
    """Return a few colours of `heat` with their meaning."""
    import matplotlib

    texts = ("lowest value of each map", "half way", f"highest value of each map{remark}")
    colours = matplotlib.colormaps["inferno"]((0.0, 0.5, 1.0), bytes=True)[:, :3].tolist()
    return list(zip(map(tuple, colours), texts, strict=True))


def _draws(site: SiteMap) -> list[int]:
    return evenly(range(len(site.timesteps)), _COLUMNS)


def _caption(site: SiteMap) -> str:
    n = site.grid.n
    tokens = ""
    if site.leader is not None:
        kept = [len(np.unique(leader)) for leader in site.leader]
        tokens = f", {n} -> {' to '.join(map(str, sorted({min(kept), max(kept)})))}"
    elif site.copied is not None:
        tokens = f", {n} queries, {site.copied.shape[1]} keys"
    return f"site {site.index}: {site.name}, {site.grid.h}x{site.grid.w} tokens{tokens}"


def _token_pictures(picture: Picture, site: SiteMap) -> list[tuple[str, Picture]]:
    """Draw the tokens at every drawn timestep, or once if they do not change."""
    arrays = [array for array in (site.leader, site.copied) if array is not None]
    if len(site.timesteps) > 1 and all((array == array[0]).all() for array in arrays):
        return [("at every timestep", token_picture(picture, site, 0))]
    return [(f"timestep {site.timesteps[draw]:.0f}", token_picture(picture, site, draw)) for draw in _draws(site)]


def token_picture(picture: Picture, site: SiteMap, draw: int) -> Picture:
    """Mark on a picture what happens to its tokens at a site under one noise draw.

    Merging: sources are dimmed, destinations coloured. Keys that are copies: the other tokens are dimmed.
    """
    base, tint = fitted(picture, site.grid), np.zeros((site.grid.n, 4), np.float32)
    if site.leader is not None:
        source = site.leader[draw] != np.arange(site.grid.n)
        tint[source] = (*DIMMED, _DIMMED)
        tint[site.leader[draw][source]] = (*DESTINATION, _DESTINATION)
    elif site.copied is not None:
        tint[:] = (*DIMMED, _DIMMED)
        tint[site.copied[draw], 3] = 0
    colour, opacity = np.split(_enlarged(tint, site.grid), [3], 2)
    return (base + opacity * (colour - base)).round().astype(np.uint8)


def heat(values: Array, grid: Grid) -> Picture:
    """Draw a token map from its lowest value, dark, to its highest, bright; grey where not finite. `(n,)`."""
    import matplotlib
    from matplotlib.colors import Normalize

    colours = matplotlib.colormaps["inferno"].with_extremes(bad="#808080")
    return _enlarged(colours(Normalize()(np.ma.masked_invalid(values)), bytes=True)[:, :3], grid)


def token_side(grid: Grid) -> int:
    """Return the side of a token in px."""
    return max(_MIN_TOKEN, _SIDE // max(grid))


def fitted(picture: Picture, grid: Grid) -> Picture:
    """Resize a picture to the size of a drawn token map. `(h, w, 3)`."""
    size = (grid.w * token_side(grid), grid.h * token_side(grid))
    method = Image.Resampling.LANCZOS if picture.shape[0] > size[1] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size, method))


def _enlarged(values: Array, grid: Grid) -> Array:
    """Draw each token as a square. `(n, ...)` -> `(h, w, c)`."""
    side = token_side(grid)
    return values.reshape(grid.h, grid.w, -1).repeat(side, 0).repeat(side, 1)
