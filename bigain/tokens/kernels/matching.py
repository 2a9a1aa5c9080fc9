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
def _factor(x, row, inside_row, channel, inside_channel, WIDEN: tl.constexpr):
    """A factor of a product. The interpreter cannot multiply bfloat16."""
    tile = tl.load(x + row + channel, mask=inside_row & inside_channel, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def match(x, tables, batch, n, m, AGAIN: tl.constexpr, NAN_KEY: tl.constexpr, C: tl.constexpr,
          C1: tl.constexpr, C2: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
          PRECISION: tl.constexpr, WIDEN: tl.constexpr, LANES: tl.constexpr = False):  # fmt: skip
    """The first destination with the highest cosine to each source, and that cosine as an ordered positive integer.

    With AGAIN the removed tokens look for the most similar kept one instead, and read back its row. With CHANNELS of 0
    the sources stay in shared memory, in two pieces of C1 and C2 channels, and destinations stream past; otherwise both
    are read CHANNELS at a time.
    """
    row = tl.program_id(1).to(tl.int64)
    x += row * n * C
    sources, destinations = table(tables, SOURCE, batch, row, n), table(tables, DESTINATION, batch, row, n)
    if AGAIN:
        destinations = table(tables, ORDER, batch, row, n)
        sources = destinations + m
    inverses = table(tables, INVERSE, batch, row, n)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = place < n - m
    token = tl.load(sources + place, mask=mine, other=0)
    mine_rows, own = mine[:, None], token[:, None] * C
    c1, c2 = tl.arange(0, C1), C1 + tl.arange(0, C2)
    if CHANNELS == 0:
        a1 = _factor(x, own, mine_rows, c1[None, :], (c1 < C)[None, :], WIDEN)
        if C1 < C:
            a2 = _factor(x, own, mine_rows, c2[None, :], (c2 < C)[None, :], WIDEN)
    best = tl.full([ROWS, COLUMNS] if LANES else [ROWS], float("-inf"), tl.float32)
    at = tl.zeros([ROWS, COLUMNS] if LANES else [ROWS], tl.int32)
    broken = tl.full([COLUMNS], FAR, tl.int32)
    for start in range(0, m, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < m
        id = tl.load(destinations + column, mask=there, other=0)
        scale = tl.load(inverses + id, mask=there, other=0).to(tl.float32, bitcast=True)
        whole = scale > 0.0  # not so where a token holds NaN or infinity
        broken = tl.minimum(broken, tl.where(whole, FAR, tl.where(there, column, FAR)))
        others, there_columns = id[None, :] * C, there[None, :]
        dots = tl.zeros([ROWS, COLUMNS], tl.float32)
        if CHANNELS == 0:
            b1 = _factor(x, others, there_columns, c1[:, None], (c1 < C)[:, None], WIDEN)
            dots = tl.dot(a1, b1, dots, input_precision=PRECISION)
            if C1 < C:
                b2 = _factor(x, others, there_columns, c2[:, None], (c2 < C)[:, None], WIDEN)
                dots = tl.dot(a2, b2, dots, input_precision=PRECISION)
        else:
            for first in range(0, C, CHANNELS):
                c = first + tl.arange(0, CHANNELS)
                left = _factor(x, own, mine_rows, c[None, :], (c < C)[None, :], WIDEN)
                right = _factor(x, others, there_columns, c[:, None], (c < C)[:, None], WIDEN)
                dots = tl.dot(left, right, dots, input_precision=PRECISION)
        # Columns that are not there get minus infinity by the same multiply-add.
        cosine = dots * tl.where(whole, scale, 0.0)[None, :] + tl.where(whole, 0.0, float("-inf"))[None, :]
        if LANES:
            better = cosine > best
            best, at = tl.where(better, cosine, best), tl.where(better, start, at)
        else:
            top = tl.max(cosine, axis=1)
            first_top = tl.min(tl.where(cosine == top[:, None], column[None, :], FAR), axis=1)
            better = top > best
            best, at = tl.where(better, top, best), tl.where(better, first_top, at)
    if LANES:
        top = tl.max(best, axis=1)
        at = tl.min(tl.where(best == top[:, None], at + tl.arange(0, COLUMNS)[None, :], FAR), axis=1)
        best = top
    # A maximum over anything with NaN is NaN, found at the first of them.
    hole = tl.min(broken, axis=0)
    scale = tl.load(inverses + token, mask=mine, other=0).to(tl.float32, bitcast=True)
    sound = scale > 0.0
    at = tl.where(sound, tl.where(hole < m, hole, at), 0)
    target = tl.load(destinations + at, mask=mine, other=0)
    if AGAIN:
        restore = table(tables, RESTORE, batch, row, n)
        # The rows of kept tokens are known since `select`.
        tl.store(restore + token, at, mask=mine)
    else:
        cosine = tl.minimum(tl.maximum(best * scale, -1.5), 1.5)
        key = tl.where(sound & (hole >= m), ordered(cosine), NAN_KEY)
        tl.store(table(tables, KEY, batch, row, n) + token, key, mask=mine)
        tl.store(table(tables, CHOICE, batch, row, n) + token, target, mask=mine)


@triton.jit(do_not_specialize=["removed"])
def select(tables, batch, n, removed, TOKENS: tl.constexpr):
    """Remove the tokens with the highest keys, the first of equal ones."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    here = token < n
    goes = highest(tl.load(table(tables, KEY, batch, row, n) + token, mask=here, other=0), removed)
    rank = tl.cumsum(1 - goes.to(tl.int32), axis=0) - 1
    gone = token - rank - 1  # of the removed, a rank among their own kind
    tl.store(table(tables, ORDER, batch, row, n) + tl.where(goes, n - removed + gone, rank), token, mask=here)
    tl.store(table(tables, RESTORE, batch, row, n) + token, rank, mask=here & (goes == 0))
    target = tl.load(table(tables, CHOICE, batch, row, n) + token, mask=here & goes, other=0)
    tl.store(table(tables, INTO, batch, row, n) + gone, target, mask=here & goes)


@triton.jit(do_not_specialize=["blocks"])
def select_blocks(tables, batch, h, w, blocks, CH: tl.constexpr, CW: tl.constexpr, CELLS: tl.constexpr,
                  TOKENS: tl.constexpr):  # fmt: skip
    """Replace each of the cells with the highest keys, the first of equal ones, by its first token: the whole plan."""
    row = tl.program_id(0).to(tl.int64)
    n, across = h * w, w // CW
    area: tl.constexpr = CH * CW
    cell = tl.arange(0, CELLS)
    key = tl.load(table(tables, KEY, batch, row, n) + cell, mask=cell < across * (h // CH), other=0)
    merged = highest(key, blocks).to(tl.int32)
    token = tl.arange(0, TOKENS)
    y, column = token // w, token % w
    in_cell = (y < h // CH * CH) & (column < across * CW)
    its_cell = tl.where(in_cell, (y // CH) * across + column // CW, 0)
    first = tl.where(in_cell, (y - y % CH) * w + column - column % CW, token)
    place = (y % CH) * CW + column % CW
    joins = in_cell & (tl.gather(merged, its_cell, 0) > 0)
    goes = joins & (place > 0)
    rank = tl.cumsum(1 - goes.to(tl.int32), axis=0) - 1
    here, kept = token < n, n - blocks * (area - 1)
    gone = token - rank - 1
    tl.store(table(tables, ORDER, batch, row, n) + tl.where(goes, kept + gone, rank), token, mask=here)
    leader = tl.where(goes, first, token)
    tl.store(table(tables, RESTORE, batch, row, n) + token, tl.gather(rank, leader, 0), mask=here)
    following = tl.where(column % CW + 1 < CW, token + 1, token + w - column % CW)
    following = tl.where(joins & (place + 1 < area), following, -1)
    tl.store(table(tables, CHAIN, batch, row, n) + token, following, mask=here)


@triton.jit(do_not_specialize=["kept"])
def link(tables, batch, n, kept, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """Hang each removed token behind the one before it with the same target, or behind the target: chains ascend."""
    row = tl.program_id(1).to(tl.int64)
    order = table(tables, ORDER, batch, row, n) + kept
    into = table(tables, INTO, batch, row, n)
    restore = table(tables, RESTORE, batch, row, n)
    begin, removed = tl.program_id(0) * BLOCK, n - kept
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
    tl.store(table(tables, CHAIN, batch, row, n) + behind, token, mask=mine)
    # The rows of kept tokens are known since `select`.
    tl.store(restore + token, tl.load(restore + target, mask=mine, other=0), mask=mine)
