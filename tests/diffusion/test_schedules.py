"""Schedules are functions of the timestep value."""

from fractions import Fraction

import pytest
import torch

from bigain.diffusion.schedules import Linear


@pytest.mark.parametrize(("start", "end"), [(0.8, 1.2), (1.0, 0.0), (0.0, 1.0), (-1.5, 2.5)])
def test_linear_is_a_line_through_both_ends(start, end):
    timesteps = [0, 1, 25, 499, 500, 975, 998, 999]
    expected = [float(Fraction(end) + (Fraction(start) - Fraction(end)) * Fraction(t, 999)) for t in timesteps]
    actual = Linear(start, end)(torch.tensor(timesteps))
    assert actual.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.bfloat16])
def test_linear_answers_in_float32(dtype):
    values = Linear(0.0, 1.0)(torch.tensor([0, 500, 960], dtype=dtype))
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([1 - t / 999 for t in (0, 500, 960)])
