"""Distances between sets of features against textbook formulas, loops, scipy and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from bigain.errors import InputError
from bigain.metrics.base import evaluate, jackknife_error
from bigain.metrics.frechet import frechet_distance, frechet_leave_one_out
from bigain.metrics.kernel import kernel_leave_one_out
from bigain.metrics.reference import Moments, ReferenceStatistics
from bigain.runs.records import SampleRecord
from bigain.tasks.scoring import distances

D = 24


def features(seed, n, d=D, shift=0.0):
    """Correlated float32 features far from 0, with scales over two decades."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d)) * np.geomspace(1, 0.01, d)
    return (draw.normal(size=(n, d)) @ mixing + 50 + shift).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 300, 1024, 5000])
def test_moments_are_the_same_whatever_the_chunks(chunk):
    x = features(0, 2500)
    moments = Moments.of(x[i : i + chunk] for i in range(0, len(x), chunk))
    assert moments.n == 2500
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-9)


def test_frechet_distance_is_that_of_independent_computations():
    x, y = features(0, 500), features(1, 400, shift=0.1)
    a, b = Moments.of([x]), Moments.of([y])
    distance = frechet_distance(a, b)
    # By the matrix root of the product, as pytorch-fid does it.
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    textbook = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert distance == pytest.approx(textbook, abs=1e-8)
    theirs = _compute_fid(*(torch.from_numpy(array) for array in (a.mean, a.covariance, b.mean, b.covariance)))
    assert distance == pytest.approx(float(theirs), abs=1e-8)
    assert frechet_distance(b, a) == pytest.approx(distance, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [2, 10, D])
def test_fewer_images_than_dimensions(n):
    x, y = features(0, n), features(1, 400)
    # The overlap computed differently: singular values of the n x m matrix between the images themselves.
    s, t = x - x.astype(np.float64).mean(0), y - y.astype(np.float64).mean(0)
    overlap = np.linalg.svd(s @ t.T, compute_uv=False).sum() / np.sqrt((n - 1) * 399)
    separate = np.square(x.astype(np.float64).mean(0) - y.astype(np.float64).mean(0)).sum()
    expected = separate + np.square(s).sum() / (n - 1) + np.square(t).sum() / 399 - 2 * overlap
    assert frechet_distance(Moments.of([x]), Moments.of([y])) == pytest.approx(expected, abs=1e-6)


def test_sets_that_do_not_compare_are_refused():
    with pytest.raises(InputError, match="24 and 8 dimensions"):
        frechet_distance(Moments.of([features(0, 50)]), Moments.of([features(0, 50, 8)]))
    with pytest.raises(InputError, match="no images"):
        Moments.of([])
    with pytest.raises(InputError, match="not finite"):
        Moments.of([np.array([[1.0, np.nan]])])


@pytest.mark.parametrize("n", [4, D, D + 1, 60])
def test_frechet_distances_without_each_image(n):
    x, reference = features(0, n), Moments.of([features(1, 400, shift=0.2)])
    value, left_out = frechet_leave_one_out(x, reference)
    assert value == frechet_distance(Moments.of([x]), reference)
    expected = [frechet_distance(Moments.of([np.delete(x, i, axis=0)]), reference) for i in range(n)]
    np.testing.assert_allclose(left_out, expected, rtol=1e-5)


def test_images_that_are_all_equal_have_a_frechet_distance():
    value, left_out = frechet_leave_one_out(np.ones((5, D)), Moments.of([features(1, 400)]))
    np.testing.assert_allclose(left_out, value)


@pytest.mark.parametrize("n", [3, 20])
def test_kernel_distances_without_each_image(n, monkeypatch):
    # Smaller than the sets: several tiles.
    monkeypatch.setattr("bigain.metrics.kernel._TILE", 7)
    x, y = features(0, n, shift=0.5), features(1, 20)
    value, without = kernel_leave_one_out(x, y)
    assert value == pytest.approx(kernel_leave_one_out(y, x)[0], rel=1e-9)
    if n == 20:
        theirs = poly_mmd(*(torch.from_numpy(rows).double() for rows in (x, y)))
        assert value == pytest.approx(float(theirs), rel=1e-9)
        expected = [kernel_leave_one_out(np.delete(x, i, axis=0), y)[0] for i in range(n)]
        np.testing.assert_allclose(without, expected, rtol=1e-9)


