"""Kernels that score tokens: destinations of cells, scores of cells, sums of unit tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from bigain.tokens.kernels.tables import (
    CHAIN,
    DESTINATION,
    INVERSE,
    KEY,
    SOURCE,
    random_bits,
    row_key,
    rows_of,
    table,
)


@triton.jit
def _tokens(strip, j, CH: tl.constexpr, CW: tl.constexpr, AREA: tl.constexpr):
    """Row and column of the tokens of a strip in the order of their cells, `AREA` positions each."""
    position = j % AREA
    return strip * CH + position // CW, (j // AREA) * CW + position % CW


@triton.jit
def _laplacian(x, token, y, column, inside, centre, c, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """4-neighbour Laplacian, zero padded. Differences come first, so that equal tokens give exactly 0.

    NaN reaches 4 neighbours; in torch's convolution, which multiplies the corners by 0, it reaches 8.
    """
    up = rows_of(x, (token - W) * C, inside & (y > 0), c, C)
    down = rows_of(x, (token + W) * C, inside & (y + 1 < H), c, C)
    left = rows_of(x, (token - 1) * C, inside & (column > 0), c, C)
    right = rows_of(x, (token + 1) * C, inside & (column + 1 < W), c, C)
    return ((up - centre) + (down - centre)) + ((left - centre) + (right - centre))


@triton.jit
def _noise(key, token, n):
    """A standard normal draw per token, as `randomness.random_normal`."""
    pairs = (n + 1) // 2
    pair = token % pairs
    radius = ((random_bits(key, pair) >> 32).to(tl.float64) + 0.5) * (2.0**-31)
    angle = ((random_bits(key, pairs + pair) >> 32).to(tl.float64) + 0.5) * (2.0**-31) * 6.283185307179586
    wave = tl.where(token < pairs, tl.cos(angle), tl.sin(angle))
    return (tl.sqrt(-2.0 * tl.log(radius)) * wave).to(tl.float32)


@triton.jit(do_not_specialize=["stride", "seed", "site", "alpha", "beta"])
def choose(x, tables, destinations, stride, keys, classes, seed: tl.int64, site, sums, alpha, beta, RULE: tl.constexpr,
           H: tl.constexpr, W: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr, C: tl.constexpr, CELLS: tl.constexpr,
           AREA: tl.constexpr, BLOCK_C: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """A strip of cells: norms of its tokens, the destination of each cell, and the list of sources.

    RULE says how the destination is found: `flattest`: the lowest Laplacian score; `released`: the same, with scores in
    the released code's order; `first`: the top-left token; `drawn`: at random; `given`: from a table of token ids;
    `similar`: the highest similarity to all tokens, plus noise (SiTo).
    """
    strip, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    N: tl.constexpr = H * W
    area: tl.constexpr = CH * CW
    cell_columns: tl.constexpr = W // CW
    x += row * N * C
    j = tl.arange(0, CELLS * AREA)
    if RULE == "released":
        # Runs of `area` tokens in row-major order instead of cells.
        t = (j // AREA) * area + j % AREA
        y, column = strip * CH + t // W, t % W
        inside = (j % AREA < area) & (t < CH * W) & (y < H)
    else:
        y, column = _tokens(strip, j, CH, CW, AREA)
        inside = (j % AREA < area) & (y < H) & (column < W)
    token = y * W + column
    squares = tl.zeros([CELLS * AREA], tl.float32)
    score = tl.zeros([CELLS * AREA], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        centre = rows_of(x, token * C, inside, c, C)
        squares += tl.sum(centre * centre, axis=1)
        if RULE == "flattest" or RULE == "released":
            score += tl.sum(tl.abs(_laplacian(x, token, y, column, inside, centre, c, H, W, C)), axis=1)
        if RULE == "similar":
            # Summed here, as the order of torch's sum depends on the number of rows.
            block = tl.arange(0, BLOCKS)
            block_sums = rows_of(sums, (row * tl.cdiv(N, 64) + block) * C, block < tl.cdiv(N, 64), c, C)
            total = tl.sum(block_sums, axis=0)
            score += tl.sum(centre * total[None, :], axis=1)
    norm = tl.sqrt_rn(squares)
    inverse = tl.div_rn(tl.full([CELLS * AREA], 1.0, tl.float32), tl.where(norm < 1e-12, 1e-12, norm))
    tl.store(table(tables, INVERSE, row, N) + token, inverse.to(tl.int32, bitcast=True), mask=inside)
    tl.store(table(tables, CHAIN, row, N) + token, tl.full([CELLS * AREA], -1, tl.int32), mask=inside)

    cell, in_cell = tl.arange(0, CELLS), tl.arange(0, AREA)
    complete = (cell < cell_columns) & (strip * CH + CH <= H)
    if RULE == "drawn":
        key = row_key(keys, classes, seed, site, row)
        position = (random_bits(key, strip * cell_columns + cell) % area).to(tl.int32)
    elif RULE == "first":
        position = cell * 0
    elif RULE == "given":
        target = tl.load(destinations + row * stride + strip * cell_columns + cell, mask=complete, other=0).to(tl.int32)
        position = (target // W - strip * CH) * CW + target % W - cell * CW
    else:
        if RULE == "similar":
            score = -(beta * (score * inverse) + alpha * _noise(row_key(keys, classes, seed, site, row), token, N))
        # NaN counts as the lowest, as in torch's argmin and argmax.
        score = tl.reshape(tl.where(score == score, score, float("-inf")), [CELLS, AREA])
        score = tl.where((in_cell < area)[None, :], score, float("inf"))
        position = tl.min(tl.where(score == tl.min(score, axis=1)[:, None], in_cell[None, :], AREA), axis=1)
    position = tl.where(complete, position, -1)

    # The sources of each cell; behind them the last columns, if they make no cells. The last rows may make none either.
    y, column = _tokens(strip, j, CH, CW, AREA)
    inside = (j % AREA < area) & (y < H) & (column < W)
    chosen = tl.reshape(tl.broadcast_to(position[:, None], [CELLS, AREA]), [CELLS * AREA])
    leftover_columns: tl.constexpr = W - cell_columns * CW
    leftover = cell_columns * (area - 1) + (y - strip * CH) * leftover_columns + column - cell_columns * CW
    leftover = tl.where(strip * CH + CH <= H, leftover, (y - strip * CH) * W + column)
    slot = tl.where(chosen >= 0, (area - 1) * (j // AREA) + j % AREA - (chosen < j % AREA).to(tl.int32), leftover)
    slot += strip * (cell_columns * (area - 1) + leftover_columns * CH)
    tl.store(table(tables, SOURCE, row, N) + slot, y * W + column, mask=inside & (chosen != j % AREA))

    # Ascending token ids: by row inside the strip, then by cell.
    height = tl.where(complete, position // CW, CH) * CELLS + cell
    rank = tl.sum((height[None, :] < height[:, None]).to(tl.int32), axis=1) + strip * cell_columns
    destination = (strip * CH + position // CW) * W + cell * CW + position % CW
    tl.store(table(tables, DESTINATION, row, N) + rank, destination, mask=complete)
    tl.store(table(tables, KEY, row, N) + destination, tl.zeros([CELLS], tl.int32), mask=complete)


@triton.jit
def cell_keys(x, tables, SIGN: tl.constexpr, AGGREGATE: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
              CH: tl.constexpr, CW: tl.constexpr, C: tl.constexpr, CELLS: tl.constexpr, AREA: tl.constexpr,
              BLOCK_C: tl.constexpr):  # fmt: skip
    """A strip of complete cells: `SIGN` times the `max`, `sum` or `mean` of their Laplacian scores, as ordered keys."""
    strip, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    N: tl.constexpr = H * W
    cell_columns: tl.constexpr = W // CW
    x += row * N * C
    j = tl.arange(0, CELLS * AREA)
    y, column = _tokens(strip, j, CH, CW, AREA)
    inside = (j % AREA < CH * CW) & (column < cell_columns * CW)
    token = y * W + column
    score = tl.zeros([CELLS * AREA], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        centre = rows_of(x, token * C, inside, c, C)
        score += tl.sum(tl.abs(_laplacian(x, token, y, column, inside, centre, c, H, W, C)), axis=1)
    score = tl.reshape(score, [CELLS, AREA])
    has_nan = tl.max((score != score).to(tl.int32), axis=1) > 0
    cell_score = tl.max(score, axis=1) if AGGREGATE == "max" else tl.sum(score, axis=1)
    # Scores have no upper bound: as a key the bits of a non-negative float32, and NaN as infinity.
    key = tl.where(has_nan, 0x7F800001, cell_score.to(tl.int32, bitcast=True))
    key = key + 1 if SIGN > 0 else 0x7F800002 - key
    cell = tl.arange(0, CELLS)
    tl.store(table(tables, KEY, row, N) + strip * cell_columns + cell, key, mask=cell < cell_columns)


@triton.jit
def unit_sums(x, sums, N: tl.constexpr, C: tl.constexpr, TOKENS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum of the tokens of a block, each scaled to unit length. `sums` is `(b, blocks, c)`, float32."""
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x += row * N * C
    token = block * TOKENS + tl.arange(0, TOKENS)
    inside = token < N
    squares = tl.zeros([TOKENS], tl.float32)
    for start in range(0, C, BLOCK_C):
        tile = rows_of(x, token * C, inside, start + tl.arange(0, BLOCK_C), C)
        squares += tl.sum(tile * tile, axis=1)
    norm = tl.sqrt_rn(squares)
    norm = tl.where(norm < 1e-12, 1e-12, norm)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        tile = rows_of(x, token * C, inside, c, C)
        sums_of_block = sums + (row * tl.num_programs(0) + block) * C + c
        tl.store(sums_of_block, tl.sum(tile / norm[:, None], axis=0), mask=c < C)
