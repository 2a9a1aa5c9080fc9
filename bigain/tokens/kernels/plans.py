"""Launch the kernels: make merge plans, merge, unmerge and downsample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import torch
import triton
from torch import Tensor

from bigain.tokens.dispatch import kernels_serve
from bigain.tokens.grid import Cell, Grid, cell_count
from bigain.tokens.kernels import matching, scoring, sequences
from bigain.tokens.kernels.tables import ORDER, RESTORE, TABLES
from bigain.tokens.matching import MergePlan, Mode

_INTERPRETED = triton.knobs.runtime.interpret

# Constants of a kernel by name, and the options `num_warps` and `num_stages`.
Sizes = tuple[tuple[str, Any], ...]


def _launch(kernel: Any, programs: tuple[int, ...], arguments: Sequence[Any], sizes: Sizes) -> None:
    """Launch a kernel. From the second time on, this takes half of the time of Triton's own launch."""
    if _INTERPRETED or any(isinstance(value, Tensor) and value.data_ptr() % 16 for value in arguments):
        kernel[programs](*arguments, **dict(sizes))
        return
    types = tuple([value.dtype if isinstance(value, Tensor) else type(value) for value in arguments])
    compiled, constants = _compiled(kernel, arguments[0].device.index, types, sizes)
    compiled[(*programs, 1, 1)[:3]](*arguments, *constants)


@cache
def _compiled(kernel: Any, device: int, types: tuple[Any, ...], sizes: Sizes) -> tuple[Any, list[Any]]:
    """Compile a kernel for aligned tensors (given by their dtype), integers, floats and None."""
    samples = [type_() if type_ in (int, float) else None if type_ is type(None) else type_ for type_ in types]
    compiled = kernel.warmup(*samples, grid=(1,), **dict(sizes))
    return compiled, [dict(sizes)[parameter.name] for parameter in kernel.params if parameter.is_constexpr]


def _power_of_two(minimum: int) -> int:
    """The smallest power of two that is at least `minimum`. That of Triton takes several microseconds."""
    return 1 << max(0, minimum - 1).bit_length()


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


def _per_row(values: Tensor | None, b: int) -> Tensor | None:
    """Values for each of `b` rows, contiguous; a single row counts for all. Kernels read them by address."""
    return None if values is None else values.expand(b, *values.shape[1:]).contiguous()


def _tables_like(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], TABLES.value, x.shape[1], dtype=torch.int32)


