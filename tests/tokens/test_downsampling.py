"""Downsampling and selection of keys, against loops over the output grid."""

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
every_case = pytest.mark.parametrize(("grid", "factor"), CASES)


def nearest_index(i, n_in, n_out):
    return math.floor((i + Fraction(1, 2)) * n_in / n_out)


def nearest_by_loop(rows, grid, factor):
    h, w = grid.h // factor, grid.w // factor
    return [
        rows[nearest_index(i, grid.h, h) * grid.w + nearest_index(j, grid.w, w)] for i in range(h) for j in range(w)
    ]


def average_by_loop(rows, grid, factor, first=lambda i, n_in, n_out: i * (n_in // n_out)):
    h, w = grid.h // factor, grid.w // factor
    means = []
    for y, x in ((first(i, grid.h, h), first(j, grid.w, w)) for i in range(h) for j in range(w)):
        assert min(y, x) >= 0
        window = [rows[(y + dy) * grid.w + x + dx] for dy in range(grid.h // h) for dx in range(grid.w // w)]
        means.append([sum(column) / len(window) for column in zip(*window, strict=True)])
    return means


def aligned_by_loop(rows, grid, factor):
    """Windows of the same size as without, around the nearest token: of even size, one more before it than behind."""
    return average_by_loop(rows, grid, factor, lambda i, n, m: nearest_index(i, n, m) - n // m // 2)


def blend_by_loop(rows, grid, factor, alpha, average_by_loop=average_by_loop):
    pairs = zip(nearest_by_loop(rows, grid, factor), average_by_loop(rows, grid, factor), strict=True)
    return [[alpha * a + (1 - alpha) * b for a, b in zip(near, mean, strict=True)] for near, mean in pairs]


def per_row(f, x, *args):
    return torch.tensor([f(rows, *args) for rows in x.double().tolist()], dtype=torch.float64)


def close(actual, expected, dtype=torch.float32):
    """Within rounding of the dtype, which may happen twice."""
    assert actual.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize(
    ("grid", "factor"), [(Grid(8, 8), f) for f in (1, 0, -2, 9)] + [(Grid(3, 8), 4), (Grid(8, 3), 4)]
)
def test_impossible_factors_are_refused(grid, factor):
    x = torch.zeros(1, grid.n, 2)
    for call in (
        lambda: downsampled_grid(grid, factor),
        lambda: downsample_nearest(x, grid, factor),
        lambda: downsample_average(x, grid, factor),
        lambda: interextrapolate(x, grid, factor, 0.9),
        lambda: downsample_nearest(x.to("meta"), grid, factor),
    ):
        with pytest.raises(ValueError, match=f"factor of {factor} per side does not fit a {grid.h}x{grid.w}"):
            call()


@pytest.mark.parametrize("shape", [(2, 14, 4), (2, 16, 4), (15, 4), (2, 4, 15)])
@pytest.mark.parametrize(
    "call",
    [downsample_nearest, downsample_average, lambda x, grid, factor: interextrapolate(x, grid, factor, 0.5)],
    ids=["nearest", "average", "interextrapolate"],
)
def test_wrong_grid_is_refused(shape, call):
    with pytest.raises(ValueError, match="3x5"):
        call(torch.zeros(shape), Grid(3, 5), 2)


@pytest.mark.parametrize("n_in", [2, 3, 5, 7, 16, 31, 32, 63, 64, 96, 128])
def test_nearest_indices(n_in):
    """floor((i + 1/2) * n_in / n_out) in exact arithmetic, for every factor that fits."""
    for factor in range(2, min(n_in, 12) + 1):
        n_out = n_in // factor
        indices = nearest_indices(n_in, n_out)
        assert indices.dtype == torch.int64
        assert indices.tolist() == [nearest_index(i, n_in, n_out) for i in range(n_out)]


@every_case
def test_nearest_matches_loop(grid, factor):
    x = tokens(3, grid.n, 3)
    assert torch.equal(downsample_nearest(x, grid, factor).double(), per_row(nearest_by_loop, x, grid, factor))


@every_case
def test_average_matches_loop(grid, factor):
    x = tokens(3, grid.n, 3)
    close(downsample_average(x, grid, factor), per_row(average_by_loop, x, grid, factor))


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_aligned_windows_match_loop(grid, factor, dtype):
    x, alphas = tokens(2, grid.n, 3, dtype=dtype), torch.tensor([0.8, 1.2])
    close(downsample_average(x, grid, factor, aligned=True), per_row(aligned_by_loop, x, grid, factor), dtype)
    blend = interextrapolate(x, grid, factor, alphas, aligned=True)
    for b, alpha in enumerate(alphas.tolist()):
        close(blend[b : b + 1], per_row(blend_by_loop, x[b : b + 1], grid, factor, alpha, aligned_by_loop), dtype)
    same = torch.equal(per_row(aligned_by_loop, x, grid, factor), per_row(average_by_loop, x, grid, factor))
    assert torch.equal(downsample_average(x, grid, factor, True), downsample_average(x, grid, factor)) == same
    assert same or grid.h % (grid.h // factor) or grid.w % (grid.w // factor)
    assert not (same and (grid, factor) == (Grid(11, 9), 4))


@every_case
@pytest.mark.parametrize("alpha", [0.9, 0.0, 1.0, 1.2, -0.5, 3])
def test_blend_matches_loop(grid, factor, alpha):
    x = tokens(3, grid.n, 3)
    close(interextrapolate(x, grid, factor, alpha), per_row(blend_by_loop, x, grid, factor, alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_alpha_per_row(dtype):
    """A classification batch mixes timesteps, so each row has its own weight, also outside [0, 1]."""
    grid, alpha = Grid(7, 5), [0.8, 1.25, -0.5]
    x = tokens(3, grid.n, 4, seed=2)
    actual = interextrapolate(x, grid, 2, torch.tensor(alpha, dtype=dtype))
    rounded = torch.tensor(alpha, dtype=dtype).tolist()
    for b in range(3):
        close(actual[b : b + 1], per_row(blend_by_loop, x[b : b + 1], grid, 2, rounded[b]))
        torch.testing.assert_close(interextrapolate(x[b : b + 1], grid, 2, rounded[b]), actual[b : b + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype):
    """Selected tokens are copied bit by bit, means and blends are right to the dtype."""
    grid, alpha = Grid(6, 8), 1.2
    x = tokens(3, grid.n, 4, seed=5, dtype=dtype)
    near = downsample_nearest(x, grid, 2)
    assert near.dtype == dtype
    assert torch.equal(near.double(), per_row(nearest_by_loop, x, grid, 2))
    close(downsample_average(x, grid, 2), per_row(average_by_loop, x, grid, 2), dtype)
    close(interextrapolate(x, grid, 2, alpha), per_row(blend_by_loop, x, grid, 2, alpha), dtype)
    close(interextrapolate(x, grid, 2, torch.full((3,), alpha)), per_row(blend_by_loop, x, grid, 2, alpha), dtype)


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
