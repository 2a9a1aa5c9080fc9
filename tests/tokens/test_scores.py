"""The ten scores of Table 13, two also to its letter, against NumPy and SciPy in double precision."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from loops import tokens

from bigain.tokens import scores
from bigain.tokens.grid import Grid

GRIDS = [Grid(4, 4), Grid(3, 5), Grid(5, 2), Grid(1, 6), Grid(4, 1)]


def laplacian(x, grid):
    """Places outside the map are zero."""
    return scipy.ndimage.laplace(x.reshape(*grid, -1), mode="constant", axes=(0, 1)).reshape(x.shape)


def amplitudes(x):
    """Absolute values of the full DFT, bins 0..c-1."""
    return np.abs(np.fft.fft(x, axis=1))


def centroid(bins):
    return bins @ np.arange(bins.shape[1]) / (bins.sum(1) + 1e-7)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def neighbour_cosine(x, grid):
    places, u = [divmod(t, grid.w) for t in range(grid.n)], unit(x)
    near = [[s for s in range(grid.n) if abs(np.subtract(places[s], places[t])).sum() == 1] for t in range(grid.n)]
    return -np.array([(u[near[t]] @ u[t]).mean() for t in range(grid.n)])


# Of one row of tokens `(n, c)`.
REFERENCES = {
    "laplacian_l1": lambda x, grid: np.abs(laplacian(x, grid)).mean(1),
    "laplacian_l2": lambda x, grid: np.sqrt(np.square(laplacian(x, grid)).mean(1)),
    "l1_norm": lambda x, grid: np.abs(x).sum(1),
    "l2_norm": lambda x, grid: np.linalg.norm(x, axis=1),
    "channel_variance": lambda x, grid: x.var(1),
    "global_mean_deviation": lambda x, grid: np.linalg.norm(x - x.mean(0), axis=1),
    "dft_amplitude": lambda x, grid: amplitudes(x)[:, 1:].sum(1),
    "dft_amplitude_with_dc": lambda x, grid: amplitudes(x).sum(1),
    "dft_centroid": lambda x, grid: centroid(amplitudes(x)[:, : x.shape[1] // 2 + 1]),
    "dft_centroid_full": lambda x, grid: centroid(amplitudes(x)),
    "neighbour_cosine": neighbour_cosine,
    "global_mean_cosine": lambda x, grid: -unit(x) @ unit(x.mean(0)),
}
every_score = pytest.mark.parametrize("name", REFERENCES)


def check(name, x, grid):
    expected = torch.from_numpy(np.stack([REFERENCES[name](row, grid) for row in x.double().numpy()]))
    actual = getattr(scores, name)(x, grid)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@every_score
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.h}x{g.w}")
def test_matches_reference(name, grid):
    # An odd and an even number of channels.
    check(name, tokens(1, grid.n, 4), grid)
    check(name, tokens(3, grid.n, 5), grid)


@every_score
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(name, dtype):
    """A half input scores like the same numbers in float32: the arithmetic is float32 throughout."""
    x, grid = tokens(3, 15, 6, seed=2, dtype=dtype), Grid(3, 5)
    score = getattr(scores, name)
    assert score(x, grid).dtype == torch.float32
    assert torch.equal(score(x, grid), score(x.float(), grid))
    large = (tokens(1, 12, 64, seed=3) * 1e4).half()
    assert score(large, Grid(3, 4)).isfinite().all()


@every_score
def test_zero_and_small_tokens(name):
    """A zero token has no direction and no spectrum; norms are floored, so its scores stay finite."""
    x = tokens(2, 12, 4, seed=4)
    x[0, 5] = 0
    check(name, x, Grid(3, 4))
    for scale in (0, 1e-8, 1e-13):
        check(name, tokens(2, 12, 4, seed=9) * scale, Grid(3, 4))


@every_score
@pytest.mark.parametrize("shape", [(2, 14, 4), (15, 4)])
def test_wrong_grid_is_refused(name, shape):
    with pytest.raises(ValueError, match="3x5"):
        getattr(scores, name)(torch.zeros(shape), Grid(3, 5))


def test_autocast_does_not_lower_precision():
    x, grid = tokens(1, 16, 4), Grid(4, 4)
    expected = scores.laplacian_l1(x, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scores.laplacian_l1(x, grid), expected)
