"""Downsampling and selection of keys, against windows cut out of maps in double precision."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from loops import tokens

from bigain.tokens.downsampling import (
    downsample_average,
    downsample_nearest,
    downsampled_grid,
    frequency_selection,
    interextrapolate,
    nearest_indices,
    nearest_selected,
    nearest_tokens,
    selected_tokens,
)
from bigain.tokens.grid import Grid

CASES = [
    pytest.param(Grid(h, w), factor, id=f"{h}x{w}-{factor}")
    for h, w, factor in [
        (4, 4, 2), (4, 6, 2), (6, 4, 3), (5, 4, 2), (5, 7, 2), (7, 5, 3), (7, 4, 4), (11, 9, 4), (9, 3, 3), (2, 2, 2)
    ]
]  # fmt: skip


def exact_indices(n_in, n_out):
    return [math.floor((i + Fraction(1, 2)) * n_in / n_out) for i in range(n_out)]


def blend(x, grid, factor, alpha, aligned):
    """`alpha * nearest + (1 - alpha) * average`; alpha a number or `(b, 1, 1)`."""
    maps, small = x.double().unflatten(1, grid), [side // factor for side in grid]
    places = [exact_indices(n_in, n_out) for n_in, n_out in zip(grid, small, strict=True)]
    h, w = (n_in // n_out for n_in, n_out in zip(grid, small, strict=True))
    # Around the nearest token; of even size, one more before it than behind.
    ys, xs = (
        [place - size // 2 if aligned else i * size for i, place in enumerate(row)]
        for row, size in zip(places, (h, w), strict=True)
    )
    assert min(ys + xs) >= 0
    mean = torch.stack([maps[:, y : y + h, x : x + w].mean((1, 2)) for y in ys for x in xs], 1)
    return alpha * maps[:, places[0]][:, :, places[1]].flatten(1, 2) + (1 - alpha) * mean


def close(actual, expected, dtype):
    """Within rounding of the dtype, which may happen twice."""
    assert actual.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize(
    ("grid", "factor"), [(Grid(8, 8), f) for f in (1, 0, -2, 9)] + [(Grid(3, 8), 4), (Grid(8, 3), 4)]
)
def test_impossible_factors_and_other_grids_are_refused(grid, factor):
    for call in (downsample_nearest, downsample_average, lambda *args: interextrapolate(*args, 0.9)):
        for device in ("cpu", "meta"):
            with pytest.raises(ValueError, match=f"factor of {factor} per side does not fit a {grid.h}x{grid.w}"):
                call(torch.zeros(1, grid.n, 2, device=device), grid, factor)
        for shape in ((2, 14, 4), (2, 16, 4), (15, 4), (2, 4, 15)):
            with pytest.raises(ValueError, match="3x5"):
                call(torch.zeros(shape), Grid(3, 5), 2)


@pytest.mark.parametrize("n_in", [2, 3, 5, 7, 16, 31, 32, 63, 64, 96, 128])
def test_nearest_indices(n_in):
    """floor((i + 1/2) * n_in / n_out) in exact arithmetic, for every factor that fits."""
    for factor in range(2, min(n_in, 12) + 1):
        assert nearest_indices(n_in, n_in // factor).tolist() == exact_indices(n_in, n_in // factor)


@pytest.mark.parametrize(("grid", "factor"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nearest_average_and_blends(grid, factor, dtype):
    """Selected tokens are copied bit by bit; means and blends are right to the dtype, also outside [0, 1]."""
    x, alphas = tokens(3, grid.n, 3, dtype=dtype), [0.8, 1.25, -0.5]
    nearest = downsample_nearest(x, grid, factor)
    assert nearest.dtype == dtype
    assert torch.equal(nearest.double(), blend(x, grid, factor, 1, False))
    for aligned in (False, True):
        close(downsample_average(x, grid, factor, aligned), blend(x, grid, factor, 0, aligned), dtype)
        for alpha in (0.0, 1.0, *alphas, 3):
            result = interextrapolate(x, grid, factor, alpha, aligned)
            close(result, blend(x, grid, factor, alpha, aligned), dtype)
        # A classification batch mixes timesteps, so each row has its own weight.
        per_row = torch.tensor(alphas)
        result = interextrapolate(x, grid, factor, per_row, aligned)
        close(result, blend(x, grid, factor, per_row.double().view(3, 1, 1), aligned), dtype)
    drifts = not torch.equal(downsample_average(x, grid, factor), downsample_average(x, grid, factor, True))
    assert drifts or (grid, factor) != (Grid(11, 9), 4)


@pytest.mark.parametrize("keep", ["high", "low"])
@pytest.mark.parametrize("count", [1, 4, 14, 15])
def test_selection_matches_loop(keep, count):
    """Each row keeps its own, in their original order; ties, in the second row, go to the lower index."""
    score = torch.stack([tokens(15, seed=11), tokens(15, seed=12).round()])
    sign = -1 if keep == "high" else 1
    expected = [sorted(sorted(range(15), key=lambda t, row=row: (sign * row[t], t))[:count]) for row in score.tolist()]
    assert selected_tokens(score, count, keep).tolist() == expected
    x = tokens(2, 15, 3).half()
    assert torch.equal(frequency_selection(x, score, count, keep), torch.stack([x[0, expected[0]], x[1, expected[1]]]))


@pytest.mark.parametrize(("grid", "factor"), [(Grid(8, 8), 2), (Grid(9, 12), 3), (Grid(7, 10), 2)])
def test_the_way_back_reads_the_nearest_key(grid, factor):
    """Against torch's own nearest-exact upsampling."""
    small = downsampled_grid(grid, factor)
    keys = torch.arange(small.n, dtype=torch.float32).view(1, 1, *small)
    expected = F.interpolate(keys, size=tuple(grid), mode="nearest-exact").flatten().long()
    assert torch.equal(nearest_tokens(small, grid), expected)


def test_places_read_the_selected_token_that_lies_nearest():
    grid = Grid(5, 6)
    selected = torch.tensor([[0, 8, 29], [3, 12, 27]])
    nearest = nearest_selected(selected, grid)
    for row, ids in enumerate(selected.tolist()):
        for place in range(grid.n):
            distances = [(place // 6 - i // 6) ** 2 + (place % 6 - i % 6) ** 2 for i in ids]
            assert nearest[row, place] == distances.index(min(distances))
