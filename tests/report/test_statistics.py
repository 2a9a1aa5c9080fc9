"""Paired statistics against SciPy, closed forms, slow loops and simulations whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import binom, binomtest, norm

from bigain.report.statistics import (
    Paired,
    bootstrap_interval,
    difference_interval,
    holm,
    holm_levels,
    mcnemar,
    score_interval,
    smallest_detectable,
)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 6), (5, 1), (95, 25), (60, 60), (400, 20), (1, 955)])
def test_mcnemar_is_the_binomial_tail(first, second):
    m = first + second
    tail = 2 * sum(math.comb(m, k) for k in range(min(first, second) + 1)) / 2**m
    assert mcnemar(Paired(1000, first, second)) == pytest.approx(min(1.0, tail), rel=1e-9)
    expected = binomtest(first, m).pvalue if m else 1.0
    assert mcnemar(Paired(1000, first, second)) == pytest.approx(expected, rel=1e-9)


def test_the_bootstrap_is_that_of_images():
    draw = np.random.default_rng(2)
    first, second = draw.random(400) < 0.8, draw.random(400) < 0.7
    slow = []
    for _ in range(4000):
        chosen = draw.integers(400, size=400)
        slow.append(first[chosen].mean() - second[chosen].mean())
    expected = np.quantile(slow, [0.025, 0.975])
    pair = Paired.of(first, second)
    assert bootstrap_interval(pair) == pytest.approx(expected, abs=0.006)
    assert bootstrap_interval(pair) == bootstrap_interval(pair)


def test_the_score_interval_ends_where_the_score_test_rejects():
    for pair in (Paired(44, 0, 1), Paired(512, 7, 2), Paired(128, 0, 0), Paired(200, 60, 20)):
        for end, side in zip(score_interval(pair), (1, -1), strict=True):
            share = most_likely(pair, end)
            variance = pair.n * (2 * share + end * (1 - end))
            score = (pair.first - pair.second - pair.n * end) / math.sqrt(variance)
            assert score == pytest.approx(side * norm.ppf(0.975), abs=0.01)


def most_likely(pair, difference):
    """The share of images that only the second gets right, at this difference, by trying a million of them."""
    share = np.linspace(max(0, -difference), (1 - difference) / 2, 1_000_001)
    chances = (share + difference, share, 1 - 2 * share - difference)
    counts = (pair.first, pair.second, pair.n - pair.discordant)
    return share[np.argmax(sum(xlogy(count, chance.clip(0)) for count, chance in zip(counts, chances, strict=True)))]


@pytest.mark.parametrize(
    ("interval", "n", "chances"),
    [(bootstrap_interval, 500, (0.15, 0.09, 0.76)), (difference_interval, 512, (0.006, 0.002, 0.992))],
)
def test_intervals_cover_the_truth(interval, n, chances):
    draws = np.random.default_rng(3).multinomial(n, chances, 300)
    intervals = [interval(Paired(n, int(a), int(b))) for a, b, _ in draws]
    assert 0.92 < np.mean([low <= chances[0] - chances[1] <= high for low, high, *_ in intervals]) < 0.98


def test_few_discordant_images_have_the_score_interval():
    # Without any, the differences that the score test cannot reject: z^2 / (n + z^2) in both directions.
    z = norm.ppf(0.975)
    ends = difference_interval(Paired(50, 0, 0))[:2]
    assert ends == pytest.approx((-(z**2) / (50 + z**2), z**2 / (50 + z**2)))
    assert difference_interval(Paired(100, 9, 0)) == (*score_interval(Paired(100, 9, 0)), "score")
    assert difference_interval(Paired(100, 9, 1)) == (*bootstrap_interval(Paired(100, 9, 1)), "bootstrap")
    assert score_interval(Paired(8, 8, 0))[1] == 1.0
    assert score_interval(Paired(8, 0, 8))[0] == -1.0


@pytest.mark.parametrize("tests", [1, 5])
def test_the_smallest_detectable_difference_is_found_in_80_percent(tests):
    n, share = 3669, 0.08
    d = smallest_detectable(Paired(n, 147, 147), tests)
    share = 294 / n
    level, power = norm.ppf(1 - 0.05 / tests / 2), norm.ppf(0.8)
    assert n * d**2 == pytest.approx((level * math.sqrt(share) + power * math.sqrt(share - d**2)) ** 2)
    chances = [(share + d) / 2, (share - d) / 2, 1 - share]
    counts = np.random.default_rng(4).multinomial(n, chances, size=2000)
    found = np.mean([mcnemar(Paired(n, int(a), int(b))) < 0.05 / tests for a, b, _ in counts])
    assert 0.75 < found < 0.84


def test_differences_that_cannot_be_detected():
    pair = Paired(5000, 200, 150)
    assert smallest_detectable(pair) < smallest_detectable(pair, tests=10)
    assert smallest_detectable(pair) < smallest_detectable(Paired(500, 20, 15))
    assert smallest_detectable(Paired(100, 0, 0)) is None
    assert smallest_detectable(Paired(32, 3, 4)) is None
    assert smallest_detectable(Paired(2, 1, 1)) is None
    # Six discordant images on one side are the fewest that give p < 0.05.
    assert binom.cdf(0, 6, 0.5) * 2 < 0.05


def test_holm_against_its_definition():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    expected = []
    for value in p:
        smaller = [other for other in sorted(p) if other <= value]
        expected.append(min(1.0, max(other * (len(p) - i) for i, other in enumerate(smaller))))
    assert holm(p) == pytest.approx(expected)
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])


def test_intervals_and_verdicts_agree():
    kinds = set()
    for first, second in itertools.product((0, 4, 9, 15, 30), (0, 1, 5, 6, 14, 26)):
        pair = Paired(200, first, second)
        for level in (0.05, 0.05 / 4):
            low, high, kind = difference_interval(pair, level)
            assert (low <= 0 <= high) == (mcnemar(pair) >= level)
            assert low < pair.difference < high
            kinds.add(kind)
    assert kinds == {"bootstrap", "score", "exact"}


def test_levels_are_those_at_which_holm_tests():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm_levels(p) == pytest.approx([0.05 / 4, 0.05 / 3, 0.05 / 3, 0.05 / 5, 0.05 / 3])
    assert holm_levels([0.2]) == [0.05]
    for row in np.random.default_rng(6).random((50, 4)) ** 3:
        below = [value < level for value, level in zip(row, holm_levels(row), strict=True)]
        assert below == [value < 0.05 for value in holm(row)]
