"""Kernels that move tokens: merge, unmerge, downsample."""

from __future__ import annotations

import triton
import triton.language as tl

from bigain.tokens.kernels.tables import CHAIN, ORDER, RESTORE, rows_of, table


@triton.jit(do_not_specialize=["kept", "first"])
def merge(x, tables, out, kept, first, MEAN: tl.constexpr, N: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
          BLOCK_C: tl.constexpr):  # fmt: skip
    """Copy `kept` tokens of the list ORDER, or take the mean of each and its chain, in ascending order, in float32."""
    row = tl.program_id(1).to(tl.int64)
    x += row * N * C
    index, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_C)
    inside = index < kept
    token = tl.load(table(tables, ORDER, row, N) + first + index, mask=inside, other=0)
    mask = inside[:, None] & (c < C)[None, :]
    out += row * kept * C + index[:, None] * C + c[None, :]
    if MEAN:
        chain = table(tables, CHAIN, row, N)
        total = rows_of(x, token * C, inside, c, C)
        count = tl.full([ROWS], 1.0, tl.float32)
        member = tl.load(chain + token, mask=inside, other=-1)
        while tl.max(member, axis=0) >= 0:
            present = member >= 0
            following = tl.load(chain + member, mask=present, other=-1)
            total += rows_of(x, member * C, present, c, C)
            count += present.to(tl.float32)
            member = following
        total = tl.div_rn(total, tl.broadcast_to(count[:, None], [ROWS, BLOCK_C]))
        tl.store(out, total.to(out.dtype.element_ty), mask=mask)
    else:
        tl.store(out, tl.load(x + token[:, None] * C + c[None, :], mask=mask), mask=mask)


@triton.jit(do_not_specialize=["kept"])
def unmerge(y, tables, out, kept, N: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Copy to each token the merged row that it reads back."""
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = token < N
    source = tl.load(table(tables, RESTORE, row, N) + token, mask=inside, other=0)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (c < C)[None, :]
        tile = tl.load(y + row * kept * C + source[:, None] * C + c[None, :], mask=mask)
        tl.store(out + row * N * C + token[:, None] * C + c[None, :], tile, mask=mask)


@triton.jit(do_not_specialize=["alpha"])
def downsample(x, out, alphas, alpha, KIND: tl.constexpr, H_IN: tl.constexpr, W_IN: tl.constexpr, H: tl.constexpr,
               W: tl.constexpr, C: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr,
               TOKENS: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """Tokens on an `H x W` grid: `nearest`, `average` over windows, or a `blend` with `alpha` or one alpha per row."""
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = token < H * W
    y, column = token // W, token % W
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += row * H_IN * W_IN * C
    if KIND != "average":
        centre = ((2 * y + 1) * H_IN // (2 * H)) * W_IN + (2 * column + 1) * W_IN // (2 * W)
        result = rows_of(x, centre * C, inside, c, C)
    if KIND != "nearest":
        total = tl.zeros([TOKENS, BLOCK_C], tl.float32)
        for dy in tl.static_range(WINDOW_H):
            for dx in tl.static_range(WINDOW_W):
                total += rows_of(x, ((y * WINDOW_H + dy) * W_IN + column * WINDOW_W + dx) * C, inside, c, C)
        # Rounded before blending, as in torch.
        average = (total / (WINDOW_H * WINDOW_W)).to(out.dtype.element_ty).to(tl.float32)
        if KIND == "blend":
            weight = alpha if alphas is None else tl.load(alphas + row)
            result = weight * result + (1 - weight) * average
        else:
            result = average
    mask = inside[:, None] & (c < C)[None, :]
    tl.store(out + (row * H * W + token[:, None]) * C + c[None, :], result.to(out.dtype.element_ty), mask=mask)
