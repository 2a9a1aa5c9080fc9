"""Launch the kernels: merge plans, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import Cell, Grid, cell_count
from bigain.tokens.kernels import matching, scoring, sequences
from bigain.tokens.kernels.tables import COUNT, ORDER, RESTORE
from bigain.tokens.matching import MergePlan, Mode

INTERPRETED = triton.knobs.runtime.interpret


class Tiles(NamedTuple):
    """How `match` is cut: sources and destinations per tile, channels per step (0: all at once), warps, stages."""

    rows: int
    columns: int
    channels: int
    warps: int
    stages: int


SAFE = Tiles(64, 64, 32, 4, 2)  # fits everywhere
# Bytes of shared memory of a Hopper processor that a choice may count on.
_ROOM = 220 * 1024
_too_large: set[tuple[Tiles, int, torch.dtype]] = set()


def tiles_for(b: int, sources: int, c: int, dtype: torch.dtype) -> Tiles:
    """Choose tiles by size; measured on an H100."""
    if dtype == torch.float32:
        return SAFE
    # A high tile of sources reads the destinations less often, if enough of them are left for 132 processors.
    high = b * -(-sources // 128) >= 132
    for rows in (128, 64) if high else (64,):
        if (rows + 3 * 64) * sum(_pieces(c)) * 2 <= _ROOM:
            return Tiles(rows, 64, 0, rows // 16, 3)
    return Tiles(128, 128, 64, 8, 3) if high else Tiles(64, 128, 64, 4, 3)


def _power(least: int) -> int:
    """The first power of two that is no smaller."""
    return 1 << max(0, least - 1).bit_length()


def _pieces(c: int) -> tuple[int, int]:
    """Two powers of two, 16 or more, that `c` channels fit into; the second is unused if the first holds all."""
    first = max(16, _power(c + 1) // 2)
    return first, max(16, _power(c - first))


class Draw(NamedTuple):
    """Identity of random draws: keys of the rows, `(b,)`, int64, their classes if they count, seed and site."""

    keys: Tensor | None = None
    classes: Tensor | None = None
    seed: int = 0
    site: int = 0


def _operator(shape: Callable[..., Tensor]) -> Callable[[Any], Any]:
    """Make a function an operator of torch, so that it can be compiled; `shape` returns an empty result.

    In eager code it is called directly, on the device of its tokens.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        operator = torch.library.custom_op(f"bigain::{function.__name__}", function, mutates_args=())
        operator.register_fake(shape)

        @wraps(function)
        def call(x: Tensor, *arguments: Any) -> Tensor:
            if torch.compiler.is_compiling():
                return operator(x, *arguments)
            if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
                with torch.cuda.device(x.device):
                    return function(x, *arguments)
            return function(x, *arguments)

        return call

    return register


