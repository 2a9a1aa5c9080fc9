"""Trials of each stage against the protocol in plain loops; noise and timesteps as functions of identity alone."""

import math
from itertools import combinations

import pytest
import torch

from bigain.diffusion.trials import stage_trials, trial_grid, trial_keys, trial_noise, uniform_timesteps
from bigain.tokens.randomness import stable_hash

BUDGETS = [[1], [20], [5, 20], [1, 20], [5, 20, 100], [3, 7, 11], [4, 6, 9, 13], [2, 3, 4], [7, 8], [10, 1000]]
PINNED_KEYS = [[-2108307701561078893, -4942848611692187515], [5134339174845662803, -3197810113884566904]]
PINNED_TIMESTEPS = [372, 4, 159, 242]
PINNED_NOISE = [[0.26869189739227295, -0.5231478214263916], [1.4325110912322998, 1.7045484781265259]]
every_budget = pytest.mark.parametrize("budgets", BUDGETS, ids=str)


def stages_by_loop(budgets, budget):
    """Protocol, section 1, item 4."""
    grid, done, stages = list(range(budgets[-1])), [], []
    for n in budgets:
        step = len(grid) // n
        candidates = [j for j in grid[step // 2 :: step][:n] if j not in done]
        if budget == "cumulative":
            k = n - len(done)
            candidates = [candidates[math.floor((j + 0.5) * len(candidates) / k)] for j in range(k)]
        done += candidates
        stages.append(candidates)
    return stages


def keys_of(images, trials, seed=0):
    """One key per (image, trial). `(images, trials)`."""
    hashes = torch.tensor([stable_hash(image) for image in images])
    return trial_keys(hashes[:, None], torch.tensor(trials)[None], seed)


@pytest.mark.parametrize(
    ("trials", "timesteps"),
    [(1, [500]), (3, [166, 499, 832]), (20, [*range(25, 1000, 50)]), (600, [*range(600)]), (1000, [*range(1000)])],
)
def test_the_grid(trials, timesteps):
    assert trial_grid(trials) == timesteps


@every_budget
@pytest.mark.parametrize("budget", ["cumulative", "released"])
def test_stages_equal_the_protocol(budgets, budget):
    assert stage_trials(budgets, budget) == stages_by_loop(budgets, budget)


@pytest.mark.parametrize("size", range(1, 8))
def test_stages_are_disjoint_and_end_with_every_trial(size):
    for count in range(size):
        for head in combinations(range(1, size), count):
            budgets = [*head, size]
            for budget in ("cumulative", "released"):
                stages = stage_trials(budgets, budget)
                assert sorted(j for stage in stages for j in stage) == list(range(size))
            totals = [sum(map(len, stage_trials(budgets)[: i + 1])) for i in range(len(budgets))]
            assert totals == budgets


@pytest.mark.parametrize("budgets", [[], [0, 5], [5, 5], [5, 20, 19], [5, 1001]], ids=str)
def test_budgets_ascend_to_at_most_as_many_trials_as_timesteps(budgets):
    with pytest.raises(ValueError, match=r"ascending positive integers|1000 timesteps, not 1001"):
        stage_trials(budgets)


def test_keys_timesteps_and_noise_are_pinned():
    """A change of these changes every published number."""
    keys = keys_of(["test/000000", "images/Abyssinian_201.jpg"], [0, 19], seed=3)
    assert keys.tolist() == PINNED_KEYS
    assert uniform_timesteps(keys.flatten()).tolist() == PINNED_TIMESTEPS
    expected = torch.tensor(PINNED_NOISE)
    torch.testing.assert_close(trial_noise(keys[:, 0], (2,)), expected, rtol=0, atol=1e-6)