@pytest.mark.parametrize("both", [False, True], ids=["generated", "both"])
def test_errors_are_as_large_as_distances_of_fresh_samples_vary(both):
    """The reference is much larger than the samples, unless both are samples."""
    real, pool = features(0, 1200, 8), features(1, 20_000, 8, shift=0.5) * 1.1
    draw, reference = np.random.default_rng(2), Moments.of([features(0, 1200, 8)])
    kernel, frechet = [], []
    for _ in range(60):
        x = pool[draw.integers(len(pool), size=100)]
        y = real[draw.integers(len(real), size=80)] if both else real[:400]
        (value, without_x), (_, without_y) = kernel_leave_one_out(x, y), kernel_leave_one_out(y, x)
        kernel.append((value, np.hypot(jackknife_error(without_x), jackknife_error(without_y) if both else 0)))
        value, without_x = frechet_leave_one_out(x, reference)
        frechet.append((value, jackknife_error(without_x)))
    for values, errors in (np.transpose(kernel), np.transpose(frechet)):
        assert 0.8 < errors.mean() / values.std(ddof=1) < 1.25


def loop_share(points, centres, k):
    """Share of points in the ball of some centre, one distance at a time."""
    inside = 0
    for point in points:
        for i, centre in enumerate(centres):
            others = sorted(np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i)
            if np.linalg.norm(centre - point) <= others[k - 1]:
                inside += 1
                break
    return inside / len(points)


def estimates(generated, real, kept=True):
    """Estimates by name, and why there are none."""
    reference = ReferenceStatistics(Moments.of([real]), "stand-in", features=real if kept else None)
    records = [SampleRecord(f"{i}", [], "", 0.1, row) for i, row in enumerate(generated)]
    return evaluate(distances(reference), records, None)


@pytest.mark.parametrize("block", [7, 1000])
def test_precision_and_recall_against_a_loop(block, monkeypatch):
    monkeypatch.setattr("bigain.metrics.precision_recall._ROWS", block)

    def precision_recall(real, generated):
        computed, _ = estimates(generated, real)
        return computed["precision[stand-in]"]["value"], computed["recall[stand-in]"]["value"]

    draw = np.random.default_rng(0)
    real, generated = draw.normal(size=(40, 3)) * [1, 1, 2] + 100, draw.normal(size=(25, 3)) * 1.5 + 100
    expected = loop_share(generated, real, 3), loop_share(real, generated, 3)
    assert 0 < expected[0] < expected[1] < 1 or 0 < expected[1] < expected[0] < 1
    assert precision_recall(real, generated) == expected
    x = features(0, 60)
    assert precision_recall(x, x.copy()) == (1, 1)
    assert precision_recall(x, x + 1000) == (0, 0)
    # One good image again and again is precise and covers next to nothing.
    assert precision_recall(x, np.repeat(x[:1], 60, axis=0)) == (1, 1 / 60)


def test_names_carry_the_protocol():
    computed, missing = estimates(features(0, 12, 6), features(1, 20, 6))
    assert list(computed) == [f"{name}[stand-in]" for name in ("frechet", "kid", "precision", "recall")]
    assert all(estimate["n"] == 12 for estimate in computed.values())
    assert computed["frechet[stand-in]"]["low"] < computed["frechet[stand-in]"]["high"]
    assert computed["frechet[stand-in]"]["bias"] > 0
    assert "standard_error" in computed["kid[stand-in]"]
    assert missing == {}


def test_estimates_do_not_depend_on_the_order_of_the_images(monkeypatch):
    # Fewer than there are, so that some are left out.
    monkeypatch.setattr("bigain.metrics.precision_recall._MOST_IMAGES", 20)
    records = [SampleRecord(f"{i}", [], "", 0.1, row) for i, row in enumerate(features(0, 30))]
    real = features(1, 40)
    metrics = distances(ReferenceStatistics(Moments.of([real]), "stand-in", features=real))
    assert evaluate(metrics, records[::-1], None) == evaluate(metrics, records, None)


def test_without_features_of_the_reference_there_is_a_frechet_distance_only():
    generated, real = features(0, 5, 257), features(1, 6, 257)
    computed, _ = estimates(generated, real, kept=False)
    estimate = computed["frechet[stand-in]"]
    assert list(computed) == ["frechet[stand-in]"]
    assert estimate["value"] == frechet_distance(Moments.of([generated]), Moments.of([real]))
    # Fewer images than features.
    assert estimate["bias"] is None


def test_few_images_have_no_distance():
    assert estimates(features(0, 3), features(1, 20)) == ({}, {"distance": "3 images: too few for a distance"})