def _tables_like(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(COUNT, x.shape[0], x.shape[1], dtype=torch.int32)


@cache
def _strips(b: int, c: int, grid: Grid, cell: Cell) -> tuple[tuple[int, int], dict[str, Any]]:
    """Programs and sizes of kernels that work on strips of cells."""
    cells, area = _power(-(-grid.w // cell.w)), _power(cell.area)
    step = max(16, min(_power(c), 8192 // (cells * area)))
    sizes = {"CH": cell.h, "CW": cell.w, "C": c, "CELLS": cells, "AREA": area, "BLOCK_C": step}
    return (-(-grid.h // cell.h), b), {**sizes, "num_warps": max(1, min(8, cells * area * step // 1024))}


def choose(
    x: Tensor,
    tables: Tensor,
    grid: Grid,
    cell: Cell,
    rule: str,
    given: Tensor | None = None,
    draw: Draw | None = None,
    total: Tensor | None = None,
    weights: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Destinations, norms and the list of sources."""
    programs, sizes = _strips(len(x), x.shape[2], grid, cell)
    stride = 0 if given is None or len(given) == 1 else given.shape[1]
    keys, classes, seed, site = draw or (None, None, 0, 0)
    scoring.choose[programs](
        x, tables, given, stride, keys, classes, seed, site, total, *weights, len(x), *grid, RULE=rule, **sizes
    )


def match(x: Tensor, tables: Tensor, m: int, again: bool = False, nan_key: int = 1, tiles: Tiles | None = None) -> None:
    """The most similar of `m` destinations for each source; where the chosen tiles do not fit, smaller ones."""
    b, n, c = x.shape
    first = tiles or tiles_for(b, n - m, c, x.dtype)
    for tiles in (first, first._replace(stages=max(1, first.stages - 1)), SAFE):
        if (tiles, c, x.dtype) in _too_large:
            continue
        pieces = _pieces(c) if tiles.channels == 0 else (16, 16)
        try:
            matching.match[(-(-(n - m) // tiles.rows), b)](
                x,
                tables,
                b,
                n,
                m,
                AGAIN=again,
                NAN_KEY=nan_key,
                C=c,
                C1=pieces[0],
                C2=pieces[1],
                ROWS=tiles.rows,
                COLUMNS=tiles.columns,
                CHANNELS=tiles.channels,
                PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
                WIDEN=INTERPRETED and x.dtype == torch.bfloat16,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )
            return
        except triton.OutOfResources:
            if tiles == SAFE:
                raise
            _too_large.add((tiles, c, x.dtype))


def select(tables: Tensor, removed: int) -> None:
    """The tokens to remove, and the order of tokens."""
    _, b, n = tables.shape
    tokens = _power(n)
    matching.select[(b,)](tables, b, n, removed, TOKENS=tokens, num_warps=max(1, min(16, tokens // 256)))


def link(tables: Tensor, removed: int) -> None:
    """Chains of tokens that are averaged."""
    _, b, n = tables.shape
    matching.link[(-(-removed // 64), b)](tables, b, n, n - removed, BLOCK=64, SPAN=64, num_warps=4)


@_operator(_tables_like)
def bipartite(
    x: Tensor,
    grid: Sequence[int],
    cell: Sequence[int],
    removed: int,
    rule: str,
    given: Tensor | None,
    keys: Tensor | None,
    classes: Tensor | None,
    seed: int,
    site: int,
) -> Tensor:
    """Tables of the plan of `bipartite_matching`."""
    x, grid, cell = x.contiguous(), Grid(*grid), Cell(*cell)
    tables = _tables_like(x)
    choose(x, tables, grid, cell, rule, given, Draw(keys, classes, seed, site))
    match(x, tables, cell_count(grid, cell))
    select(tables, removed)
    link(tables, removed)
    return tables


@_operator(_tables_like)
def similar(
    x: Tensor,
    grid: Sequence[int],
    cell: Sequence[int],
    removed: int,
    keys: Tensor,
    seed: int,
    site: int,
    noise_alpha: float,
    sim_beta: float,
) -> Tensor:
    """Tables of the plan of `similarity_pruning`, without a graph of all pairs."""
    x, grid, cell = x.contiguous(), Grid(*grid), Cell(*cell)
    b, n, c = x.shape
    tables, parts = _tables_like(x), -(-n // 64)
    sums = x.new_empty(b, parts, c, dtype=torch.float32)
    scoring.unit_sums[(parts, b)](x, sums, n, C=c, TOKENS=64, BLOCK_C=max(16, min(_power(c), 128)), num_warps=4)
    draw = Draw(keys, None, seed, site)
    choose(x, tables, grid, cell, "similar", None, draw, sums.sum(1), (noise_alpha, sim_beta))
    # torch sorts NaN first.
    match(x, tables, cell_count(grid, cell), nan_key=2**31 - 1)
    select(tables, removed)
    match(x, tables, n - removed, again=True)
    return tables


@_operator(_tables_like)
def blocks(x: Tensor, grid: Sequence[int], cell: Sequence[int], count: int, aggregate: str) -> Tensor:
    """Tables of the plan of `block_merging` on the Laplacian score."""
    x, grid, cell = x.contiguous(), Grid(*grid), Cell(*cell)
    tables, b = _tables_like(x), len(x)
    _, sizes = _strips(b, x.shape[2], grid, cell)
    scoring.levels[(grid.h // cell.h, b)](x, tables, b, *grid, SIGN=-1, AGGREGATE=aggregate, **sizes)
    tokens, cells = _power(grid.n), _power(cell_count(grid, cell))
    warps = max(1, min(16, tokens // 256))
    matching.select_blocks[(b,)](
        tables, b, *grid, count, CH=cell.h, CW=cell.w, CELLS=cells, TOKENS=tokens, num_warps=warps
    )
    return tables


def _copy(x: Tensor, tables: Tensor, kept: int, first: int, mean: bool) -> Tensor:
    """Copy, or average with their chains, `kept` tokens of the list `ORDER` from position `first`."""
    b, n, c = x.shape
    out = x.new_empty(b, kept, c)
    block = _power(c)
    rows = max(1, min(4, 4096 // block))
    warps = max(1, min(8, rows * block // 512))
    sequences.merge[(-(-kept // rows), b)](
        x, tables, out, b, n, kept, first, MEAN=mean, C=c, ROWS=rows, BLOCK_C=block, num_warps=warps
    )
    return out


@_operator(lambda x, tables, kept, mean: x.new_empty(x.shape[0], kept, x.shape[2]))
def merge(x: Tensor, tables: Tensor, kept: int, mean: bool) -> Tensor:
    """Shorten a sequence. `(b, n, c)` -> `(b, kept, c)`."""
    return _copy(x.contiguous(), tables, kept, 0, mean)


@_operator(lambda y, tables: y.new_empty(y.shape[0], tables.shape[2], y.shape[2]))
def unmerge(y: Tensor, tables: Tensor) -> Tensor:
    """Copy merged rows back. `(b, k, c)` -> `(b, n, c)`."""
    (b, k, c), n = y.shape, tables.shape[2]
    out = y.new_empty(b, n, c)
    # Steps that divide the channels, if they are of 32 or more.
    block = min(256, max(32, c & -c), max(16, _power(c)))
    rows = 2048 // block
    sequences.unmerge[(-(-n // rows), b)](
        y.contiguous(), tables, out, b, n, k, C=c, ROWS=rows, BLOCK_C=block, num_warps=4
    )
    return out


@_operator(lambda x, grid, count, keep: x.new_empty(x.shape[0], count, x.shape[2]))
def frequency(x: Tensor, grid: Sequence[int], count: int, keep: str) -> Tensor:
    """`frequency_selection` on the Laplacian score. `(b, n, c)` -> `(b, count, c)`."""
    x, grid = x.contiguous(), Grid(*grid)
    tables, (programs, sizes) = _tables_like(x), _strips(len(x), x.shape[2], grid, Cell(1, 1))
    sign = 1 if keep == "high" else -1
    scoring.levels[programs](x, tables, len(x), *grid, SIGN=sign, AGGREGATE="max", **sizes)
    # The tokens to keep are the ones that `select` removes.
    select(tables, count)
    return _copy(x, tables, count, grid.n - count, False)


def _downsampled(x: Tensor, grid: Sequence[int], factor: int, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], (grid[0] // factor) * (grid[1] // factor), x.shape[2])


@_operator(_downsampled)
def downsample(
    x: Tensor, grid: Sequence[int], factor: int, kind: str, alpha: float = 1.0, alphas: Tensor | None = None
) -> Tensor:
    """`downsample_nearest`, `downsample_average` or `interextrapolate`, by `kind`: `nearest`, `average`, `blend`.

    `alphas` has one weight per row, `(b,)`, float32, and takes precedence over `alpha`.
    """
    out = _downsampled(x, grid, factor)
    c, (h, w) = x.shape[2], (side // factor for side in grid)
    block = min(128, max(16, _power(c)))
    sequences.downsample[(-(-h * w // 16), len(x), -(-c // block))](
        x.contiguous(),
        out,
        alphas,
        alpha,
        *grid,
        H=h,
        W=w,
        KIND=kind,
        C=c,
        WINDOW_H=grid[0] // h,
        WINDOW_W=grid[1] // w,
        TOKENS=16,
        BLOCK_C=block,
        num_warps=4,
    )
    return out


class KernelPlan(MergePlan):
    """A `MergePlan` as tables of kernels, `(9, b, n)`, int32. Its other attributes are made when they are asked for."""

    tables: Tensor
    count: int

    def __init__(self, tables: Tensor, count: int, mode: Mode) -> None:
        for name, value in (("tables", tables), ("count", count), ("mode", mode)):
            object.__setattr__(self, name, value)

    kept = property(lambda self: self.tables[ORDER.value, :, : self.count].long())
    removed = property(lambda self: self.tables[ORDER.value, :, self.count :].long())
    restore = property(lambda self: self.tables[RESTORE.value].long())
    target = property(lambda self: self.restore.gather(1, self.removed))

    def of_rows(self, rows: Tensor) -> KernelPlan:
        return KernelPlan(self.tables.index_select(1, rows), self.count, self.mode)

    def merge(self, x: Tensor) -> Tensor:
        if not kernels_serve(x):
            return super().merge(x)
        return merge(x, self.tables, self.count, self.mode == "mean")

    def unmerge(self, y: Tensor) -> Tensor:
        return unmerge(y, self.tables) if kernels_serve(y) else super().unmerge(y)
