"""The integer tables of a plan, which all kernels share, and functions that several kernels call."""

from __future__ import annotations

import triton
import triton.language as tl

# Rows of `tables`, `(b, 9, n)`, int32. The first three are the plan.
CHAIN = tl.constexpr(0)  # token -> the removed token that follows it in the sum of its merged row, or -1
RESTORE = tl.constexpr(1)  # token -> merged row that it reads back
ORDER = tl.constexpr(2)  # the kept tokens, then the removed ones, both ascending
KEY = tl.constexpr(3)  # token -> priority of removing it, in 1..2**31 - 1; 0: never. Or cell -> priority of merging it
CHOICE = tl.constexpr(4)  # source -> most similar destination
INTO = tl.constexpr(5)  # rank among the removed tokens -> token it is merged into
SOURCE = tl.constexpr(6)  # list of sources
DESTINATION = tl.constexpr(7)  # list of destinations, ascending
INVERSE = tl.constexpr(8)  # token -> bits of 1 / norm, a float32; 0 or NaN if the token holds infinity or NaN
TABLES = tl.constexpr(9)

FAR = tl.constexpr(2**30)  # above every position


@triton.jit
def table(tables, index: tl.constexpr, row, N: tl.constexpr):
    """Pointer to one table of one sequence."""
    return tables + (row * TABLES + index) * N


@triton.jit
def rows_of(x, first, inside, c, C: tl.constexpr):
    """Channels `c` of the rows that begin at `first`, in float32; zeros outside."""
    mask = inside[:, None] & (c < C)[None, :]
    return tl.load(x + first[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def ordered(value):
    """Positive integers in the order of float32 numbers within (-2, 2)."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(value == 0.0, 0, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)) + FAR


@triton.jit
def highest(key, count):
    """Mark the `count` highest keys, the first of equal ones; keys are in 0..2**31 - 1, and 0 is never marked."""
    # The largest number that `count` keys reach, two bits at a time; the three counts of a step share one sum.
    threshold = 0
    for i in tl.static_range(16):
        step = 1 << (30 - 2 * i)
        reached = (key >= (threshold | step)).to(tl.int64)
        if i > 0:
            reached += (key >= (threshold | 2 * step)).to(tl.int64) << 20
            reached += (key >= (threshold | 3 * step)).to(tl.int64) << 40
        counts = tl.sum(reached, axis=0)
        low, middle, high = counts & 0xFFFFF, (counts >> 20) & 0xFFFFF, counts >> 40
        digit = (low >= count).to(tl.int32) + (middle >= count).to(tl.int32) + (high >= count).to(tl.int32)
        threshold += digit * step
    above, equal = key > threshold, key == threshold
    remaining = count - tl.sum(above.to(tl.int32), axis=0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= remaining))


@triton.jit
def scrambled(x):
    """SplitMix64, as `bigain.tokens.randomness`. uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def mixed(key, other):
    """Fold an integer into a key, as `randomness.mix`. uint64."""
    return scrambled((key ^ other.to(tl.uint64)) + 0x9E3779B97F4A7C15)


@triton.jit
def row_key(keys, classes, seed, site, row):
    """Key of random draws in a row at a site: `mix(keys, seed, site)`, and then `mix(that, classes)`. uint64."""
    key = mixed(mixed(scrambled(tl.load(keys + row).to(tl.uint64) + 0x9E3779B97F4A7C15), seed), site)
    if classes is not None:
        key = mixed(scrambled(key + 0x9E3779B97F4A7C15), tl.load(classes + row))
    return key


@triton.jit
def random_bits(key, number):
    """Draw number `number`, from 0, of a key: 63 bits. uint64."""
    return scrambled(key + (number + 1).to(tl.uint64) * 0x9E3779B97F4A7C15) >> 1
