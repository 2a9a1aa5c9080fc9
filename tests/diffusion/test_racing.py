"""The race: against a loop with scipy's t, its error level by simulation, and what may not matter."""

import math

import pytest
import torch
from scipy import stats

from bigain.diffusion import racing
from bigain.diffusion.racing import Race, contenders, race_elimination
from bigain.diffusion.trials import keys_of_trials, random_order
from bigain.errors import InputError

CASES = {
    "usual": (16, 20, Race()),
    "rare-looks": (9, 12, Race(0.2, first_trials=3, look_every=4)),
    "two-classes": (2, 8, Race(0.5)),
    "one-class": (1, 5, Race()),
    "fewer-trials-than-the-first-look": (4, 1, Race(first_trials=3)),
    "one-look-before-the-last": (5, 3, Race(0.3)),
}
every_case = pytest.mark.parametrize(("classes", "trials", "race"), CASES.values(), ids=CASES.keys())


def orders(images, trials, seed=0):
    return random_order(keys_of_trials([f"image/{i}" for i in range(images)], trials, seed))


def table_of(images, classes, trials, seed=0, spread=0.3, levels=None):
    """Errors whose classes differ by about as much as their noise; few levels make ties frequent."""
    draw = torch.Generator().manual_seed(seed)
    shape = (images, classes, trials)
    if levels:
        return torch.randint(1, 1 + levels, shape, generator=draw).float()
    means = spread * torch.randn(shape[:2], generator=draw)[..., None]
    return (means + 0.2 * torch.randn(shape, generator=draw)).exp()


def run(table, order, race):
    calls = []

    def errors_of(image, trial, label):
        assert image.dtype == trial.dtype == label.dtype == torch.int64
        calls.append((image, trial, label))
        return table[image[:, None], label, trial[:, None]]

    return race_elimination(errors_of, order, table.shape[1], race), calls


def survivors_of(result, i):
    """Survivors of one image after each look that it took part in."""
    rows = [[label for label in look[i].tolist() if label >= 0] for look in result.survivors]
    return [row for row in rows if row]


def race_by_loop(table, order, race):
    """One image in plain Python: survivors after each look, the prediction, and the evaluated (class, trial) pairs."""
    classes, trials = len(table), len(order)
    looks = race.looks(trials)
    shares = sum(1 / i for i in range(1, len(looks)))
    alive, done, history, evaluated = list(range(classes)), 0, [], set()
    for i, look in enumerate(looks, 1):
        evaluated |= {(k, j) for k in alive for j in order[done:look]}
        done = look
        if look < trials:
            level = race.error_level / max(1, classes - 1) / shares / i
            alive = _left(table, alive, order[:look], level, trials)
        else:
            alive = [min(alive, key=lambda k: (sum(table[k]) / trials, k))]
        history.append(alive)
        if len(alive) == 1:
            break
    return history, alive[0], evaluated


def _left(table, alive, seen, level, trials):
    y = {k: [math.log(table[k][j]) for j in seen] for k in alive}
    m, n = len(seen), len(alive)
    mean = {k: sum(y[k]) / m for k in alive}
    trial = [sum(y[k][j] for k in alive) / n for j in range(m)]
    grand = sum(trial) / m
    squares = sum((y[k][j] - mean[k] - trial[j] + grand) ** 2 for k in alive for j in range(m))
    freedom = max(1, (n - 1) * (m - 1))
    reach = stats.t.isf(level, freedom) * math.sqrt(2 * squares / freedom / m * (1 - m / trials))
    lead = min(mean.values())
    # Equal but for rounding is a tie.
    return [k for k in alive if mean[k] - lead <= reach + 1e-12]


@every_case
@pytest.mark.parametrize("levels", [None, 2], ids=["no-ties", "ties"])
def test_equals_a_loop(classes, trials, race, levels):
    images = 6
    for seed in range(4):
        table, order = table_of(images, classes, trials, seed, levels=levels), orders(images, trials, seed)
        result, _ = run(table, order, race)
        assert result.prediction.dtype == torch.int64
        assert result.errors.dtype == torch.float32
        for i in range(images):
            history, prediction, evaluated = race_by_loop(table[i].tolist(), order[i].tolist(), race)
            assert survivors_of(result, i) == history
            assert int(result.prediction[i]) == prediction
            seen = (~result.errors[i].isnan()).nonzero().tolist()
            assert {(k, j) for k, j in seen} == evaluated
            assert all(result.errors[i, k, j] == table[i, k, j] for k, j in seen)


