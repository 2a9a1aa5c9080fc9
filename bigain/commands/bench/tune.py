"""`bigain bench --tune`: the fastest settings of a network on one device, each option tried alone."""

from __future__ import annotations

import copy
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from bigain.backbones.compilation import Compile, compile_denoiser
from bigain.backbones.geometry import with_denoiser
from bigain.commands.bench.measure import compiling
from bigain.commands.bench.subject import Subject, failure
from bigain.compressors import Compressor
from bigain.cost.spans import Spans
from bigain.errors import InputError

# Rows are doubled until rows/s grow by less.
_GROWTH = 1.02


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


def tune(subject: Subject, compressor: Compressor | None, repetitions: int) -> dict[Settings, float | str]:
    """Time a network with different settings; progress goes to stderr.

    Rows are doubled until memory runs out or rows/s do not grow. With the rows before that, each option is tried alone.

    Args:
        subject: Network and inputs with the fewest rows that are tried, contiguous; not changed.
        compressor: Not installed; None without compression.
        repetitions: Timed forwards of each trial.

    Returns:
        Rows/s by settings, or why they could not run.

    Raises:
        InputError: If the network cannot run with the fewest rows.
    """
    results: dict[Settings, float | str] = {}

    def speed(settings: Settings) -> float:
        result = results[settings] = rows_per_second(subject, settings, compressor, repetitions)
        sys.stderr.write(f"{settings}: {result if isinstance(result, str) else f'{result:.4g} rows/s'}\n")
        return 0.0 if isinstance(result, str) else result

    plain = Settings(len(subject.noisy))
    fastest = speed(plain)
    if not fastest:
        raise InputError(f"the network cannot run: {results[plain]}")
    while (faster := speed(doubled := replace(plain, rows=2 * plain.rows))) >= _GROWTH * fastest:
        plain, fastest = doubled, faster
    speed(replace(plain, channels_last=True))
    speed(replace(plain, cuda_graph=True))
    speed(replace(plain, compile="regional"))
    speed(replace(plain, compile="whole"))
    return results


@torch.inference_mode()
def rows_per_second(
    subject: Subject, settings: Settings, compressor: Compressor | None, repetitions: int
) -> float | str:
    """Return the rows/s of a network, from the median time of its forwards, or why it could not run.

    The first forward is not timed. `settings.rows` is a multiple of the rows of `subject`, which is contiguous.
    """
    spans, seconds = Spans(subject.noisy.device), []
    with compiling(settings.compile), ExitStack() as undo:
        try:
            trial = _with_settings(subject, settings)
            denoiser = trial.backbone.denoiser
            if compressor is not None:
                undo.enter_context(compressor.applied_to(denoiser))
            compile_denoiser(denoiser, settings.compile)
            trial.first_forward()
            for _ in range(repetitions):
                with spans.span("forward"):
                    trial.forward()
                seconds.append(spans.settle()["forward"])
        except RuntimeError as error:
            # Out of memory, or torch cannot compile or record it.
            return failure(error)
    return settings.rows / statistics.median(seconds)


def _with_settings(subject: Subject, settings: Settings) -> Subject:
    """Return a copy with the rows, the memory format and the graphs of settings; it shares the weights if it can."""
    copies = settings.rows // len(subject.noisy)
    noisy, timesteps, condition = (
        torch.cat([x] * copies) for x in (subject.noisy, subject.timesteps, subject.condition)
    )
    backbone = subject.backbone
    if settings.channels_last:
        denoiser = copy.deepcopy(backbone.denoiser)
        denoiser.to(memory_format=torch.channels_last)
        backbone, noisy = with_denoiser(backbone, denoiser), noisy.contiguous(memory_format=torch.channels_last)
    trial = replace(subject, backbone=backbone, noisy=noisy, timesteps=timesteps, condition=condition)
    return replace(trial, cuda_graph=settings.cuda_graph).twin()