@cache
def _strips(c: int, grid: Grid, cell: Cell, **constants: Any) -> Sizes:
    """Sizes of kernels that work on strips of cells."""
    cells, area = _power_of_two(-(-grid.w // cell.w)), _power_of_two(cell.area)
    # Channels at a time; measured on an H100.
    step = max(16, min(_power_of_two(c), 32 if cells * area > 64 else 8192 // (cells * area)))
    sizes = {"H": grid.h, "W": grid.w, "CH": cell.h, "CW": cell.w, "C": c, "CELLS": cells, "AREA": area}
    warps = max(1, min(8, cells * area * step // 1024))
    return tuple((constants | sizes | {"BLOCK_C": step, "num_warps": warps}).items())


@cache
def _tiles(dtype: torch.dtype, device: torch.device, n: int, m: int, c: int, to_kept: bool, nan_key: int) -> Sizes:
    """Tiles of `match`; measured on an H100."""
    half = dtype != torch.float32
    if half and m > 128:
        rows, columns, channels, warps, stages = 128, 256, 64, 8, 3
    else:
        rows, columns, channels, warps, stages = (64, 128, 64, 4, 4) if half else (64, 64, 32, 4, 4)
    sizes: dict[str, Any] = {"TO_KEPT": to_kept, "NAN_KEY": nan_key, "N": n, "M": m, "C": c, "num_warps": warps}
    sizes |= {"ROWS": rows, "COLUMNS": columns, "CHANNELS": channels, "PRECISION": "tf32" if half else "ieee"}
    sizes["WIDEN"] = _INTERPRETED and dtype == torch.bfloat16
    if device.type == "cuda":
        # Steps in flight, fewer where shared memory is small.
        shared_memory = triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"]
        sizes["num_stages"] = max(1, min(stages, shared_memory // ((rows + columns) * channels * dtype.itemsize)))
    return tuple(sizes.items())


def choose(x: Tensor, tables: Tensor, grid: Grid, cell: Cell, rule: str, arguments: Sequence[Any]) -> None:
    """Find destinations, norms and sources; `arguments` are those of the kernel from `destinations` to `beta`."""
    sizes = _strips(x.shape[2], grid, cell, RULE=rule, BLOCKS=_power_of_two(-(-grid.n // 64)))
    _launch(scoring.choose, (-(-grid.h // cell.h), len(x)), (x, tables, *arguments), sizes)


def match(x: Tensor, tables: Tensor, m: int, to_kept: bool = False, nan_key: int = 1) -> None:
    """Find the most similar of `m` destinations for each source."""
    b, n, c = x.shape
    sizes = _tiles(x.dtype, x.device, n, m, c, to_kept, nan_key)
    _launch(matching.match, (-(-(n - m) // dict(sizes)["ROWS"]), b), (x, tables), sizes)


def select(tables: Tensor, removed: int) -> None:
    """Decide which tokens to remove, and their order."""
    b, _, n = tables.shape
    tokens = _power_of_two(n)
    sizes = (("N", n), ("TOKENS", tokens), ("num_warps", max(1, min(8, tokens // 256))))
    _launch(matching.select, (b,), (tables, removed), sizes)


@_operator(_tables_like)
def bipartite(
    x: Tensor,
    grid: Sequence[int],
    cell: Sequence[int],
    removed: int,
    rule: str,
    destinations: Tensor | None,
    keys: Tensor | None,
    classes: Tensor | None,
    seed: int,
    site: int,
) -> Tensor:
    """Tables of the plan of `bipartite_matching`; `rule`, `keys` to `site`: see `scoring.choose` and `row_key`."""
    x, grid, cell, tables = x.contiguous(), Grid(*grid), Cell(*cell), _tables_like(x)
    grid.check(x)
    destinations, keys, classes = _per_row(destinations, len(x)), _per_row(keys, len(x)), _per_row(classes, len(x))
    stride = 0 if destinations is None else destinations.shape[1]
    choose(x, tables, grid, cell, rule, (destinations, stride, keys, classes, seed, site, None, 0.0, 0.0))
    match(x, tables, cell_count(grid, cell))
    select(tables, removed)
    sizes = (("N", grid.n), ("BLOCK", 16), ("SPAN", 128), ("num_warps", 2))
    _launch(matching.link, (-(-removed // 16), len(x)), (tables, grid.n - removed), sizes)
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
    x, grid, cell, tables = x.contiguous(), Grid(*grid), Cell(*cell), _tables_like(x)
    grid.check(x)
    b, n, c = x.shape
    sums = x.new_empty(b, -(-n // 64), c, dtype=torch.float32)
    sizes = (("N", n), ("C", c), ("TOKENS", 64), ("BLOCK_C", max(16, min(_power_of_two(c), 128))))
    _launch(scoring.unit_sums, (sums.shape[1], b), (x, sums), sizes)
    arguments = (None, 0, _per_row(keys, b), None, seed, site, sums, noise_alpha, sim_beta)
    choose(x, tables, grid, cell, "similar", arguments)
    # torch sorts NaN first.
    match(x, tables, cell_count(grid, cell), nan_key=2**31 - 1)
    select(tables, removed)
    match(x, tables, n - removed, to_kept=True)
    return tables


@_operator(_tables_like)
def blocks(x: Tensor, grid: Sequence[int], cell: Sequence[int], count: int, aggregate: str) -> Tensor:
    """Tables of the plan of `block_merging` on the Laplacian score."""
    x, grid, cell, tables = x.contiguous(), Grid(*grid), Cell(*cell), _tables_like(x)
    grid.check(x)
    sizes = _strips(x.shape[2], grid, cell, SIGN=-1, AGGREGATE=aggregate)
    _launch(scoring.cell_keys, (grid.h // cell.h, len(x)), (x, tables), sizes)
    tokens, cells = _power_of_two(grid.n), _power_of_two(cell_count(grid, cell))
    constants = (("H", grid.h), ("W", grid.w), ("CH", cell.h), ("CW", cell.w), ("CELLS", cells), ("TOKENS", tokens))
    warps = ("num_warps", max(1, min(16, tokens // 256)))
    _launch(matching.select_blocks, (len(x),), (tables, count), (*constants, warps))
    return tables


def _copy(x: Tensor, tables: Tensor, kept: int, first: int, mean: bool) -> Tensor:
    """Copy, or average with their chains, `kept` tokens of the list `ORDER` from position `first`."""
    b, n, c = x.shape
    out = x.new_empty(b, kept, c)
    # One row per program is the fastest; the interpreter pays for every program.
    block, rows = _power_of_two(c), 16 if _INTERPRETED else 1
    sizes = (("MEAN", mean), ("N", n), ("C", c), ("ROWS", rows), ("BLOCK_C", block))
    warps = ("num_warps", max(1, min(8, block // 256)))
    _launch(sequences.merge, (-(-kept // rows), b), (x, tables, out, kept, first), (*sizes, warps))
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
    block = min(512, max(16, _power_of_two(c)))
    rows = 4096 // block
    sizes = (("N", n), ("C", c), ("ROWS", rows), ("BLOCK_C", block))
    _launch(sequences.unmerge, (-(-n // rows), b), (y.contiguous(), tables, out, k), sizes)
    return out


@_operator(lambda x, grid, count, keep: x.new_empty(x.shape[0], count, x.shape[2]))
def frequency(x: Tensor, grid: Sequence[int], count: int, keep: str) -> Tensor:
    """`frequency_selection` on the Laplacian score. `(b, n, c)` -> `(b, count, c)`."""
    x, grid, tables = x.contiguous(), Grid(*grid), _tables_like(x)
    grid.check(x)
    sizes = _strips(x.shape[2], grid, Cell(1, 1), SIGN=1 if keep == "high" else -1, AGGREGATE="max")
    _launch(scoring.cell_keys, (grid.h, len(x)), (x, tables), sizes)
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
    c, h, w = x.shape[2], grid[0] // factor, grid[1] // factor
    block = min(128, max(16, _power_of_two(c)))
    sizes = (("KIND", kind), ("H_IN", grid[0]), ("W_IN", grid[1]), ("H", h), ("W", w), ("C", c))
    windows = (("WINDOW_H", grid[0] // h), ("WINDOW_W", grid[1] // w), ("TOKENS", 16), ("BLOCK_C", block))
    programs = (-(-h * w // 16), len(x), -(-c // block))
    arguments = (x.contiguous(), out, _per_row(alphas, len(x)), float(alpha))
    _launch(sequences.downsample, programs, arguments, sizes + windows)
    return out


class KernelPlan(MergePlan):
    """A `MergePlan` as tables of kernels, `(b, 9, n)`, int32. Other attributes are computed on access."""

    tables: Tensor
    count: int

    def __init__(self, tables: Tensor, count: int, *, mode: Mode) -> None:
        for name, value in (("tables", tables), ("count", count), ("mode", mode)):
            object.__setattr__(self, name, value)

    kept = property(lambda self: self.tables[:, ORDER.value, : self.count].long())
    removed = property(lambda self: self.tables[:, ORDER.value, self.count :].long())
    restore = property(lambda self: self.tables[:, RESTORE.value].long())
    target = property(lambda self: self.restore.gather(1, self.removed))

    def of_rows(self, rows: Tensor) -> KernelPlan:
        return KernelPlan(self.tables.index_select(0, rows), self.count, mode=self.mode)

    def merge(self, x: Tensor) -> Tensor:
        if not kernels_serve(x, "norms of mode mlerp" if self.mode == "mlerp" else ""):
            return super().merge(x)
        if x.shape[:2] != (self.tables.shape[0], self.tables.shape[2]):
            raise ValueError(
                f"the plan is for {self.tables.shape[0]} x {self.tables.shape[2]} tokens, not {x.shape[:2]}"
            )
        return merge(x, self.tables, self.count, self.mode == "mean")

    def unmerge(self, y: Tensor) -> Tensor:
        return unmerge(y, self.tables) if kernels_serve(y) else super().unmerge(y)