@pytest.mark.parametrize("at_once", [5, 4096])
def test_pairs_are_asked_for_once_in_an_order_that_depends_on_the_look_alone(monkeypatch, at_once):
    monkeypatch.setattr(racing, "_ROWS", at_once)
    race, table, order = Race(look_every=3), table_of(4, 6, 14), orders(4, 14)
    result, calls = run(table, order, race)
    _, trial, label = calls[0]
    assert label.shape == (8, 6)
    assert trial.tolist() == order[:, :2].flatten().tolist()
    assert all(len(label) <= at_once and label.shape[1] == 1 for _, _, label in calls[1:])
    pairs = [
        (i, k, j)
        for image, trial, label in calls
        for i, j, of_pair in zip(image.tolist(), trial.tolist(), label.tolist(), strict=True)
        for k in of_pair
    ]
    assert len(set(pairs)) == len(pairs)
    assert sorted(pairs) == sorted(map(tuple, (~result.errors.isnan()).nonzero().tolist()))


@pytest.mark.parametrize("change", ["alike", "timesteps-differ", "one-leads-late"])
def test_the_error_level_holds(change):
    """Nearly tied classes, the hardest case; the best is the one with the lowest mean over all trials."""
    images, classes, trials = 3000, (2 if change == "one-leads-late" else 8), 20
    noise = torch.randn((images, classes, trials), generator=torch.Generator().manual_seed(3))
    if change == "timesteps-differ":
        noise *= torch.linspace(0.3, 3, trials)
    if change == "one-leads-late":
        # Whoever trusts the first timesteps is wrong.
        noise[:, 0] += torch.linspace(2, -2.5, trials)
    # So small that errors and their logarithms rise and fall alike.
    table = (1e-3 * noise).exp()
    best = table.double().mean(2).argmin(1)
    for level in (0.05, 0.3):
        result, _ = run(table, orders(images, trials), Race(level))
        lost = int((result.prediction != best).sum())
        # Not more than the level allows, by a test at one in a million.
        assert stats.binom.sf(lost - 1, images, level) > 1e-6
    assert lost > 0
    if change == "one-leads-late":
        ascending, _ = run(table, torch.arange(trials).expand(images, -1), Race(0.3))
        assert int((ascending.prediction != best).sum()) > 0.5 * images


def test_a_class_whose_error_is_not_finite_is_out():
    table = table_of(3, 5, 20, spread=0)
    table[0, 2] = math.inf
    table[1, 2] = math.nan
    table[2] = math.inf
    result, _ = run(table, orders(3, 20), Race())
    assert [survivors_of(result, i)[0] for i in range(3)] == [[0, 1, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]]
    assert result.prediction.tolist()[2] == 0


def test_logarithms_are_compared_whatever_the_size_of_the_errors():
    x = torch.randn((4, 6, 5), dtype=torch.float64)
    alive = torch.ones((4, 6), dtype=torch.bool)
    expected = contenders(x.exp(), alive, 0.05, 20)
    assert torch.equal(contenders(1e-6 * x.exp() * torch.rand((4, 1, 5)), alive, 0.05, 20), expected)
    # No error at all is no logarithm of 0.
    assert contenders(torch.zeros(1, 2, 3), alive[:1, :2], 0.05, 20).all()


def test_looks():
    assert Race().looks(5) == [2, 3, 4, 5]
    assert Race(first_trials=3, look_every=4).looks(20) == [3, 7, 11, 15, 19, 20]
    assert Race(first_trials=4).looks(4) == Race(first_trials=9).looks(4) == [4]
    assert Race(first_trials=3, look_every=4).stages([5, 0, 4, 1, 3, 2]) == [[5, 0, 4], [1, 3, 2]]


def test_levels_add_up_to_the_error_level():
    levels = Race(0.05).levels(16, 20)
    assert len(levels) == 18
    assert 15 * sum(levels) == pytest.approx(0.05)
    assert levels[0] == pytest.approx(2 * levels[1]) == pytest.approx(18 * levels[17])
    assert Race().levels(1, 3) == pytest.approx([0.1])
    assert Race(first_trials=3).levels(5, 3) == []


def test_orders_are_permutations_of_their_own_that_seed_and_image_decide():
    drawn = orders(200, 20)
    assert torch.equal(drawn.sort(1).values, torch.arange(20).expand(200, -1))
    assert torch.equal(drawn, orders(200, 20))
    assert torch.equal(drawn[5:6], random_order(keys_of_trials(["image/5"], 20, 0)))
    assert not torch.equal(drawn, orders(200, 20, seed=1))
    # Every trial comes first equally often: 10 of 200 each, and no more often than chance has it.
    assert torch.bincount(drawn[:, 0], minlength=20).max() < 25


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"error_level": 0}, "above 0 and at most 0.5, not 0"),
        ({"error_level": 0.6}, "at most 0.5, not 0.6"),
        ({"error_level": math.nan}, "not nan"),
        ({"first_trials": 1}, "at least 2 .* not 1 and 1"),
        ({"look_every": 0}, "at least 1, not 2 and 0"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Race(**settings)
