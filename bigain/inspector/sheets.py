"""Sheets of tiles with captions, and what stands on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bigain.inspector.maps import SiteMap
from bigain.inspector.rows import evenly
from bigain.inspector.tiles import DESTINATION, DIMMED, LINE, Picture, fitted, heat, keys_read, merged
from bigain.tokens.grid import Grid

# Noise draws (steps) that have a column.
_COLUMNS = 5
_GAP, _LINE, _MARGIN = 6, 18, 10
_FONT_SIZE = 12
_INK, _PAPER = (0, 0, 0), (255, 255, 255)
_LONGEST = 110

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Tile:
    """A picture and what is written above it."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class Row:
    """Tiles side by side under a line of text, which may be empty."""

    title: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Subject:
    """What a sheet is about.

    Attributes:
        picture: The image itself. `(h, w, 3)`.
        lines: What is told of it.
    """

    picture: Picture
    lines: Sequence[str]


def sheet(
    title: Sequence[str],
    rows: Sequence[Row],
    legend: Sequence[tuple[Colour, str]] = (),
    picture: Picture | None = None,
) -> Image.Image:
    """Put rows of tiles below each other, under a title and a legend, which may have a picture to their left."""
    font = _font()
    indent = _MARGIN + (0 if picture is None else picture.shape[1] + 2 * _GAP)
    lines = [*title, *(text for _, text in legend)]
    heading = [indent + _LINE + font.getlength(_cut(text)) for text in lines]
    below = [_MARGIN + font.getlength(_cut(row.title)) for row in rows]
    across = [_MARGIN - _GAP + sum(tile.picture.shape[1] + _GAP for tile in row.tiles) for row in rows]
    width = round(max(*heading, *below, *across, indent)) + _MARGIN
    header = max(_LINE * len(lines), 0 if picture is None else picture.shape[0]) + _GAP
    tallest = [max(tile.picture.shape[0] for tile in row.tiles) for row in rows]
    heights = [_LINE * (2 if row.title else 1) + tall + _GAP for row, tall in zip(rows, tallest, strict=True)]
    image = Image.new("RGB", (width, 2 * _MARGIN + header + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(image)
    if picture is not None:
        image.paste(Image.fromarray(picture), (_MARGIN, _MARGIN))
    for number, text in enumerate(title):
        draw.text((indent, _MARGIN + number * _LINE), _cut(text), _INK, font)
    for number, (colour, text) in enumerate(legend, len(title)):
        y = _MARGIN + number * _LINE
        draw.rectangle((indent, y + 2, indent + _LINE - 6, y + _LINE - 4), colour, _INK)
        draw.text((indent + _LINE, y), text, _INK, font)
    y = _MARGIN + header
    for row, tall in zip(rows, heights, strict=True):
        _draw_row(image, draw, row, y, font)
        y += tall
    return image


def _draw_row(image: Image.Image, draw: ImageDraw.ImageDraw, row: Row, y: int, font: ImageFont.FreeTypeFont) -> None:
    if row.title:
        draw.text((_MARGIN, y), _cut(row.title), _INK, font)
        y += _LINE
    x = _MARGIN
    for tile in row.tiles:
        caption = tile.caption
        while caption and font.getlength(caption) > tile.picture.shape[1]:
            caption = caption[:-1]
        draw.text((x, y), caption, _INK, font)
        image.paste(Image.fromarray(tile.picture), (x, y + _LINE))
        x += tile.picture.shape[1] + _GAP


@cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    # Pillow's own has no more than ASCII; this one comes with matplotlib.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), _FONT_SIZE)


def _cut(text: str) -> str:
    # Names of classes and images hold anything; Pillow cannot measure two lines.
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def token_sheet(subject: Subject, maps: Sequence[SiteMap]) -> Image.Image:
    """What becomes of the tokens of an image, by site and timestep."""
    rows = [Row(_about(one), _token_tiles(subject.picture, one)) for one in maps]
    legend: list[tuple[Colour, str]] = []
    if any(one.leader is not None for one in maps):
        legend = [(DESTINATION, "destination: stays, and stands for others")]
        legend.append((DIMMED, "source, dimmed: goes; the others stay as they are"))
    if any(one.copied is not None for one in maps):
        legend.append((DIMMED, "dimmed: no key; the others are keys as they are"))
    elif any(one.keys is not None for one in maps):
        legend.append((LINE, "between two lines: what lies nearest to the same key, a blend"))
    return sheet(subject.lines, rows, legend, fitted(subject.picture, maps[0].grid))


def score_sheet(subject: Subject, maps: Sequence[SiteMap]) -> Image.Image | None:
    """The scores that decided, by site and timestep; None if none did."""
    scored = [one for one in maps if one.scores is not None]
    if not scored:
        return None
    lines = [*subject.lines, "score that decided; bright means detail", "dark is lowest, bright is highest of its map"]
    rows = [Row(_about(one), [_scores(one, draw) for draw in _shown(one)]) for one in scored]
    return sheet(lines, rows, picture=fitted(subject.picture, scored[0].grid))


def salience_sheet(subjects: Sequence[Subject], maps: Sequence[Sequence[SiteMap]]) -> Image.Image:
    """The Laplacian salience of every image, averaged over noise draws, by site."""
    draws = max(len(one.timesteps) for of_image in maps for one in of_image)
    title = [
        *subjects[0].lines[1:],
        f"Laplacian salience (Eq. 7), mean of {draws} noise draws, by site",
        "dark is lowest, bright is highest of its map; bright means detail",
    ]
    rows = []
    for subject, of_image in zip(subjects, maps, strict=True):
        if of_image:
            tiles = [Tile(heat(one.salience.mean(0), one.grid), f"site {one.index}") for one in of_image]
            rows.append(Row(subject.lines[0], [Tile(fitted(subject.picture, of_image[0].grid), "image"), *tiles]))
    return sheet(title, rows)


def picture_sheet(subjects: Sequence[Subject]) -> Image.Image:
    """The images that are followed."""
    grid = Grid(16, 16)
    rows = [Row(subject.lines[0], [Tile(fitted(subject.picture, grid), "")]) for subject in subjects]
    return sheet([*subjects[0].lines[1:], "images that are followed"], rows)


def _shown(one: SiteMap) -> list[int]:
    return evenly(range(len(one.timesteps)), _COLUMNS)


def _about(one: SiteMap) -> str:
    n = one.grid.n
    if one.leader is not None:
        left = len(np.unique(one.leader[0]))
        told = f", {n} -> {left}"
    elif one.copied is not None:
        told = f", {n} queries, {one.copied.shape[1]} keys"
    elif one.keys is not None:
        told = f", {n} queries, {int(one.keys.max()) + 1} keys"
    else:
        told = ""
    return f"site {one.index}: {one.name}, {one.grid.h}x{one.grid.w} tokens{told}"


def _token_tiles(picture: Picture, one: SiteMap) -> list[Tile]:
    told = [array for array in (one.leader, one.keys, one.copied) if array is not None]
    if len(one.timesteps) > 1 and all((array == array[0]).all() for array in told):
        return [_tokens(picture, one, 0, "at every timestep")]
    return [_tokens(picture, one, draw, f"timestep {one.timesteps[draw]:.0f}") for draw in _shown(one)]


def _tokens(picture: Picture, one: SiteMap, draw: int, caption: str) -> Tile:
    if one.leader is not None:
        return Tile(merged(picture, one.leader[draw], one.grid), caption)
    keys = None if one.keys is None else one.keys[draw]
    copied = None if one.copied is None else one.copied[draw]
    return Tile(keys_read(picture, keys, copied, one.grid), caption)


def _scores(one: SiteMap, draw: int) -> Tile:
    assert one.scores is not None
    values = one.scores[draw]
    span = f"{values.min():.2g} to {values.max():.2g}"
    return Tile(heat(values, one.grid), f"t {one.timesteps[draw]:.0f}: {span}")
