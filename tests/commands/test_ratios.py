"""Medians, paired ratios and the part of a promise that is real, on known numbers."""

import pytest

from bigain.commands.bench.ratios import Spread, paired_ratio, realised_percent


def test_ratios_are_of_the_same_round():
    # A machine that becomes twice as slow: every ratio is 0.8, the ratio of medians is not.
    assert paired_ratio([8, 8, 16], [10, 10, 20]) == Spread(0.8, 0.8, 0.8)
    assert paired_ratio([9, 8, 12], [10, 10, 10]) == Spread(0.9, 0.8, 1.2)


def test_what_is_realised_of_a_promise():
    found = realised_percent(Spread(0.92, 0.9, 1.1), promised=0.876)
    assert found.median == pytest.approx(100 * 0.08 / 0.124)
    # The lowest ratio saves most.
    assert found.high == pytest.approx(100 * 0.1 / 0.124)
    assert found.low == pytest.approx(-100 * 0.1 / 0.124)
    assert realised_percent(Spread(0.876, 0.876, 0.876), 0.876).median == pytest.approx(100)
    # Slower than without, and a method that promises nothing.
    assert realised_percent(Spread(1.25, 1.25, 1.25), 0.875).median == pytest.approx(-200)
    assert realised_percent(Spread(0.9, 0.9, 0.9), 1.0) is None


def test_other_units():
    assert Spread(0.5, 0.25, 1.0).times(1e3) == Spread(500, 250, 1000)
