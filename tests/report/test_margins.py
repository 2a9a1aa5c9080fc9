"""Margins against closed forms and a slow loop."""

import math

import numpy as np
import pytest

from bigain.report.explain.margins import Errors, change_intervals, margins, share


def over(errors, label, trials):
    """Margins over trials of different timesteps."""
    timesteps = np.tile(np.arange(trials.shape[1]), (len(trials), 1))
    return margins(Errors(None, label, errors, timesteps, np.zeros((*errors.shape, 0))), trials)


def two_classes(margin):
    """Errors of two classes whose margin is given; the first is true. `(n, t)` -> `(n, 2, t)`, labels."""
    margin = np.asarray(margin, float)
    return np.stack([np.full_like(margin, 0.5), 0.5 + margin], 1), np.zeros(len(margin), np.int64)


def of(margin):
    errors, label = two_classes(margin)
    return over(errors, label, np.ones((len(label), errors.shape[2]), bool))


def test_gaussian_margins_have_the_known_bound():
    mu, sigma, n, images = 0.3, 0.6, 5, 40_000
    result = of(mu + sigma * np.random.default_rng(0).standard_normal((images, n)))
    assert result.mu == pytest.approx(mu, abs=0.005)
    assert result.sigma == pytest.approx(sigma, abs=0.005)
    assert result.r == pytest.approx(2, abs=0.05)
    expected = (sigma**2 / n) / (mu**2 + sigma**2 / n)
    assert result.theorem_bound == pytest.approx(expected, abs=0.01)
    # Independent trials: the spread of the means is that of the theorem.
    assert result.cantelli_bound == pytest.approx(expected, abs=0.01)
    wrong = 0.5 * math.erfc(mu * math.sqrt(n) / sigma / math.sqrt(2))
    assert result.error == pytest.approx(wrong, abs=0.005)
    assert result.error < result.cantelli_bound


def test_the_observed_error_never_exceeds_the_bound():
    generator = np.random.default_rng(1)
    for _ in range(50):
        errors = generator.gamma(2, size=(20, 4, 3))
        label = generator.integers(0, 4, 20)
        errors[np.arange(20), label] *= 0.6
        result = over(errors, label, np.ones((20, 3), bool))
        assert result.error <= result.cantelli_bound + 1e-12
        right = errors.mean(2).argmin(1) == label
        assert result.error == pytest.approx(1 - right.mean())


def test_bounds_of_special_margins():
    # Cantelli's worst case: a margin is 0 or a constant.
    worst = of(np.where(np.arange(100) < 30, 0.0, 0.5)[:, None])
    assert [worst.error, worst.cantelli_bound, worst.theorem_bound] == pytest.approx([0.3] * 3)
    # Trials that are all the same: averaging gains nothing, which the theorem's independence overlooks.
    single = 0.3 + 0.6 * np.random.default_rng(2).standard_normal((1000, 1))
    same = of(np.repeat(single, 4, axis=1))
    assert same.cantelli_bound == pytest.approx(of(single).cantelli_bound)
    assert same.theorem_bound == pytest.approx((same.sigma**2 / 4) / (same.mu**2 + same.sigma**2 / 4))
    assert same.theorem_bound < same.cantelli_bound
    negative = of([[-0.1], [-0.3]])
    assert (negative.r, negative.theorem_bound, negative.cantelli_bound, negative.error) == (None, 1.0, 1.0, 1.0)
    assert negative.mu_over_sigma == pytest.approx(-0.2 / 0.1)


def test_margins_over_some_trials_against_a_loop():
    generator = np.random.default_rng(3)
    errors, label = generator.random((12, 5, 6)), generator.integers(0, 5, 12)
    trials = generator.random((12, 6)) < 0.4
    trials[4] = False
    result = over(errors, label, trials)
    means, squares = [], []
    for i in range(12):
        chosen = [j for j in range(6) if trials[i, j]]
        if not chosen:
            continue
        score = {c: sum(errors[i, c, j] for j in chosen) for c in range(5) if c != label[i]}
        rival = min(score, key=score.get)
        values = [errors[i, rival, j] - errors[i, label[i], j] for j in chosen]
        means.append(sum(values) / len(values))
        squares.append(sum(margin**2 for margin in values) / len(values))
    assert result.mean.tolist() == pytest.approx(means)
    assert result.square.tolist() == pytest.approx(squares)
    assert result.trials.sum() == trials.sum()
    assert over(errors, label, np.zeros((12, 6), bool)) is None


