"""Seconds of the networks in a run, and the share of the compressor's own work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.backbones.compilation import compiled
from bigain.backbones.cuda_graphs import graphs_of
from bigain.backbones.marks import PHASES, Mark, Network, marks_reported_to
from bigain.cost.memory import peak_memory, restart_peak
from bigain.cost.spans import Spans
from bigain.tokens.dispatch import forget_notes

# Phases are measured in one of this many forwards: on a GPU each phase costs two events.
_PERIOD = 8
# Spans of an observed forward of the denoiser: its phases, and the rest.
OBSERVED = (*PHASES, "observed")


@dataclass
class Measured:
    """The measurements of one process.

    Attributes:
        clock: Name of the clock; None if nothing could be measured.
        compiled: How much of the denoiser is compiled.
        forwards: Timed forwards of each network; `observed`: those of the denoiser whose phases were measured.
        rows: Rows of each network in the timed forwards.
        seconds: Seconds of each network in these; of each phase, and of the rest of the forward, in the `observed`.
        largest: Rows of the largest forward of the denoiser.
        peak_memory: Bytes.
    """

    clock: str | None = None
    compiled: str = "none"
    forwards: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    largest: int = 0
    peak_memory: int | None = None


class Timing(Callback):
    """Times every forward of the networks during predict batches, without waiting for a GPU.

    The first forwards of each network warm up and are not counted, nor are those of earlier sessions of a resumed run.
    `timing_section` formats the measurements for `results.json`.
    """

    def __init__(self, warmup: int = 3) -> None:
        """Set the callback up.

        Args:
            warmup: Forwards of each network in each process that do not count.
        """
        self.warmup = warmup
        self.measured = Measured()
        self._open = ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = pl_module.device
        self._spans = Spans(self._device)
        self.measured = Measured(self._spans.clock)
        self._forwards: Counter[str] = Counter()
        self._observing = False
        forget_notes()
        restart_peak(self._device)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._spans.clock is not None:
            # Not earlier: a module may compile when prediction starts, after its callbacks.
            module: Any = pl_module
            self._denoiser = module.backbone.denoiser
            self.measured.compiled = compiled(self._denoiser)
            self._open.enter_context(marks_reported_to(self._measure))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()
        # The module has already waited for its device to return records.
        for name, seconds in self._spans.settle().items():
            self.measured.seconds[name] += seconds
            if name in OBSERVED:
                self.measured.seconds["denoiser"] += seconds

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measured.peak_memory = peak_memory(self._device)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.close()

    def _measure(self, name: Mark, rows: int) -> AbstractContextManager[None]:
        if name in ("denoiser", "encoder", "decoder"):
            return self._forward(name, rows)
        # The time of an onlooker is taken out of the span around it.
        return self._spans.span(name) if self._observing or name == "onlooker" else nullcontext()

    @contextmanager
    def _forward(self, network: Network, rows: int) -> Iterator[None]:
        measured = self.measured
        graphs = graphs_of(self._denoiser) if network == "denoiser" else None
        eager_denoiser = network == "denoiser" and measured.compiled == "none"
        self._forwards[network] += 1
        if self._forwards[network] <= self.warmup:
            yield
            return
        ended, before = self._spans.ended, _programs(measured.compiled)
        replays = 0 if graphs is None else graphs.replays
        # Compiled code has no phases, nor has a replay.
        self._observing = observed = eager_denoiser and graphs is None and measured.forwards[network] % _PERIOD == 0
        try:
            with self._spans.span("observed" if observed else network):
                yield
        finally:
            self._observing = False
        if _programs(measured.compiled) != before or (graphs is not None and graphs.replays == replays):
            # This forward compiled code or recorded a graph, for different hooks or a different number of rows; or it
            # ran without a graph, because an onlooker watched.
            self._spans.forget(ended)
            return
        measured.forwards.update([network, "observed"] if observed else [network])
        measured.rows[network] += rows
        measured.largest = max(measured.largest, rows if network == "denoiser" else 0)


def _programs(compiled: str) -> int:
    """Return how many programs torch has compiled in this process; 0 if the network is not compiled."""
    if compiled == "none":
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def measured_by(trainer: Trainer) -> Measured:
    """Return the measurements of a trainer's `Timing` in this process; empty ones without it."""
    callbacks: Sequence[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.measured for callback in callbacks if isinstance(callback, Timing)), Measured())


def timing_section(processes: Sequence[Measured]) -> dict[str, Any]:
    """Format the measurements for `results.json`, with None for what was not measured.

    Rows per second are those of all processes together; seconds per row are of one device.
    """
    timed = [process for process in processes if process.forwards["denoiser"]]
    peaks = [process.peak_memory for process in processes if process.peak_memory is not None]

    def network(name: Network) -> dict[str, Any]:
        seconds = sum(process.seconds[name] for process in processes)
        rows = sum(process.rows[name] for process in processes)
        forwards = sum(process.forwards[name] for process in processes)
        per_row = seconds / rows if rows else None
        return {"forwards": forwards, "rows": rows, "seconds": seconds, "seconds_per_row": per_row}

    phase_seconds = {name: sum(process.seconds[name] for process in processes) for name in OBSERVED}
    total = sum(phase_seconds.values())
    return {
        "clock": processes[0].clock,
        "denoiser": {
            **network("denoiser"),
            "rows_per_second": sum(p.rows["denoiser"] / p.seconds["denoiser"] for p in timed) or None,
            "rows_per_forward": max(process.largest for process in processes) or None,
            "observed_forwards": sum(process.forwards["observed"] for process in processes),
            "matching_share": sum(phase_seconds[phase] for phase in PHASES) / total if total else None,
            "shares": {phase: phase_seconds[phase] / total if total else None for phase in PHASES},
        },
        "vae": {"encoder": network("encoder"), "decoder": network("decoder")},
        "peak_memory_bytes": max(peaks, default=None),
    }
