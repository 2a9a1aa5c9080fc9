"""Rounds in which every method runs once, and separate forwards for its own work and memory."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigain.backbones.compilation import Compile, compile_denoiser
from bigain.backbones.marks import PHASES, Phase, marks_reported_to
from bigain.commands.bench.limit import limit_of
from bigain.commands.bench.subject import Subject, failure
from bigain.commands.configs import find_config
from bigain.commands.parsing import create, options_of
from bigain.compressors import ABM, IEKVD, LGTM, Compressor
from bigain.cost.flops import Flops
from bigain.cost.memory import peak_memory, restart_peak
from bigain.cost.spans import Spans
from bigain.errors import InputError
from bigain.runs.summary import compressor_text

# Forwards that measure a compressor's phases and memory; their time does not count.
_OBSERVED_FORWARDS = 3
# Seconds under which the noise of the machine dominates: a round repeats shorter forwards, up to a limit.
_MIN_SECONDS, _MAX_FORWARDS = 0.1, 20
# No percentage is given of a limit above this ratio: it would divide noise by almost nothing.
_MAX_LIMIT_RATIO = 0.99
# Rounds that are run whatever the time limit.
_MIN_ROUNDS = 3


def spread(values: Sequence[float], factor: float = 1.0) -> dict[str, float]:
    """Return `median`, `low` and `high` of at least one value, times a positive factor."""
    scaled = [factor * value for value in values]
    return {"median": statistics.median(scaled), "low": min(scaled), "high": max(scaled)}


@dataclass(eq=False)
class Entrant:
    """A network without compression or with one compressor, and its measurements.

    Attributes:
        subject: Network and inputs.
        compressor: None without compression.
        seconds: Seconds of one forward, one value per round.
        reference: Those without compression, in the same rounds.
        limit: The same number of tokens kept by a decision that costs nothing, in the same rounds; None without
            compression, or for a compressor of a family of its own.
        phases: Median seconds of the compressor's own work by phase; None for compiled code and graphs.
        peak_memory: Bytes, of torch's tensors on a GPU and of the process on a CPU; None where unknown.
        forwards: Number of forwards in a round, one after the other.
        error: Why it could not be measured; None if it was.
    """

    subject: Subject
    compressor: Compressor | None = None
    seconds: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    limit: Entrant | None = None
    phases: dict[Phase, float] | None = None
    peak_memory: int | None = None
    forwards: int = 1
    error: str | None = None

    @property
    def name(self) -> str:
        """The compressor and its main settings, or `none`."""
        return "none" if self.compressor is None else compressor_text(self.compressor.description())

    @property
    def ratios(self) -> list[float]:
        """Time of each round divided by that without compression."""
        return [a / b for a, b in zip(self.seconds, self.reference, strict=True)]

    def row(self, flops: Flops, baseline: Flops) -> dict[str, Any]:
        """Return the numbers of `--json`: milliseconds, GFLOPs of one row, bytes.

        Ratios are of times in the same round. The realised percentage of the promised saving is
        `100 * (1 - ratio) / (1 - promised)`, negative if slower, None if nothing is promised. The percentage of the
        limit is that with the median ratio of the limit instead, None if even the limit saves less than 1 %.
        """
        promised, measured = flops.total / baseline.total, self.error is None
        limit = spread(self.limit.ratios) if measured and self.limit and self.limit.error is None else None
        phases = self.phases if measured else None

        def percent_of(best_ratio: float) -> dict[str, float]:
            return spread([100 * (1 - ratio) / (1 - best_ratio) for ratio in self.ratios])

        row = {
            "method": self.name,
            "milliseconds": spread(self.seconds, 1e3) if measured else None,
            "ratio": spread(self.ratios) if measured else None,
            "promised_ratio": promised,
            "realised_percent": percent_of(promised) if measured and promised < 1 else None,
            "limit_ratio": limit,
            "of_limit_percent": percent_of(limit["median"]) if limit and limit["median"] < _MAX_LIMIT_RATIO else None,
            "limit_error": self.limit and self.limit.error,
            "gflops": flops.total / 1e9,
            "overhead_milliseconds": phases and {name: 1e3 * seconds for name, seconds in phases.items()},
            "peak_memory_bytes": self.peak_memory,
            "error": self.error,
        }
        return row | (self.compressor.description() if self.compressor else {})


def compressors_of(options: Sequence[str]) -> list[Compressor]:
    """Create the compressors of a command line; the options after each `--compressor` are its arguments.

    Raises:
        InputError: If there is an option before any compressor, or a compressor is invalid.
    """
    groups: list[list[str]] = []
    for option, *values in options_of(options)[1]:
        name = option.partition("=")[0]
        if name == "--compressor":
            groups.append([])
        elif not name.startswith("--compressor."):
            raise InputError(f"unrecognized option {name}; see bigain bench --help")
        elif not groups:
            raise InputError(f"{option} comes before any --compressor, whose argument it is; give --compressor C first")
        groups[-1] += [option, *values]
    compressors = []
    for group in groups:
        compressor = create(Compressor, "compressor", find_config(group), "bigain bench")  # type: ignore[type-abstract]
        if compressor is None:
            raise InputError("no compression is always measured; give --compressor a class or a file, or leave it out")
        compressors.append(compressor)
    return compressors or [LGTM(ratio=0.7), ABM(ratio=0.7), IEKVD(factor=2)]


@torch.inference_mode()
def measure(subject: Subject, compressors: Sequence[Compressor], repetitions: int, how: Compile) -> list[Entrant]:
    """Time a network without compression and with each compressor; progress goes to stderr.

    Args:
        subject: Network and inputs; not changed.
        compressors: Not installed.
        repetitions: Rounds that count.
        how: What torch compiles. Compiled methods run in pairs with the network without compression, one pair after
            the other: the code of many would share one cache and slow each other down.

    Returns:
        The network without compression first, from the first pair; then one per compressor.

    Raises:
        InputError: If the network without compression cannot run.
    """
    measured: list[Entrant] = []
    for group in [compressors] if how == "none" else [[compressor] for compressor in compressors]:
        with ExitStack() as undo:
            undo.enter_context(compiling(how))
            # Before compiling: hooks that come after the first compiled call are never called.
            entrants, limits = enter(subject, group, undo)
            running = [*entrants, *limits]
            for entrant in running:
                compile_denoiser(entrant.subject.backbone.denoiser, how)
            warm_up(running)
            race(running, repetitions)
            for entrant in entrants:
                if entrant.error is None:
                    _observe(entrant, how)
        measured += entrants[1 if measured else 0 :]
    return measured


def enter(subject: Subject, compressors: Sequence[Compressor], undo: ExitStack) -> tuple[list[Entrant], list[Entrant]]:
    """Install compressors on copies of a network, and their limits on further ones, until `undo` closes.

    Returns:
        The network without compression and one entrant per compressor; and the limits, each shared by the compressors
        that keep as many tokens at the same sites.
    """
    entrants = [Entrant(subject.twin(), compressor) for compressor in (None, *compressors)]
    limits: dict[Any, Entrant] = {}
    for entrant, compressor in zip(entrants[1:], compressors, strict=True):
        if limit := limit_of(compressor, subject.backbone.denoiser, subject.noisy):
            entrant.limit = limits.setdefault(limit[0], Entrant(subject.twin(), limit[1]))
    for entrant in (*entrants[1:], *limits.values()):
        undo.enter_context(entrant.compressor.applied_to(entrant.subject.backbone.denoiser))  # type: ignore[union-attr]
    return entrants, list(limits.values())


def warm_up(entrants: Sequence[Entrant]) -> None:
    """Run the first forwards, and check that every compressor changes the output."""
    plain = None
    for entrant in entrants:
        output = _forward(entrant, first=True)
        if plain is None:
            plain = output
        elif output is not None and torch.equal(output, plain):
            entrant.error = "its output equals that of the network without compression: it has no effect"
        sys.stderr.write(f"warm-up: {entrant.name}\n")


def _forward(entrant: Entrant, first: bool = False) -> Tensor | None:
    """Run one forward; if it fails, keep the error and return None. Without compression, a failure is fatal."""
    try:
        return entrant.subject.first_forward() if first else entrant.subject.forward()
    except RuntimeError as error:
        # Out of memory, or torch cannot compile it; other methods may still run.
        entrant.error = failure(error)
        if entrant.compressor is None:
            raise InputError(f"the network without compression cannot run: {entrant.error}") from error
        return None


def race(entrants: Sequence[Entrant], repetitions: int, most_seconds: float = math.inf) -> None:
    """Time one forward of each in every round, in changing order; progress goes to stderr.

    Args:
        entrants: The first is the reference of all. Those with an error do not take part.
        repetitions: Rounds.
        most_seconds: No round begins later than this, but for the first few.
    """
    start = time.perf_counter()
    spans = Spans(entrants[0].subject.noisy.device)
    with spans.span("0"):
        _forward(entrants[0])
    forwards = min(_MAX_FORWARDS, math.ceil(_MIN_SECONDS / spans.settle()["0"]))
    for number in range(1, repetitions + 1):
        if number > _MIN_ROUNDS and time.perf_counter() > start + most_seconds:
            break
        racing = [index for index, entrant in enumerate(entrants) if entrant.error is None]
        # In changing order, since a forward finds the caches of the previous one.
        for index in random.Random(number).sample(racing, len(racing)):
            with spans.span(str(index)):
                for _ in range(forwards):
                    _forward(entrants[index])
        seconds = {entrants[int(index)]: total / forwards for index, total in sorted(spans.settle().items())}
        text = ", ".join(f"{entrant.name} {value:.3f} s" for entrant, value in seconds.items())
        sys.stderr.write(f"round {number} of {repetitions}: {text}\n")
        for entrant, value in seconds.items():
            entrant.forwards = forwards
            entrant.seconds.append(value)
            entrant.reference.append(seconds[entrants[0]])


def _observe(entrant: Entrant, how: Compile) -> None:
    device = entrant.subject.noisy.device
    spans, seconds = Spans(device), []
    has_phases = how == "none" and not entrant.subject.cuda_graph
    for _ in range(1 if entrant.compressor is None else _OBSERVED_FORWARDS):
        restarted = restart_peak(device)
        with ExitStack() as listening:
            if has_phases:
                listening.enter_context(marks_reported_to(lambda name, rows: spans.span(name)))
            entrant.subject.forward()
        seconds.append(spans.settle())
        entrant.peak_memory = peak_memory(device) if restarted else None
    if has_phases:
        entrant.phases = {phase: statistics.median(phases.get(phase, 0.0) for phases in seconds) for phase in PHASES}


@contextmanager
def compiling(how: Compile) -> Iterator[None]:
    """Drop compiled code at the end of this block; exceeding the recompile limit is an error."""
    if how == "none":
        yield
        return
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        try:
            yield
        finally:
            torch._dynamo.reset()
