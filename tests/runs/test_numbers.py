"""Digits of numbers with intervals."""

import pytest

from bigain.runs.numbers import bias_text, counted, scaled, with_interval


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.00432, 0.00391, 0.00473), "0.00432 (0.00391 to 0.00473)"),
        ((100.0, 67.56, 100.0), "100 (68 to 100)"),
        ((12.34567, None, None), "12.35"),
        ((16.0, 16.0, 16.0), "16.00 (16.00 to 16.00)"),
        ((0.0, None, None), "0"),
        ((-0.03, -1.0, -0.01), "-0.03 (-1.00 to -0.01)"),
        ((-0.03, -1.2, 1.1), "0.0 (-1.2 to 1.1)"),
        ((None, None, None), "-"),
    ],
)
def test_the_width_of_the_interval_decides_the_digits(numbers, text):
    assert with_interval(*numbers) == text


def test_one_is_no_plural():
    assert [counted(n, "class") for n in (0, 1, 3669)] == ["0 classes", "1 class", "3,669 classes"]


def test_proportions_are_shown_in_percent():
    estimate = {"value": 0.5, "low": 0.25, "high": float("inf"), "n": 4, "unit": "%"}
    assert scaled(estimate) == (50.0, 25.0, None)


@pytest.mark.parametrize(
    ("bias", "text"),
    [
        ({}, ""),
        ({"bias": 0.09}, ""),
        ({"bias": 0.2514}, "with 1,500 images about 0.25 too high, compare at equal numbers only"),
        ({"bias": None}, "with 1,500 images, fewer than features: too high, compare at equal numbers only"),
        ({"bias": 2.3}, "with 1,500 images about 2 too high, compare at equal numbers only"),
    ],
)
def test_the_bias_of_a_distance_is_said_where_it_matters(bias, text):
    assert bias_text({"value": 2.0, "low": 1.5, "high": 2.5, "n": 1500, **bias}) == text
    # A kernel distance may be negative.
    assert bias_text({"value": -2.0, "low": None, "high": None, "n": 1500}) == ""
