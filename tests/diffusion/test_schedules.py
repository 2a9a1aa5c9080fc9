"""Schedules are functions of the timestep value."""

from fractions import Fraction

import pytest
import torch

from bigain.diffusion.schedules import Linear, Schedule


@pytest.mark.parametrize(("start", "end"), [(0.8, 1.2), (1.0, 0.0), (0.0, 1.0), (-1.5, 2.5)])
def test_linear_is_a_line_through_both_ends(start, end):
    timesteps = [0, 1, 25, 499, 500, 975, 998, 999]
    expected = [float(Fraction(end) + (Fraction(start) - Fraction(end)) * Fraction(t, 999)) for t in timesteps]
    actual = Linear(start, end)(torch.tensor(timesteps))
    assert actual.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_sampling_begins_at_start_and_ends_at_end():
    assert Linear(start=0.25, end=0.75)(torch.tensor([999, 0])).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.bfloat16])
def test_linear_answers_in_float32(dtype):
    values = Linear(0.0, 1.0)(torch.tensor([0, 500, 960], dtype=dtype))
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([1 - t / 999 for t in (0, 500, 960)])


def test_equal_ends_are_constant():
    assert Linear(0.5, 0.5)(torch.arange(1000)).tolist() == pytest.approx([0.5] * 1000)


def test_no_timesteps_no_values():
    assert Linear(0.0, 1.0)(torch.empty(0, dtype=torch.int64)).shape == (0,)


def test_linear_is_a_value():
    assert Linear(0.8, 1.2) == Linear(start=0.8, end=1.2)
    assert Linear(0.8, 1.2) != Linear(1.2, 0.8)


def test_a_schedule_must_be_callable():
    with pytest.raises(TypeError, match="abstract"):
        Schedule()
