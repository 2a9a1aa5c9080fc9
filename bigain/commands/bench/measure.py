"""Rounds in which every method runs once, and a look at its own work and memory apart from them."""

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

# Forwards in which a compressor's phases and memory are looked at; their time does not count.
_OBSERVED = 3
# Seconds; shorter ones are as long as what else the machine does meanwhile.
_LONG_ENOUGH, _MOST_FORWARDS = 0.1, 20


@dataclass(eq=False)
class Times:
    """What was measured of one method.

    Attributes:
        name: For messages.
        seconds: Of one forward, one per round.
        reference: Without compression, in the same rounds.
        phases: Median seconds of the compressor's own work by phase; None where it cannot be told, in compiled code.
        peak_memory: Bytes, of torch's tensors on a GPU and of the process on a CPU; None where nobody tells.
        forwards: In a round, one after the other.
        error: Why there is nothing; None where there is.
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
        subject: Network and inputs; it stays as it is.
        compressors: With a name each.
        repetitions: Rounds that count.
        how: What torch compiles. Compiled methods run in pairs with the network without compression, one pair after
            the other: the code of many would share one cache and slow each other down.
        tell: Is given a line per round.

    Returns:
        First that without compression, of the first pair; then one per compressor.

    Raises:
        InputError: If the network without compression cannot run.
    """
    groups = [list(compressors)] if how == "none" else [[one] for one in compressors] or [[]]
    found: list[Times] = []
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
        found += [entrant.times for entrant in entrants[1 if found else 0 :]]
    return found


def _warm_up(entrants: Sequence[_Entrant], tell: Callable[[str], None]) -> None:
    """First forwards, and whether they compute what they should."""
    plain = None
    for entrant in entrants:
        output = _forward(entrant)
        if plain is None:
            plain = output
        elif output is not None and torch.equal(output, plain):
            entrant.times.error = "its output is that of the network without compression: it does not act"
        tell(f"warm-up: {entrant.times.name}")


def _forward(entrant: _Entrant) -> Tensor | None:
    """One forward; None, and an error to tell, if it cannot run. Without compression, that ends everything."""
    try:
        return entrant.subject.forward()
    except RuntimeError as error:
        # Memory that ran out, or what torch cannot compile; the others may still run.
        entrant.times.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if entrant.plain:
            raise InputError(f"the network without compression cannot run: {entrant.times.error}") from error
        return None


def _race(entrants: Sequence[_Entrant], repetitions: int, tell: Callable[[str], None]) -> None:
    spans = Spans(entrants[0].subject.noisy.device)
    forwards = _enough(entrants[0], spans)
    for number in range(1, repetitions + 1):
        racing = [place for place, entrant in enumerate(entrants) if entrant.times.error is None]
        # Neighbours change too: one forward leaves its caches to the next.
        for place in random.Random(number).sample(racing, len(racing)):
            with spans.span(str(place)):
                for _ in range(forwards):
                    _forward(entrants[place])
        seconds = {entrants[int(place)].times: taken / forwards for place, taken in sorted(spans.settle().items())}
        told = ", ".join(f"{times.name} {taken:.3f} s" for times, taken in seconds.items())
        tell(f"round {number} of {repetitions}: {told}")
        for times, taken in seconds.items():
            times.forwards = forwards
            times.seconds.append(taken)
            times.reference.append(seconds[entrants[0].times])


def _enough(entrant: _Entrant, spans: Spans) -> int:
    """How many forwards of a small network make a time that can be measured."""
    with spans.span("one"):
        _forward(entrant)
    return min(_MOST_FORWARDS, math.ceil(_LONG_ENOUGH / spans.settle()["one"]))


def _observe(entrant: _Entrant, how: Compile) -> None:
    device = entrant.subject.noisy.device
    spans, looks = Spans(device), []
    for _ in range(1 if entrant.plain else _OBSERVED):
        forgotten = restart_peak(device)
        with ExitStack() as watching:
            if how == "none":
                watching.enter_context(marks_reported_to(lambda name, rows: spans.span(name)))
            entrant.subject.forward()
        looks.append(spans.settle())
        entrant.times.peak_memory = peak_memory(device) if forgotten else None
    if how == "none":
        entrant.times.phases = {phase: statistics.median(look.get(phase, 0.0) for look in looks) for phase in PHASES}


@contextmanager
def _compiling(how: Compile) -> Iterator[None]:
    """Compiled code ends with this block, and what torch cannot keep compiled is an error instead of slow."""
    if how == "none":
        yield
        return
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        try:
            yield
        finally:
            torch._dynamo.reset()
