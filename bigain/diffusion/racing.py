"""A race of the classes: classes that a test of paired differences rules out are not evaluated further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from bigain.diffusion.elimination import Elimination, ErrorFunction, mean_errors
from bigain.errors import InputError
from bigain.tokens.precision import widest_float

_TINY = torch.finfo(torch.float32).tiny
# Rows per call; each has its own copy of a latent.
_ROWS = 4096


@dataclass(frozen=True)
class Race:
    """The rule by which a class leaves a race.

    Source: racing by paired tests, Maron and Moore, Hoeffding Races (NeurIPS 1993) and Birattari et al., A Racing
    Algorithm (GECCO 2002); here with one variance for all classes, and for a finite number of trials.

    Attributes:
        error_level: Largest probability per image that the class with the lowest mean over all trials is dropped, under
            the assumptions of docs/race.md; see `levels`. In (0, 0.5].
        first_trials: Trials of every class before the first look, at least 2.
        look_every: Trials of the survivors between looks.
    """

    error_level: float = 0.1
    first_trials: int = 2
    look_every: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.error_level <= 0.5:
            raise InputError(f"error_level must be above 0 and at most 0.5, not {self.error_level}")
        if self.first_trials < 2 or self.look_every < 1:
            values = f"{self.first_trials} and {self.look_every}"
            raise InputError(f"first_trials must be at least 2 and look_every at least 1, not {values}")

    def looks(self, trials: int) -> list[int]:
        """Return the number of trials at each look; the last is all trials."""
        return [*range(min(self.first_trials, trials), trials, self.look_every), trials]

    def levels(self, classes: int, trials: int) -> list[float]:
        """Return the test level at each look but the last: the error level split over looks and rivals (Bonferroni).

        The i-th look gets a share of 1 / i: early looks save the most, because many classes are still evaluated.
        """
        count = len(self.looks(trials)) - 1
        total = max(1, classes - 1) * sum(1 / i for i in range(1, count + 1))
        return [self.error_level / total / i for i in range(1, count + 1)]

    def stages(self, order: Sequence[int]) -> list[list[int]]:
        """Return the new trials of each look for an image with this order of trials."""
        ends = self.looks(len(order))
        return [list(order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def race_elimination(error_function: ErrorFunction, order: Tensor, classes: int, race: Race) -> Elimination:
    """Evaluate the survivors on more trials until one is left, or all trials are done.

    The first call has all classes of every image and trial. In later calls images have different numbers of survivors,
    and every row is one (image, class, trial).

    Args:
        error_function: See `staged_elimination`.
        order: Trials of each image in evaluation order, drawn uniformly at random. `(b, t)`, int64.
        classes: Number of classes k.
        race: When a class is dropped.

    Returns:
        Errors; survivors after each look, of the images that took part in it; predictions: the only survivor, or after
        all trials the one with the lowest mean error, the lower class index on ties.
    """
    images, trials = order.shape
    device = order.device
    levels = race.levels(classes, trials)
    errors = torch.full((images, classes, trials), torch.nan, device=device, dtype=torch.float32)
    alive = torch.ones((images, classes), device=device, dtype=torch.bool)
    running = torch.arange(images, device=device)
    history, done = [], 0
    for i, look in enumerate(race.looks(trials)):
        _evaluate(error_function, errors, alive, order, running, slice(done, look))
        if look < trials:
            seen = errors[running].gather(2, order[running, None, :look].expand(-1, classes, -1))
            alive[running] = contenders(seen, alive[running], levels[i], trials)
        else:
            alive[running] = _best(errors[running], alive[running])
        history.append(_survivors(alive, running))
        running = running[alive[running].sum(1) > 1]
        done = look
        if not len(running):
            break
    return Elimination(errors, tuple(history), alive.int().argmax(1))


def contenders(errors: Tensor, alive: Tensor, level: float, trials: int) -> Tensor:
    """Mark the classes that may still be the best.

    Logarithms of errors are compared, since the spread of errors changes more with the timestep. A two-way layout of
    class and trial, whose residuals give one variance for all classes; t-tests against the leader.
    The trials seen are m of T, without replacement, which shrinks the variance of a mean by `1 - m / T` (Cochran,
    Sampling Techniques, 1977, eq. 2.8).

    Args:
        errors: Errors of the trials seen; those of other classes are ignored. `(b, k, m)`, m at least 2.
        alive: Classes to compare. `(b, k)`, bool.
        level: Level of each one-sided test.
        trials: Total number of trials T.

    Returns:
        `(b, k)`, bool; always includes the leader. A class with an error that is not finite is dropped, unless all
        classes have one.
    """
    m = errors.shape[2]
    errors = errors.to(widest_float(errors.device))
    is_valid = alive & errors.isfinite().all(2)
    values = errors.clamp_min(_TINY).log().masked_fill(~is_valid[..., None], 0)
    count = is_valid.sum(1)
    mean = values.mean(2)
    residual = (values - mean[..., None]).masked_fill(~is_valid[..., None], 0)
    trial_effect = residual.sum(1, keepdim=True) / count.clamp_min(1)[:, None, None]
    squares = (residual - trial_effect).square().masked_fill(~is_valid[..., None], 0).sum((1, 2))
    freedom = ((count - 1) * (m - 1)).clamp_min(1)
    deviation = (2 * squares / freedom / m * (1 - m / trials)).sqrt()
    # The value that Student's t exceeds with probability `level`.
    quantiles = -stdtrit(freedom.numpy(force=True), level)
    threshold = deviation * torch.tensor(quantiles, device=errors.device, dtype=deviation.dtype)
    mean = mean.masked_fill(~is_valid, torch.inf)
    lowest = mean.min(1, keepdim=True).values
    return torch.where(count[:, None] > 0, is_valid & (mean - lowest <= threshold[:, None]), alive)


def _evaluate(
    error_function: ErrorFunction, errors: Tensor, alive: Tensor, order: Tensor, running: Tensor, new_trials: slice
) -> None:
    """Evaluate the survivors of the running images on their next trials, and store the errors."""
    classes = alive.shape[1]
    if not new_trials.start:
        image = running.repeat_interleave(new_trials.stop)
        trial = order[:, new_trials].flatten()
        label = torch.arange(classes, device=order.device).expand(len(image), classes)
        errors[image[:, None], label, trial[:, None]] = error_function(image, trial, label)
        return
    survivors = alive[running, None].expand(-1, new_trials.stop - new_trials.start, -1)
    for rows in survivors.nonzero().split(_ROWS):
        image, label = running[rows[:, 0]], rows[:, 2]
        trial = order[image, new_trials.start + rows[:, 1]]
        errors[image, label, trial] = error_function(image, trial, label[:, None])[:, 0]


def _best(errors: Tensor, alive: Tensor) -> Tensor:
    """Mark the survivor with the lowest mean error. `(b, k, t)`, `(b, k)` -> `(b, k)`, bool."""
    score = mean_errors(errors).masked_fill(~alive, torch.inf)
    # A survivor without a finite mean still beats dropped classes.
    is_best = alive & (score == score.min(1, keepdim=True).values)
    best = torch.where(is_best.any(1, keepdim=True), is_best, alive).int().argmax(1, keepdim=True)
    return torch.zeros_like(alive).scatter(1, best, value=True)


def _survivors(alive: Tensor, running: Tensor) -> Tensor:
    """List the survivors of the running images, ascending, padded with -1. `(b, k)` bool -> `(b, s)` int64."""
    is_survivor = torch.zeros_like(alive)
    is_survivor[running] = alive[running]
    count = is_survivor.sum(1, keepdim=True)
    first = (~is_survivor).int().argsort(dim=1, stable=True)[:, : int(count.max())]
    return first.masked_fill(torch.arange(first.shape[1], device=alive.device) >= count, -1)
