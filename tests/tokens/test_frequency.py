"""Energy by radial frequency against closed forms and SciPy's transform."""

import numpy as np
import pytest
import scipy.fft
import torch

from bigain.tokens.frequency import band_energy, dct_matrix, radial_bands
from bigain.tokens.grid import Grid

GRIDS = [Grid(8, 8), Grid(6, 10), Grid(5, 7), Grid(1, 4)]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_transform_is_scipys(grid):
    x = torch.randn(grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = dct_matrix(grid.h) @ x @ dct_matrix(grid.w).T
    assert np.allclose(ours, scipy.fft.dctn(x.numpy(), norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_bands_hold_every_mode_once_by_its_radius(grid):
    band = radial_bands(grid, 8)
    assert band[0, 0] == 0
    for u in range(grid.h):
        for v in range(grid.w):
            radius = np.sqrt(((u / grid.h) ** 2 + (v / grid.w) ** 2) / 2)
            if (u, v) != (0, 0):
                # An edge belongs to the band above it, whatever rounding makes of it here.
                assert (band[u, v] - 1) / 8 - 1e-12 <= radius < band[u, v] / 8 - 1e-12


def test_a_mode_on_an_edge_belongs_above():
    """(14, 14) of 16 has the radius 7/8 exactly."""
    assert radial_bands(Grid(16, 16), 8)[14, 14] == 8
    assert radial_bands(Grid(16, 16), 8)[2, 2] == 2


@pytest.mark.parametrize("grid", [*GRIDS, Grid(32, 32)])
def test_no_band_is_empty_up_to_the_shorter_side(grid):
    for bands in range(1, min(grid) + 1):
        assert set(radial_bands(grid, bands).flatten().tolist()) == set(range(bands + 1))
    assert 33 not in radial_bands(Grid(32, 32), 33)


def test_a_constant_map_is_all_mean():
    energy = band_energy(torch.full((2, 35, 3), 2.0), Grid(5, 7), 8)
    assert torch.allclose(energy[:, 0], torch.tensor(4.0 * 35, dtype=torch.float64))
    assert energy[:, 1:].abs().max() < 1e-12


@pytest.mark.parametrize(("u", "v"), [(0, 1), (3, 2), (7, 7)])
def test_a_single_mode_is_in_its_band_alone(u, v):
    grid = Grid(8, 8)
    mode = torch.outer(dct_matrix(8)[u], dct_matrix(8)[v]).flatten()
    x = torch.stack([mode, 3 * mode], 1)[None]
    energy = band_energy(x, grid, 8)[0]
    band = radial_bands(grid, 8)[u, v]
    assert energy[band].item() == pytest.approx((1 + 9) / 2)
    assert energy.sum().item() == pytest.approx(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_bands_together_are_the_sum_of_squares(dtype):
    x = torch.randn(3, 60, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    energy = band_energy(x, Grid(6, 10), 4)
    assert energy.dtype == torch.float64
    assert torch.allclose(energy.sum(1), x.double().square().sum(1).mean(1))


def test_tokens_that_do_not_fill_the_grid_are_refused():
    with pytest.raises(ValueError, match="do not fill"):
        band_energy(torch.zeros(1, 5, 1), Grid(2, 3), 4)
