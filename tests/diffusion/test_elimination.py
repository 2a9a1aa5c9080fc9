"""Staged elimination against an exhaustive loop in plain Python."""

import math
import random

import pytest
import torch

from bigain.diffusion.elimination import mean_errors, staged_elimination
from bigain.diffusion.trials import stage_trials

CASES = {
    "pets": (37, stage_trials([5, 20]), [5, 1]),
    "three": (12, stage_trials([2, 5, 9]), [6, 2, 1]),
    "one": (4, [[0, 1, 2]], [1]),
    "keep-larger-than-classes": (3, stage_trials([2, 4]), [5, 1]),
    "keep-all": (6, stage_trials([2, 4]), [6, 1]),
    "one-class": (1, stage_trials([1, 2]), [1, 1]),
    "released": (9, stage_trials([2, 5, 10], "released"), [4, 2, 1]),
    "stage-without-new-trials": (7, stage_trials([2, 3, 4], "released"), [5, 3, 1]),
    "unordered-trials": (5, [[7, 1], [3, 0]], [3, 1]),
}
every_case = pytest.mark.parametrize(("classes", "stages", "keep"), CASES.values(), ids=CASES.keys())


def table_of(images, classes, stages, seed, levels=None):
    """Errors of every (image, class, trial); few levels make ties frequent."""
    draw = random.Random(seed)
    trials = 1 + max(max(stage, default=0) for stage in stages)
    values = [draw.randrange(levels) if levels else draw.random() for _ in range(images * classes * trials)]
    return torch.tensor(values, dtype=torch.float32).view(images, classes, trials)


def eliminate_by_loop(table, stages, keep):
    """One image: survivors of each stage, the prediction, and the evaluated (class, trial) pairs."""
    alive, done, history, evaluated = list(range(len(table))), [], [], set()
    for new, left in zip(stages, keep, strict=True):
        done += new
        evaluated |= {(k, j) for k in alive for j in new}
        means = {k: sum(table[k][j] for j in done) / len(done) for k in alive}
        # Python sorts tuples by mean, then by class.
        ranked = sorted((means[k], k) for k in alive)
        alive = sorted(k for _, k in ranked[:left])
        history.append(alive)
    return history, ranked[0][1], evaluated


def run(table, stages, keep):
    calls = []

    def errors_of(image, trial, label):
        assert image.dtype == label.dtype == trial.dtype == torch.int64
        calls.append(list(zip(image.tolist(), trial.tolist(), label.tolist(), strict=True)))
        return table[image[:, None], label, trial[:, None]]

    return staged_elimination(errors_of, len(table), table.shape[1], stages, keep), calls


@every_case
@pytest.mark.parametrize("levels", [None, 1, 3], ids=["no-ties", "all-tied", "ties"])
@pytest.mark.parametrize("images", [1, 4])
def test_equals_the_exhaustive_loop(classes, stages, keep, levels, images):
    for seed in range(3):
        table = table_of(images, classes, stages, seed, levels)
        result, _ = run(table, stages, keep)
        assert result.prediction.dtype == torch.int64
        assert result.errors.dtype == torch.float32
        for i in range(images):
            survivors, prediction, evaluated = eliminate_by_loop(table[i].tolist(), stages, keep)
            assert [stage[i].tolist() for stage in result.survivors] == survivors
            assert int(result.prediction[i]) == prediction
            seen = (~result.errors[i].isnan()).nonzero().tolist()
            assert {(k, j) for k, j in seen} == evaluated
            assert all(result.errors[i, k, j] == table[i, k, j] for k, j in seen)


@every_case
def test_every_image_and_trial_is_asked_for_once_with_the_classes_alive(classes, stages, keep):
    table = table_of(3, classes, stages, 0)
    result, calls = run(table, stages, keep)
    assert len(calls) == sum(1 for stage in stages if stage)
    alive = [list(range(classes))] * 3
    expected = []
    for new, survivors in zip(stages, result.survivors, strict=True):
        expected.append([(i, j, alive[i]) for i in range(3) for j in new])
        alive = survivors.tolist()
    assert calls == [rows for rows in expected if rows]


def test_a_diverged_class_falls_out():
    result, _ = run(torch.tensor([[[math.inf, 0.0], [1e30, 1e30], [2e30, 0.0]]]), [[0], [1]], [2, 1])
    assert result.survivors[0].tolist() == [[1, 2]]


def test_mean_errors_are_taken_in_float64():
    """In float32 both sums round to 1."""
    small = torch.tensor([[[1.0, 2.0**-30], [1.0, 0.0]]])
    assert mean_errors(small)[0, 0] > mean_errors(small)[0, 1]
