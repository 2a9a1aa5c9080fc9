"""The ten scores of Table 13, two also to its letter, against loops over tokens and channels in double precision."""

import cmath
import math

import pytest
import torch

from bigain.tokens import scores
from bigain.tokens.grid import Grid

FLOOR = 1e-12
GRIDS = [Grid(4, 4), Grid(3, 5), Grid(5, 2), Grid(1, 6), Grid(4, 1)]


def tokens(b, n, c, seed=0, dtype=torch.float32):
    return torch.randn(b, n, c, generator=torch.Generator().manual_seed(seed)).to(dtype)


def neighbours(t, grid):
    y, x = divmod(t, grid.w)
    near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return [v * grid.w + u for v, u in near if 0 <= v < grid.h and 0 <= u < grid.w]


def laplacian(rows, grid):
    """Neighbours outside the map are zero, so they add nothing."""
    return [
        [sum(rows[s][c] for s in neighbours(t, grid)) - 4 * rows[t][c] for c in range(len(rows[t]))]
        for t in range(grid.n)
    ]


def norm(v):
    return math.sqrt(sum(a * a for a in v))


def cosine(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True)) / (max(norm(u), FLOOR) * max(norm(v), FLOOR))


def mean_token(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def amplitudes(v):
    """Absolute values of the full DFT, bins 0..c-1."""
    c = len(v)
    return [abs(sum(v[j] * cmath.exp(-2j * math.pi * j * k / c) for j in range(c))) for k in range(c)]


def laplacian_l1(rows, grid):
    return [sum(abs(a) for a in v) / len(v) for v in laplacian(rows, grid)]


def laplacian_l2(rows, grid):
    return [math.sqrt(sum(a * a for a in v) / len(v)) for v in laplacian(rows, grid)]


def l1_norm(rows, grid):
    return [sum(abs(a) for a in v) for v in rows]


def l2_norm(rows, grid):
    return [norm(v) for v in rows]


def channel_variance(rows, grid):
    return [sum((a - sum(v) / len(v)) ** 2 for a in v) / len(v) for v in rows]


def global_mean_deviation(rows, grid):
    mean = mean_token(rows)
    return [norm([a - m for a, m in zip(v, mean, strict=True)]) for v in rows]


def dft_amplitude(rows, grid):
    return [sum(amplitudes(v)[1:]) for v in rows]


def dft_amplitude_with_dc(rows, grid):
    return [sum(amplitudes(v)) for v in rows]


def dft_centroid_full(rows, grid):
    return [sum(k * a for k, a in enumerate(amplitudes(v))) / (sum(amplitudes(v)) + 1e-7) for v in rows]


def dft_centroid(rows, grid):
    half = [amplitudes(v)[: len(v) // 2 + 1] for v in rows]
    return [sum(k * a for k, a in enumerate(bins)) / (sum(bins) + 1e-7) for bins in half]


def neighbour_cosine(rows, grid):
    near = [neighbours(t, grid) for t in range(grid.n)]
    return [-sum(cosine(rows[t], rows[s]) for s in near[t]) / len(near[t]) for t in range(grid.n)]


def global_mean_cosine(rows, grid):
    mean = mean_token(rows)
    return [-cosine(v, mean) for v in rows]


REFERENCES = {
    f.__name__: f
    for f in (
        laplacian_l1,
        laplacian_l2,
        l1_norm,
        l2_norm,
        channel_variance,
        global_mean_deviation,
        dft_amplitude,
        dft_amplitude_with_dc,
        dft_centroid,
        dft_centroid_full,
        neighbour_cosine,
        global_mean_cosine,
    )
}
every_score = pytest.mark.parametrize("name", REFERENCES)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.h}x{g.w}")


def check(name, x, grid):
    expected = torch.tensor([REFERENCES[name](rows, grid) for rows in x.double().tolist()], dtype=torch.float64)
    actual = getattr(scores, name)(x, grid)
    assert actual.dtype == torch.float32
    assert actual.shape == x.shape[:2]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@every_score
@every_grid
@pytest.mark.parametrize(("b", "c"), [(1, 4), (3, 5)])
def test_matches_loop(name, grid, b, c):
    check(name, tokens(b, grid.n, c), grid)


@every_score
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(name, dtype):
    """A half input scores like the same numbers in float32: the arithmetic is float32 throughout."""
    x, grid = tokens(3, 15, 6, seed=2, dtype=dtype), Grid(3, 5)
    score = getattr(scores, name)
    assert score(x, grid).dtype == torch.float32
    assert torch.equal(score(x, grid), score(x.float(), grid))
    check(name, x.float(), grid)


@every_score
def test_large_halves_do_not_overflow(name):
    x = (tokens(1, 12, 64, seed=3) * 1e4).half()
    assert x.isfinite().all()
    assert getattr(scores, name)(x, Grid(3, 4)).isfinite().all()


@every_score
def test_zero_tokens(name):
    """A zero token has no direction and no spectrum; norms are floored, so its scores stay finite."""
    x = tokens(2, 12, 4, seed=4)
    x[0, 5] = 0
    check(name, x, Grid(3, 4))
    check(name, torch.zeros(1, 12, 4), Grid(3, 4))


@pytest.mark.parametrize("name", ["neighbour_cosine", "global_mean_cosine"])
@pytest.mark.parametrize("scale", [1e-8, 1e-13])
def test_norms_of_cosines_are_floored(name, scale):
    """Small tokens keep their direction; only norms below 1e-12 are not scaled up to one."""
    check(name, tokens(2, 12, 4, seed=9) * scale, Grid(3, 4))


@every_score
@pytest.mark.parametrize("shape", [(2, 14, 4), (2, 16, 4), (15, 4), (2, 4, 15)])
def test_wrong_grid_is_refused(name, shape):
    with pytest.raises(ValueError, match="3x5"):
        getattr(scores, name)(torch.zeros(shape), Grid(3, 5))


@pytest.mark.parametrize("c", [1, 2, 5, 6])
def test_dft_amplitude_with_dc(c):
    x = tokens(2, 6, c, seed=7)
    expected = torch.tensor([[sum(amplitudes(v)) for v in rows] for rows in x.double().tolist()])
    torch.testing.assert_close(scores.dft_amplitude(x, Grid(2, 3), include_dc=True), expected, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_lower_precision():
    x, grid = tokens(1, 16, 4), Grid(4, 4)
    expected = scores.laplacian_l1(x, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scores.laplacian_l1(x, grid), expected)
