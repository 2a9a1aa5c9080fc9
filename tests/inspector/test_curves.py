"""Curves against plain loops over images, trials and classes."""

import numpy as np
import pytest

from bigain.inspector.curves import class_figure, confusion_figure, errors_by_time, survival, truth_of

N, K, T = 7, 5, 4


def stored(seed=0):
    generator = np.random.default_rng(seed)
    errors = generator.random((N, K, T)).astype(np.float32)
    # As after an elimination: the last trials have few classes.
    errors[:, 2:, 2:] = np.nan
    errors[3, :, 1] = np.nan
    label = generator.integers(0, K, N)
    return errors, np.tile(np.array([100, 300, 500, 700]), (N, 1)), label


def by_loops(errors, timesteps, truth):
    """timestep -> (errors of true class and rivals, true classes), image by image."""
    expected = {}
    for i in range(N):
        trials = [t for t in range(T) if np.isfinite(errors[i, :, t]).all()]
        wrong = [k for k in range(K) if not truth[i, k]]
        true = [k for k in range(K) if truth[i, k]]
        wrong.sort(key=lambda k: np.mean([float(errors[i, k, t]) for t in trials]))
        for t in trials:
            of_true = float(np.mean([float(errors[i, k, t]) for k in true]))
            rivals = [float(errors[i, k, t]) for k in wrong[:3]]
            expected.setdefault(int(timesteps[i, t]), []).append((of_true, rivals, true))
    return expected


def curves_of(errors, timesteps, truth, block=N):
    return errors_by_time(lambda: [errors[i : i + block] for i in range(0, len(errors), block)], timesteps, truth)


@pytest.mark.parametrize("block", [1, 2, N])
def test_curves_are_means_over_images_and_complete_trials(block):
    errors, timesteps, label = stored()
    truth = truth_of(label, K)
    result, expected = curves_of(errors, timesteps, truth, block), by_loops(errors, timesteps, truth)
    assert result.timesteps.tolist() == sorted(expected) == [100, 300]
    assert result.images == N
    for u, t in enumerate(sorted(expected)):
        assert result.true[u] == pytest.approx(np.mean([image[0] for image in expected[t]]))
        assert result.rivals[:, u] == pytest.approx(np.mean([image[1] for image in expected[t]], 0))
        for k in range(K):
            margins = [image[1][0] - image[0] for image in expected[t] if k in image[2]]
            assert result.by_class[k, u] == pytest.approx(np.mean(margins) if margins else np.nan, nan_ok=True)


def test_images_with_several_labels_and_without():
    errors, timesteps, _ = stored()
    truth = np.zeros((N, K), bool)
    truth[0, [1, 2]] = truth[1, 0] = True
    result = curves_of(errors[:, :, :2], timesteps[:, :2], truth)
    assert result.images == 2
    assert result.true[0] == pytest.approx(np.mean([errors[0, [1, 2], 0].mean(), errors[1, 0, 0]]))
    assert curves_of(errors, timesteps, np.zeros((N, K), bool)) is None
    assert curves_of(np.full_like(errors, np.nan), timesteps, truth) is None


def test_timesteps_that_differ_between_images_are_put_into_bands():
    errors = np.random.default_rng(0).random((400, 3, 2)).astype(np.float32)
    timesteps = np.random.default_rng(1).integers(0, 1000, (400, 2))
    result = curves_of(errors, timesteps, truth_of(np.zeros(400, int), 3))
    assert result.timesteps.tolist() == [25.0 + 50 * band for band in range(20)]
    assert result.true[0] == pytest.approx(errors[:, 0][timesteps < 50].mean())


def test_survival_is_the_share_of_true_classes_after_each_stage():
    stage = np.array([[2, 1, 0], [0, 2, 1], [1, 2, 0], [0, 2, 1]])
    assert survival(stage, truth_of(np.array([0, 2, 0, 0]), 3), 2).tolist() == [1, 0.75, 0.25]


@pytest.mark.parametrize("classes", [2, 30, 60])
def test_figures_name_at_most_forty_classes(classes):
    errors = np.random.default_rng(0).random((100, classes, 2)).astype(np.float32)
    result = curves_of(errors, np.tile([1, 2], (100, 1)), truth_of(np.arange(100) % classes, classes))
    names = [f"class {k} with a very long name, $_{k}$" for k in range(classes)]
    assert len(class_figure(result, names).axes[0].get_yticks()) == min(classes, 40)
    confusion_figure(np.eye(classes, dtype=int).tolist(), names).canvas.draw()
