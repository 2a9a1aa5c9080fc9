"""Curves against plain loops over images, trials and classes."""

import numpy as np
import pytest

from bigain.inspector.errors_by_time import errors_by_time, survival, truth_of
from bigain.inspector.figures import class_figure, confusion_figure, error_figure, rendered, survival_figure

N, K, T = 7, 5, 4


def stored(seed=0):
    generator = np.random.default_rng(seed)
    errors = generator.random((N, K, T)).astype(np.float32)
    # As after an elimination: the last trials are of few classes.
    errors[:, 2:, 2:] = np.nan
    errors[3, :, 1] = np.nan
    label = generator.integers(0, K, N)
    return errors, np.tile(np.array([100, 300, 500, 700]), (N, 1)), label


def by_loops(errors, timesteps, truth):
    """timestep -> (errors of true class and rivals, margins by class), image by image."""
    found = {}
    for i in range(N):
        trials = [t for t in range(T) if np.isfinite(errors[i, :, t]).all()]
        if not trials:
            continue
        wrong = [k for k in range(K) if not truth[i, k]]
        true = [k for k in range(K) if truth[i, k]]
        wrong.sort(key=lambda k: np.mean([float(errors[i, k, t]) for t in trials]))
        for t in trials:
            of_true = float(np.mean([float(errors[i, k, t]) for k in true]))
            rivals = [float(errors[i, k, t]) for k in wrong[:3]]
            found.setdefault(int(timesteps[i, t]), []).append((of_true, rivals, true))
    return found


def test_curves_are_means_over_images_and_whole_trials():
    errors, timesteps, label = stored()
    truth = truth_of(label, K)
    found, wanted = errors_by_time(errors, timesteps, truth), by_loops(errors, timesteps, truth)
    assert found.timesteps.tolist() == sorted(wanted) == [100, 300]
    assert found.images == N
    for u, t in enumerate(sorted(wanted)):
        assert found.true[u] == pytest.approx(np.mean([one[0] for one in wanted[t]]))
        assert found.rivals[:, u] == pytest.approx(np.mean([one[1] for one in wanted[t]], 0))
        for k in range(K):
            margins = [one[1][0] - one[0] for one in wanted[t] if k in one[2]]
            assert found.by_class[k, u] == pytest.approx(np.mean(margins) if margins else np.nan, nan_ok=True)


def test_blocks_of_images_change_nothing(monkeypatch):
    errors, timesteps, label = stored()
    whole = errors_by_time(errors, timesteps, truth_of(label, K))
    monkeypatch.setattr("bigain.inspector.errors_by_time._BLOCK", 1)
    parts = errors_by_time(errors, timesteps, truth_of(label, K))
    for name in ("true", "rivals", "by_class"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-12)


def test_images_of_several_labels_and_of_none():
    errors, timesteps, _ = stored()
    truth = np.zeros((N, K), bool)
    truth[0, [1, 2]] = truth[1, 0] = True
    found = errors_by_time(errors[:, :, :2], timesteps[:, :2], truth)
    assert found.images == 2
    wanted = [errors[0, [1, 2], 0].mean(), errors[1, 0, 0]]
    assert found.true[0] == pytest.approx(np.mean(wanted))
    assert errors_by_time(errors, timesteps, np.zeros((N, K), bool)) is None
    assert errors_by_time(np.full_like(errors, np.nan), timesteps, truth) is None


def test_timesteps_that_differ_by_image_go_into_bands():
    errors = np.random.default_rng(0).random((400, 3, 2)).astype(np.float32)
    timesteps = np.random.default_rng(1).integers(0, 1000, (400, 2))
    found = errors_by_time(errors, timesteps, truth_of(np.zeros(400, int), 3))
    assert found.timesteps.tolist() == [25.0 + 50 * band for band in range(20)]
    first = timesteps < 50
    assert found.true[0] == pytest.approx(errors[:, 0][first].mean())


def test_survival_is_the_share_of_true_classes_after_each_stage():
    stage = np.array([[2, 1, 0], [0, 2, 1], [1, 2, 0], [0, 2, 1]])
    shares = survival(stage, truth_of(np.array([0, 2, 0, 0]), 3), 2)
    assert shares.tolist() == [1, 0.75, 0.25]
    assert np.isnan(survival(stage, np.zeros((4, 3), bool), 2)).all()


def test_figures_of_few_and_of_many_classes_are_drawn():
    errors, timesteps, label = stored()
    found = errors_by_time(errors, timesteps, truth_of(label, K))
    names = [f"class {k} with rather a long name, $_{k}$" for k in range(K)]
    sizes = [rendered(figure).size for figure in (error_figure(found), class_figure(found, names))]
    assert min(min(size) for size in sizes) > 200
    assert rendered(survival_figure(np.array([1, 0.9, 0.5]), [1, 0.3, 0.1])).size > (200, 200)
    for classes in (2, 30, 150):
        matrix = np.eye(classes, dtype=int).tolist()
        assert rendered(confusion_figure(matrix, [str(k) for k in range(classes)])).size > (200, 200)
    many = np.random.default_rng(0).random((100, 60, 2)).astype(np.float32)
    found = errors_by_time(many, np.tile([1, 2], (100, 1)), truth_of(np.arange(100) % 60, 60))
    # No more than forty classes have a line.
    assert len(class_figure(found, [str(k) for k in range(60)]).axes[0].get_yticks()) == 40
