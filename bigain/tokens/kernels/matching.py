"""Kernels that decide: the most similar pairs, the tokens or cells to remove, and where each token goes."""

from __future__ import annotations

import triton
import triton.language as tl

from bigain.tokens.kernels.tables import (
    CHAIN,
    CHOICE,
    DESTINATION,
    FAR,
    INTO,
    INVERSE,
    KEY,
    ORDER,
    RESTORE,
    SOURCE,
    highest,
    ordered,
    table,
)


@triton.jit
def _factor(x, row, channel, mask, WIDEN: tl.constexpr):
    """A factor of a product. The interpreter cannot multiply bfloat16."""
    tile = tl.load(x + row + channel, mask=mask, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def match(x, tables, AGAIN: tl.constexpr, NAN_KEY: tl.constexpr, N: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
          ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
          WIDEN: tl.constexpr):  # fmt: skip
    """The first destination with the highest cosine to each source, and that cosine as an ordered positive integer.

    With AGAIN the removed tokens look for the most similar kept one instead, and read back its row.
    """
    row = tl.program_id(1).to(tl.int64)
    x += row * N * C
    sources, destinations = table(tables, SOURCE, row, N), table(tables, DESTINATION, row, N)
    if AGAIN:
        destinations = table(tables, ORDER, row, N)
        sources = destinations + M
    inverses = table(tables, INVERSE, row, N)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = place < N - M
    token = tl.load(sources + place, mask=mine, other=0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    at = tl.zeros([ROWS], tl.int32)
    broken = tl.full([COLUMNS], FAR, tl.int32)
    for start in range(0, M, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < M
        id = tl.load(destinations + column, mask=there, other=0)
        scale = tl.load(inverses + id, mask=there, other=0).to(tl.float32, bitcast=True)
        whole = scale > 0.0  # not so where a token holds NaN or infinity
        broken = tl.minimum(broken, tl.where(there & (whole == 0), column, FAR))
        dots = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, C, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            left = _factor(x, token[:, None] * C, c[None, :], mine[:, None] & (c < C)[None, :], WIDEN)
            right = _factor(x, id[None, :] * C, c[:, None], there[None, :] & (c < C)[:, None], WIDEN)
            dots = tl.dot(left, right, dots, input_precision=PRECISION)
        # Columns that are not there get minus infinity by the same multiply-add.
        cosine = dots * tl.where(whole, scale, 0.0)[None, :] + tl.where(whole, 0.0, float("-inf"))[None, :]
        top = tl.max(cosine, axis=1)
        first_top = tl.min(tl.where(cosine == top[:, None], column[None, :], FAR), axis=1)
        better = top > best
        best, at = tl.where(better, top, best), tl.where(better, first_top, at)
    # A maximum over anything with NaN is NaN, found at the first of them.
    hole = tl.min(broken, axis=0)
    scale = tl.load(inverses + token, mask=mine, other=0).to(tl.float32, bitcast=True)
    sound = scale > 0.0
    at = tl.where(sound, tl.where(hole < M, hole, at), 0)
    if AGAIN:
        # The rows of kept tokens are known since `select`.
        tl.store(table(tables, RESTORE, row, N) + token, at, mask=mine)
    else:
        cosine = tl.minimum(tl.maximum(best * scale, -1.5), 1.5)
        key = tl.where(sound & (hole >= M), ordered(cosine), NAN_KEY)
        tl.store(table(tables, KEY, row, N) + token, key, mask=mine)
        target = tl.load(destinations + at, mask=mine, other=0)
        tl.store(table(tables, CHOICE, row, N) + token, target, mask=mine)


@triton.jit(do_not_specialize=["removed"])
def select(tables, removed, N: tl.constexpr, TOKENS: tl.constexpr):
    """Remove the tokens with the highest keys, the first of equal ones."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    here = token < N
    goes = highest(tl.load(table(tables, KEY, row, N) + token, mask=here, other=0), removed)
    rank = tl.cumsum(1 - goes.to(tl.int32), axis=0) - 1
    gone = token - rank - 1  # of the removed, a rank among their own kind
    tl.store(table(tables, ORDER, row, N) + tl.where(goes, N - removed + gone, rank), token, mask=here)
    tl.store(table(tables, RESTORE, row, N) + token, rank, mask=here & (goes == 0))
    target = tl.load(table(tables, CHOICE, row, N) + token, mask=here & goes, other=0)
    tl.store(table(tables, INTO, row, N) + gone, target, mask=here & goes)


@triton.jit(do_not_specialize=["blocks"])
def select_blocks(tables, blocks, H: tl.constexpr, W: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
                  CELLS: tl.constexpr, TOKENS: tl.constexpr):  # fmt: skip
    """Replace each of the cells with the highest keys, the first of equal ones, by its first token: the whole plan."""
    row = tl.program_id(0).to(tl.int64)
    N: tl.constexpr = H * W
    area: tl.constexpr = CH * CW
    across: tl.constexpr = W // CW
    cell = tl.arange(0, CELLS)
    key = tl.load(table(tables, KEY, row, N) + cell, mask=cell < across * (H // CH), other=0)
    merged = highest(key, blocks).to(tl.int32)
    token = tl.arange(0, TOKENS)
    y, column = token // W, token % W
    in_cell = (y < H // CH * CH) & (column < across * CW)
    its_cell = tl.where(in_cell, (y // CH) * across + column // CW, 0)
    first = tl.where(in_cell, (y - y % CH) * W + column - column % CW, token)
    place = (y % CH) * CW + column % CW
    joins = in_cell & (tl.gather(merged, its_cell, 0) > 0)
    goes = joins & (place > 0)
    rank = tl.cumsum(1 - goes.to(tl.int32), axis=0) - 1
    here, kept = token < N, N - blocks * (area - 1)
    gone = token - rank - 1
    tl.store(table(tables, ORDER, row, N) + tl.where(goes, kept + gone, rank), token, mask=here)
    leader = tl.where(goes, first, token)
    tl.store(table(tables, RESTORE, row, N) + token, tl.gather(rank, leader, 0), mask=here)
    following = tl.where(column % CW + 1 < CW, token + 1, token + W - column % CW)
    following = tl.where(joins & (place + 1 < area), following, -1)
    tl.store(table(tables, CHAIN, row, N) + token, following, mask=here)


@triton.jit(do_not_specialize=["kept"])
def link(tables, kept, N: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """Hang each removed token behind the one before it with the same target, or behind the target: chains ascend."""
    row = tl.program_id(1).to(tl.int64)
    order = table(tables, ORDER, row, N) + kept
    into = table(tables, INTO, row, N)
    restore = table(tables, RESTORE, row, N)
    begin, removed = tl.program_id(0) * BLOCK, N - kept
    i = begin + tl.arange(0, BLOCK)
    mine = i < removed
    target = tl.load(into + i, mask=mine, other=-1)
    lane = tl.arange(0, SPAN)
    latest = tl.full([BLOCK, SPAN], -1, tl.int32)
    other = tl.load(into + lane, mask=lane < begin, other=-2)
    for start in range(0, begin, SPAN):
        ahead = start + SPAN + lane
        following = tl.load(into + ahead, mask=ahead < begin, other=-2)
        latest = tl.where(other[None, :] == target[:, None], start, latest)
        other = following
    far = tl.max(tl.where(latest < 0, -1, latest + lane[None, :]), axis=1)
    j = begin + tl.arange(0, BLOCK)
    other = tl.load(into + j, mask=j < removed, other=-2)
    near = tl.where((other[None, :] == target[:, None]) & (j[None, :] < i[:, None]), j[None, :], -1)
    previous = tl.maximum(far, tl.max(near, axis=1))
    linked = mine & (previous >= 0)
    token = tl.load(order + i, mask=mine, other=0)
    behind = tl.where(linked, tl.load(order + previous, mask=linked, other=0), target)
    tl.store(table(tables, CHAIN, row, N) + behind, token, mask=mine)
    # The rows of kept tokens are known since `select`.
    tl.store(restore + token, tl.load(restore + target, mask=mine, other=0), mask=mine)
