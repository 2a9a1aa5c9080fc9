"""Energy by radial frequency against SciPy's transform and exact radii."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.fft
import torch
from loops import tokens

from bigain.tokens.frequency import band_energy, dct_matrix, radial_bands
from bigain.tokens.grid import Grid

GRIDS = [Grid(8, 8), Grid(6, 10), Grid(5, 7), Grid(1, 4), Grid(16, 16)]


def exact_bands(grid, bands):
    """By comparing exact squared radii with squared edges, which belong to the band above; (14, 14) of 16 is one."""
    expected = torch.zeros(grid, dtype=torch.int64)
    for u in range(grid.h):
        for v in range(grid.w):
            squared = (Fraction(u, grid.h) ** 2 + Fraction(v, grid.w) ** 2) / 2
            expected[u, v] = 1 + sum(squared >= Fraction(k, bands) ** 2 for k in range(1, bands)) if u or v else 0
    return expected


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_energy_by_band_is_that_of_scipys_transform(grid, dtype):
    x = tokens(2, grid.n, 3, dtype=dtype)
    x[1, :, 0] = 2.0
    energy, band = band_energy(x, grid, 8), exact_bands(grid, 8)
    assert torch.equal(radial_bands(grid, 8), band)
    assert energy.dtype == torch.float64
    maps = x.double().unflatten(1, grid).numpy()
    modes = torch.from_numpy(np.square(scipy.fft.dctn(maps, norm="ortho", axes=(1, 2))).mean(3))
    torch.testing.assert_close(energy, torch.stack([modes[:, band == k].sum(1) for k in range(9)], 1))
    matrix = dct_matrix(grid.h)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(grid.h, dtype=torch.float64))


@pytest.mark.parametrize("grid", [*GRIDS, Grid(32, 32)])
def test_no_band_is_empty_up_to_the_shorter_side(grid):
    for bands in range(1, min(grid) + 1):
        assert set(radial_bands(grid, bands).flatten().tolist()) == set(range(bands + 1))
    assert 33 not in radial_bands(Grid(32, 32), 33)


def test_tokens_that_do_not_fill_the_grid_are_refused():
    with pytest.raises(ValueError, match="do not fill"):
        band_energy(torch.zeros(1, 5, 1), Grid(2, 3), 4)
