"""Errors against loops, and schedules of the timestep."""

from fractions import Fraction

import pytest
import torch
from scipy.fft import dctn

from bigain.diffusion.noising import band_errors, prediction_error
from bigain.diffusion.schedules import Linear

LOSSES = {
    "l2": lambda d: d * d,
    "l1": abs,
    "huber": lambda d: d * d / 2 if abs(d) <= 1 else abs(d) - 0.5,
    "velocity": lambda d: d * d,
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_parts_of_an_error_by_frequency_against_scipy_and_parseval():
    predicted, noise = normal(3, 2, 6, 8, seed=1), normal(3, 2, 6, 8, seed=2)
    parts = band_errors(predicted.half(), noise, 4)
    energy = dctn((predicted.half().double() - noise.double()).numpy(), axes=(2, 3), norm="ortho") ** 2
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for u in range(6):
        for v in range(8):
            radius = Fraction(u, 6) ** 2 + Fraction(v, 8) ** 2
            band = 0 if radius == 0 else 1 + int(sum(radius >= 2 * Fraction(edge, 4) ** 2 for edge in (1, 2, 3)))
            expected[:, band] += torch.tensor(energy[:, :, u, v].sum(1)) / (2 * 6 * 8)
    torch.testing.assert_close(parts.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.sum(1), prediction_error(predicted.half(), noise, "l2"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_errors_equal_a_loop(loss):
    predicted, noise = 2 * normal(3, 2, 4, 5, seed=1), normal(3, 2, 4, 5, seed=2)
    actual = prediction_error(predicted, noise, loss)
    rows = [
        [LOSSES[loss](a - b) for a, b in zip(p, n, strict=True)]
        for p, n in zip(predicted.flatten(1).tolist(), noise.flatten(1).tolist(), strict=True)
    ]
    assert actual.dtype == torch.float32
    assert actual.tolist() == pytest.approx([sum(row) / len(row) for row in rows], rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_are_reduced_in_float32(loss, dtype):
    predicted, noise = normal(3, 4, 8, 8, seed=1).to(dtype), normal(3, 4, 8, 8, seed=2)
    actual = prediction_error(predicted, noise, loss)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, prediction_error(predicted.float(), noise, loss))


@pytest.mark.parametrize(("start", "end"), [(0.8, 1.2), (1.0, 0.0), (0.0, 1.0), (-1.5, 2.5)])
def test_linear_is_a_line_through_both_ends(start, end):
    timesteps = [0, 1, 25, 499, 500, 975, 998, 999]
    expected = [float(Fraction(end) + (Fraction(start) - Fraction(end)) * Fraction(t, 999)) for t in timesteps]
    actual = Linear(start, end)(torch.tensor(timesteps))
    assert actual.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