def stored(ids, errors, label=None, timesteps=None):
    n, _, t = errors.shape
    label = np.zeros(n, np.int64) if label is None else label
    timesteps = np.tile(np.arange(t) * 100 + 50, (n, 1)) if timesteps is None else timesteps
    return Errors(np.array(list(ids)), label, errors.astype(np.float32), timesteps, np.zeros((*errors.shape, 0)))


def test_only_trials_in_which_both_runs_evaluated_every_class_are_shared():
    a, b = np.ones((2, 3, 4)), np.ones((2, 3, 4))
    a[0, 1, 2] = b[0, 2, 0] = np.nan
    times = np.tile([50, 150, 250, 350], (2, 1))
    other = times.copy()
    other[1, 3] = 351
    *_, trials = share(stored("xy", a, timesteps=times), stored("xy", b, timesteps=other), ("a", "b"))
    assert trials.tolist() == [[False, True, False, True], [True, True, True, False]]


def test_shared_images_are_matched_by_id():
    a, b = np.random.default_rng(4).random((2, 3, 2, 1))
    first, second, _ = share(stored("xyz", a), stored("zwx", b), ("a", "b"))
    assert first.errors[:, :, 0].tolist() == a.astype(np.float32)[[0, 2], :, 0].tolist()
    assert second.errors[:, :, 0].tolist() == b.astype(np.float32)[[2, 0], :, 0].tolist()
    full, empty = np.ones((2, 3, 1)), np.full((2, 3, 1), np.nan)
    with pytest.raises(ValueError, match="share no trial"):
        share(stored("xy", full), stored("xy", empty), ("a", "b"))
    with pytest.raises(ValueError, match="3 and 2 classes"):
        share(stored("xy", full), stored("xy", full[:, :2]), ("a", "b"))


def test_all_pairs_are_resampled_together():
    noise = np.random.default_rng(6).standard_normal((40, 3))
    errors, label = two_classes(0.3 + noise)
    others, _ = two_classes(0.5 - noise)
    some = np.random.default_rng(7).random((40, 3)) < 0.5
    pairs = [(over(errors, label, trials), over(others, label, trials)) for trials in (some | True, some)]
    assert len(pairs[1][0].mean) < 40
    intervals = change_intervals(pairs, 40)
    assert intervals == change_intervals(pairs, 40)
    for (first, second), interval in zip(pairs, intervals, strict=True):
        draw, slow, n = np.random.default_rng(8), [], len(first.mean)
        for _ in range(2000):
            i = draw.integers(n, size=n)
            values = [m.mean[i].mean() / np.sqrt(m.square[i].mean() - m.mean[i].mean() ** 2) for m in (first, second)]
            slow.append(values[1] - values[0])
        assert interval == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.06)


def test_several_noises_give_the_theorem_its_deviation():
    """Images differ ten times as much as the noises of one: only those count in r, bound and interval."""
    make = np.random.default_rng(10)
    noise, images = make.standard_normal((200, 4)), 10 * make.standard_normal((200, 1))
    errors, label = two_classes(0.5 + images + noise)
    others, _ = two_classes(0.2 + images + noise)
    timesteps, every = np.tile([100, 100, 300, 300], (200, 1)), np.ones((200, 4), bool)
    sides = [margins(Errors(None, label, of, timesteps, of[..., :0]), every) for of in (errors, others)]
    for side in sides:
        assert side.theorem_sigma == side.sigma_over_noise < side.sigma / 5
        assert side.mu_over_sigma == pytest.approx(side.mu / side.sigma_over_noise)
        assert side.theorem_bound == (1 if side.mu <= 0 else pytest.approx(1 / (1 + 4 * side.mu_over_sigma**2)))
    (interval,) = change_intervals([sides], 200)
    draw, slow = np.random.default_rng(11), []
    for _ in range(2000):
        i = draw.integers(200, size=200)
        values = [m.mean[i].mean() / np.sqrt(m.noise[i].mean()) for m in sides]
        slow.append(values[1] - values[0])
    assert interval == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.02)


def test_few_images_have_no_interval():
    noise = np.random.default_rng(9).standard_normal((10, 5))
    for n in (1, 9, 10):
        (interval,) = change_intervals([(of(0.5 + noise[:n]), of(0.2 + noise[:n]))], n)
        assert (interval is None) == (n < 10)
    assert change_intervals([(of([[0.1]] * 20), of([[0.2]] * 20))], 20) == [None]
