"""`bigain bench --tune`: the fastest settings of a network on one device, found one option at a time."""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import torch

from bigain.backbones.compilation import Compile, compile_denoiser
from bigain.backbones.geometry import with_denoiser
from bigain.commands.bench.measure import Entrant, compiling, race
from bigain.commands.bench.subject import Subject, failure
from bigain.compressors import Compressor
from bigain.errors import InputError

# A setting that is faster by less is not taken.
GAIN = 1.02


@dataclass(frozen=True)
class Settings:
    """The settings of a trial.

    Attributes:
        rows: Of a forward.
        channels_last: Memory format of convolutions.
        cuda_graph: Whether forwards are replayed from CUDA graphs.
        compile: What torch compiles.
    """

    rows: int
    channels_last: bool = False
    cuda_graph: bool = False
    compile: Compile = "none"

    def __str__(self) -> str:
        options = "".join(f", {name}" for name in ("channels_last", "cuda_graph") if getattr(self, name))
        return f"{self.rows} rows{options}{'' if self.compile == 'none' else f', compile {self.compile}'}"

    def yaml(self) -> str:
        """Return the settings as a configuration to pass after another one."""
        return (
            "model:\n"
            "  backbone:\n"
            f"    channels_last: {str(self.channels_last).lower()}  # changes last digits\n"
            f"    cuda_graph: {str(self.cuda_graph).lower()}\n"
            f"    compile: {self.compile}  # changes last digits\n"
            f"  rows_per_forward: {self.rows}  # changes last digits on a GPU; items_per_forward in generation\n"
        )


class Trial:
    """A network that runs with some settings, and its speed.

    Attributes:
        settings: The settings.
        rows_per_second: Median over rounds; None if they could not run.
        note: Why they were not taken; empty if they were.
        base: Network and inputs, without hooks and not compiled.
        subject: A copy with hooks and compiled code.
        undo: Removes its hooks.
    """

    rows_per_second: float | None = None
    note: str = ""

    def __init__(self, settings: Settings, base: Subject, compressor: Compressor | None) -> None:
        self.settings, self.base, self.subject, self.undo = settings, base, base.twin(), ExitStack()
        if compressor is not None:
            self.undo.enter_context(compressor.applied_to(self.subject.backbone.denoiser))
        compile_denoiser(self.subject.backbone.denoiser, settings.compile)


@torch.inference_mode()
def tune(subject: Subject, compressor: Compressor | None, repetitions: int) -> list[Trial]:
    """Find the fastest settings; progress goes to stderr.

    Rows are doubled until memory runs out or rows/s do not grow; then each further option is tried with the best
    settings so far, in turns with them.

    Args:
        subject: Network and inputs with the fewest rows that are tried, contiguous; not changed.
        compressor: Not installed; None without compression.
        repetitions: Rounds of each comparison.

    Returns:
        All trials in order; the last one without a note is the fastest.

    Raises:
        InputError: If the network cannot run with the fewest rows.
    """
    trials: list[Trial] = []
    with compiling("whole"), ExitStack() as undo:

        def is_faster(trial: Trial, *rivals: Trial) -> bool:
            """Run a trial in turns with its rivals, and return whether it is faster than all."""
            trials.append(trial)
            undo.callback(trial.undo.close)
            try:
                seconds = _race([*rivals, trial], repetitions)
            except RuntimeError as error:
                # Out of memory, or torch cannot compile or record it.
                trial.note = failure(error)
            else:
                trial.rows_per_second = trial.settings.rows / statistics.median(seconds[-1])
                for rival in rivals:
                    per_row = trial.settings.rows / rival.settings.rows
                    gain = statistics.median(per_row * a / b for a, b in zip(*seconds, strict=True))
                    if gain < GAIN:
                        trial.note = f"{gain:.3f} of the rows/s of {rival.settings}: not taken"
            speed = "" if trial.rows_per_second is None else f"{trial.rows_per_second:.4g} rows/s"
            sys.stderr.write(f"{trial.settings}: {', '.join(filter(None, (speed, trial.note)))}\n")
            return not trial.note

        def faster_of(best: Trial, base: Subject, **changes: Any) -> Trial:
            trial = Trial(replace(best.settings, **changes), base, compressor)
            winner, loser = (trial, best) if is_faster(trial, best) else (best, trial)
            loser.undo.close()
            # Frees memory: of a trial that lost, only the result is needed.
            del loser.base, loser.subject
            return winner

        best = Trial(Settings(len(subject.noisy)), subject, compressor)
        if not is_faster(best):
            raise InputError(f"the network cannot run: {best.note}")
        previous = None
        while best is not previous:
            previous, best = best, faster_of(best, _doubled(best.base), rows=2 * best.settings.rows)
        best = faster_of(best, _channels_last(best.base), channels_last=True)
        best = faster_of(best, replace(best.base, cuda_graph=True), cuda_graph=True)
        for how in ("regional", "whole"):
            best = faster_of(best, replace(best.base, cuda_graph=False), cuda_graph=False, compile=how)
    return trials


def _race(trials: Sequence[Trial], repetitions: int) -> list[list[float]]:
    """Return the seconds of a forward of each in every round."""
    entrants = [Entrant(trial.subject) for trial in trials]
    for entrant in entrants:
        entrant.subject.first_forward()
    with redirect_stderr(StringIO()):
        race(entrants, repetitions)
    return [entrant.seconds for entrant in entrants]


def _doubled(subject: Subject) -> Subject:
    noisy, timesteps, condition = (torch.cat([x, x]) for x in (subject.noisy, subject.timesteps, subject.condition))
    return replace(subject, noisy=noisy, timesteps=timesteps, condition=condition)


def _channels_last(subject: Subject) -> Subject:
    denoiser = copy.deepcopy(subject.backbone.denoiser)
    denoiser.to(memory_format=torch.channels_last)
    noisy = subject.noisy.contiguous(memory_format=torch.channels_last)
    return replace(subject, backbone=with_denoiser(subject.backbone, denoiser), noisy=noisy)
