"""Kernels that build plans: the most similar pairs, the tokens or cells to remove, and the row of each token."""

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
    """Load a factor of a product; with WIDEN in float32, as the interpreter cannot multiply bfloat16."""
    tile = tl.load(x + row + channel, mask=mask, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def match(x, tables, TO_KEPT: tl.constexpr, NAN_KEY: tl.constexpr, N: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
          ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
          WIDEN: tl.constexpr):  # fmt: skip
    """The first destination with the highest cosine to each source, and that cosine as an ordered positive integer.

    With TO_KEPT it is the kept token with the highest cosine to each removed one, which reads back its row.
    """
    row = tl.program_id(1).to(tl.int64)
    x += row * N * C
    sources, destinations = table(tables, SOURCE, row, N), table(tables, DESTINATION, row, N)
    if TO_KEPT:
        destinations = table(tables, ORDER, row, N)
        sources = destinations + M
    inverses = table(tables, INVERSE, row, N)
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    source_valid = index < N - M
    token = tl.load(sources + index, mask=source_valid, other=0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    choice = tl.zeros([ROWS], tl.int32)
    first_nonfinite = tl.full([COLUMNS], FAR, tl.int32)
    for start in range(0, M, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        column_valid = column < M
        destination = tl.load(destinations + column, mask=column_valid, other=0)
        scale = tl.load(inverses + destination, mask=column_valid, other=0).to(tl.float32, bitcast=True)
        is_finite = scale > 0.0  # false where a token holds NaN or infinity
        first_nonfinite = tl.minimum(first_nonfinite, tl.where(column_valid & (is_finite == 0), column, FAR))
        dots = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, C, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            left = _factor(x, token[:, None] * C, c[None, :], source_valid[:, None] & (c < C)[None, :], WIDEN)
            right = _factor(x, destination[None, :] * C, c[:, None], column_valid[None, :] & (c < C)[:, None], WIDEN)
            dots = tl.dot(left, right, dots, input_precision=PRECISION)
        # Masked columns get minus infinity by the same multiply-add.
        cosine = dots * tl.where(is_finite, scale, 0.0)[None, :] + tl.where(is_finite, 0.0, float("-inf"))[None, :]
        top = tl.max(cosine, axis=1)
        first_top = tl.min(tl.where(cosine == top[:, None], column[None, :], FAR), axis=1)
        better = top > best
        best, choice = tl.where(better, top, best), tl.where(better, first_top, choice)
    # As in torch, a maximum over values with NaN is NaN, at the first of them.
    nonfinite = tl.min(first_nonfinite, axis=0)
    scale = tl.load(inverses + token, mask=source_valid, other=0).to(tl.float32, bitcast=True)
    source_is_finite = scale > 0.0
    choice = tl.where(source_is_finite, tl.where(nonfinite < M, nonfinite, choice), 0)
    if TO_KEPT:
        # `select` has stored the rows of kept tokens.
        tl.store(table(tables, RESTORE, row, N) + token, choice, mask=source_valid)
    else:
        cosine = tl.minimum(tl.maximum(best * scale, -1.5), 1.5)
        key = tl.where(source_is_finite & (nonfinite >= M), ordered(cosine), NAN_KEY)
        tl.store(table(tables, KEY, row, N) + token, key, mask=source_valid)
        target = tl.load(destinations + choice, mask=source_valid, other=0)
        tl.store(table(tables, CHOICE, row, N) + token, target, mask=source_valid)


@triton.jit(do_not_specialize=["removed"])
def select(tables, removed, N: tl.constexpr, TOKENS: tl.constexpr):
    """Remove the tokens with the highest keys, the first of equal ones."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    valid = token < N
    is_removed = highest(tl.load(table(tables, KEY, row, N) + token, mask=valid, other=0), removed)
    rank = tl.cumsum(1 - is_removed.to(tl.int32), axis=0) - 1
    removed_rank = token - rank - 1  # rank among the removed tokens
    tl.store(table(tables, ORDER, row, N) + tl.where(is_removed, N - removed + removed_rank, rank), token, mask=valid)
    tl.store(table(tables, RESTORE, row, N) + token, rank, mask=valid & (is_removed == 0))
    target = tl.load(table(tables, CHOICE, row, N) + token, mask=valid & is_removed, other=0)
    tl.store(table(tables, INTO, row, N) + removed_rank, target, mask=valid & is_removed)


@triton.jit(do_not_specialize=["blocks"])
def select_blocks(tables, blocks, H: tl.constexpr, W: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr,
                  CELLS: tl.constexpr, TOKENS: tl.constexpr):  # fmt: skip
    """Replace each of the cells with the highest keys, the first of equal ones, by its first token: the whole plan."""
    row = tl.program_id(0).to(tl.int64)
    N: tl.constexpr = H * W
    area: tl.constexpr = CH * CW
    cell_columns: tl.constexpr = W // CW
    cell = tl.arange(0, CELLS)
    key = tl.load(table(tables, KEY, row, N) + cell, mask=cell < cell_columns * (H // CH), other=0)
    merged = highest(key, blocks).to(tl.int32)
    token = tl.arange(0, TOKENS)
    y, column = token // W, token % W
    in_cell = (y < H // CH * CH) & (column < cell_columns * CW)
    token_cell = tl.where(in_cell, (y // CH) * cell_columns + column // CW, 0)
    position = (y % CH) * CW + column % CW
    in_merged = in_cell & (tl.gather(merged, token_cell, 0) > 0)
    is_removed = in_merged & (position > 0)
    rank = tl.cumsum(1 - is_removed.to(tl.int32), axis=0) - 1
    valid, kept = token < N, N - blocks * (area - 1)
    removed_rank = token - rank - 1
    tl.store(table(tables, ORDER, row, N) + tl.where(is_removed, kept + removed_rank, rank), token, mask=valid)
    leader = tl.where(is_removed, (y - y % CH) * W + column - column % CW, token)
    tl.store(table(tables, RESTORE, row, N) + token, tl.gather(rank, leader, 0), mask=valid)
    successor = tl.where(column % CW + 1 < CW, token + 1, token + W - column % CW)
    successor = tl.where(in_merged & (position + 1 < area), successor, -1)
    tl.store(table(tables, CHAIN, row, N) + token, successor, mask=valid)


@triton.jit(do_not_specialize=["kept"])
def link(tables, kept, N: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """Link each removed token to the previous one with the same target, or to the target: chains ascend."""
    row = tl.program_id(1).to(tl.int64)
    order = table(tables, ORDER, row, N) + kept
    into = table(tables, INTO, row, N)
    restore = table(tables, RESTORE, row, N)
    begin, removed = tl.program_id(0) * BLOCK, N - kept
    i = begin + tl.arange(0, BLOCK)
    valid = i < removed
    target = tl.load(into + i, mask=valid, other=-1)
    lane = tl.arange(0, SPAN)
    latest = tl.full([BLOCK, SPAN], -1, tl.int32)
    targets = tl.load(into + lane, mask=lane < begin, other=-2)
    for start in range(0, begin, SPAN):
        next_lane = start + SPAN + lane
        next_targets = tl.load(into + next_lane, mask=next_lane < begin, other=-2)
        latest = tl.where(targets[None, :] == target[:, None], start, latest)
        targets = next_targets
    in_earlier_blocks = tl.max(tl.where(latest < 0, -1, latest + lane[None, :]), axis=1)
    j = begin + tl.arange(0, BLOCK)
    targets = tl.load(into + j, mask=j < removed, other=-2)
    in_this_block = tl.where((targets[None, :] == target[:, None]) & (j[None, :] < i[:, None]), j[None, :], -1)
    previous = tl.maximum(in_earlier_blocks, tl.max(in_this_block, axis=1))
    linked = valid & (previous >= 0)
    token = tl.load(order + i, mask=valid, other=0)
    predecessor = tl.where(linked, tl.load(order + previous, mask=linked, other=0), target)
    tl.store(table(tables, CHAIN, row, N) + predecessor, token, mask=valid)
    # `select` has stored the rows of kept tokens.
    tl.store(restore + token, tl.load(restore + target, mask=valid, other=0), mask=valid)
