"""Rounds in which every method runs once, and separate forwards for its own work and memory."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bigain.backbones.compilation import Compile, compile_denoiser
from bigain.backbones.marks import PHASES, Phase, marks_reported_to
from bigain.commands.bench.subject import Subject
from bigain.compressors import Compressor
from bigain.cost.memory import peak_memory, restart_peak
from bigain.cost.spans import Spans
from bigain.errors import InputError

# Forwards that measure a compressor's phases and memory; their time does not count.
_OBSERVED = 3
# A shorter measurement (seconds) drowns in the noise of the machine; a round repeats short forwards, up to a limit.
_LONG_ENOUGH, _MOST_FORWARDS = 0.1, 20


@dataclass(eq=False)
class Times:
    """The measurements of one method.

    Attributes:
        name: For messages.
        seconds: Of one forward, one per round.
        reference: Without compression, in the same rounds.
        phases: Median seconds of the compressor's own work by phase; None for compiled code.
        peak_memory: Bytes, of torch's tensors on a GPU and of the process on a CPU; None where unknown.
        forwards: In a round, one after the other.
        error: Why it could not be measured; None if it was.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    phases: dict[Phase, float] | None = None
    peak_memory: int | None = None
    forwards: int = 1
    error: str | None = None


@dataclass
class _Entrant:
    times: Times
    subject: Subject
    plain: bool = False


@torch.inference_mode()
def measure(
    subject: Subject,
    compressors: Sequence[tuple[str, Compressor]],
    repetitions: int,
    how: Compile,
    tell: Callable[[str], None],
) -> list[Times]:
    """Time a network without compression and with each compressor.

    Args:
        subject: Network and inputs; not changed.
        compressors: Name and compressor.
        repetitions: Rounds that count.
        how: What torch compiles. Compiled methods run in pairs with the network without compression, one pair after
            the other: the code of many would share one cache and slow each other down.
        tell: Called with a line per round.

    Returns:
        The network without compression first, from the first pair; then one per compressor.

    Raises:
        InputError: If the network without compression cannot run.
    """
    groups = [list(compressors)] if how == "none" else [[pair] for pair in compressors] or [[]]
    times: list[Times] = []
    for group in groups:
        with ExitStack() as undo:
            undo.enter_context(_compiling(how))
            entrants = [_Entrant(Times("none"), subject.twin(), plain=True)]
            for name, compressor in group:
                entrants.append(_Entrant(Times(name), subject.twin()))
                # Before compiling: hooks that come after the first compiled call are never called.
                undo.enter_context(compressor.applied_to(entrants[-1].subject.backbone.denoiser))
            for entrant in entrants:
                compile_denoiser(entrant.subject.backbone.denoiser, how)
            _warm_up(entrants, tell)
            _race(entrants, repetitions, tell)
            for entrant in entrants:
                if entrant.times.error is None:
                    _observe(entrant, how)
        times += [entrant.times for entrant in entrants[1 if times else 0 :]]
    return times


def _warm_up(entrants: Sequence[_Entrant], tell: Callable[[str], None]) -> None:
    """Run the first forwards, and check that every compressor changes the output."""
    plain = None
    for entrant in entrants:
        output = _forward(entrant)
        if plain is None:
            plain = output
        elif output is not None and torch.equal(output, plain):
            entrant.times.error = "its output equals that of the network without compression: it has no effect"
        tell(f"warm-up: {entrant.times.name}")


def _forward(entrant: _Entrant) -> Tensor | None:
    """Run one forward; if it fails, keep the error and return None. Without compression, a failure is fatal."""
    try:
        return entrant.subject.forward()
    except RuntimeError as error:
        # Out of memory, or torch cannot compile it; other methods may still run.
        entrant.times.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if entrant.plain:
            raise InputError(f"the network without compression cannot run: {entrant.times.error}") from error
        return None


def _race(entrants: Sequence[_Entrant], repetitions: int, tell: Callable[[str], None]) -> None:
    spans = Spans(entrants[0].subject.noisy.device)
    forwards = _enough(entrants[0], spans)
    for number in range(1, repetitions + 1):
        racing = [place for place, entrant in enumerate(entrants) if entrant.times.error is None]
        # In changing order, since a forward finds the caches of the previous one.
        for place in random.Random(number).sample(racing, len(racing)):
            with spans.span(str(place)):
                for _ in range(forwards):
                    _forward(entrants[place])
        seconds = {entrants[int(place)].times: total / forwards for place, total in sorted(spans.settle().items())}
        text = ", ".join(f"{times.name} {value:.3f} s" for times, value in seconds.items())
        tell(f"round {number} of {repetitions}: {text}")
        for times, value in seconds.items():
            times.forwards = forwards
            times.seconds.append(value)
            times.reference.append(seconds[entrants[0].times])


def _enough(entrant: _Entrant, spans: Spans) -> int:
    """Return how many forwards take long enough to measure."""
    with spans.span("one"):
        _forward(entrant)
    return min(_MOST_FORWARDS, math.ceil(_LONG_ENOUGH / spans.settle()["one"]))


def _observe(entrant: _Entrant, how: Compile) -> None:
    device = entrant.subject.noisy.device
    spans, seconds = Spans(device), []
    for _ in range(1 if entrant.plain else _OBSERVED):
        restarted = restart_peak(device)
        with ExitStack() as listening:
            if how == "none":
                listening.enter_context(marks_reported_to(lambda name, rows: spans.span(name)))
            entrant.subject.forward()
        seconds.append(spans.settle())
        entrant.times.peak_memory = peak_memory(device) if restarted else None
    if how == "none":
        entrant.times.phases = {
            phase: statistics.median(by_phase.get(phase, 0.0) for by_phase in seconds) for phase in PHASES
        }


@contextmanager
def _compiling(how: Compile) -> Iterator[None]:
    """Drop compiled code at the end of this block; exceeding the recompile limit is an error instead of slow."""
    if how == "none":
        yield
        return
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        try:
            yield
        finally:
            torch._dynamo.reset()
