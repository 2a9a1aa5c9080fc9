"""Seconds of the networks in a run, and the share of the compressor's own work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.backbones.compilation import compiled
from bigain.backbones.cuda_graphs import graphs_of
from bigain.backbones.marks import PHASES, Mark, Network, marks_reported_to
from bigain.cost.attention_kernels import kernels_seen
from bigain.cost.memory import peak_memory, restart_peak
from bigain.cost.spans import Spans
from bigain.tokens.dispatch import forget_notes

# Phases are measured in one forward of this many: on a GPU each phase costs two events.
_EVERY = 8
MEASURED = ("seconds", "clock", "denoiser", "vae", "peak_memory_bytes")


@dataclass
class Measured:
    """The measurements of one process.

    Attributes:
        clock: Name of the clock; None if nothing could be measured.
        compiled: How much of the denoiser is compiled.
        forwards: Timed forwards of each network.
        rows: Rows of each network in these forwards.
        seconds: Seconds of each network in these forwards.
        observed: Forwards of the denoiser whose phases were measured.
        observed_seconds: Seconds of the denoiser in these, phases included.
        phases: Seconds of each phase in these.
        largest: Rows of the largest forward of the denoiser.
        kernels: Attention kernels.
        peak_memory: Bytes.
    """

    clock: str | None = None
    compiled: str = "none"
    forwards: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    observed: int = 0
    observed_seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    largest: int = 0
    kernels: set[str] = field(default_factory=set)
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
        self._begun: Counter[str] = Counter()
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
        measured = self.measured
        # The module has already waited for its device to return records.
        seconds = self._spans.settle()
        seconds.pop("onlooker", None)
        observed = {name: seconds.pop(name, 0.0) for name in (*PHASES, "observed")}
        for phase in PHASES:
            measured.phases[phase] = measured.phases.get(phase, 0.0) + observed[phase]
        measured.observed_seconds += sum(observed.values())
        seconds["denoiser"] = seconds.get("denoiser", 0.0) + sum(observed.values())
        for network, taken in seconds.items():
            measured.seconds[network] = measured.seconds.get(network, 0.0) + taken

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
        measured, first = self.measured, not self._begun[network]
        graphs = graphs_of(self._denoiser) if network == "denoiser" else None
        eager_denoiser = network == "denoiser" and measured.compiled == "none"
        self._begun[network] += 1
        if self._begun[network] <= self.warmup:
            with kernels_seen() if first and eager_denoiser else nullcontext(measured.kernels) as measured.kernels:
                yield
            return
        ended, before = self._spans.ended, _programs(measured.compiled)
        replays = 0 if graphs is None else graphs.replays
        # Compiled code has no phases, nor has a replay.
        self._observing = observed = eager_denoiser and graphs is None and measured.forwards[network] % _EVERY == 0
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
        measured.forwards[network] += 1
        measured.rows[network] += rows
        measured.observed += observed
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
    peaks = [process.peak_memory for process in processes if process.peak_memory is not None]
    rates = [
        process.rows["denoiser"] / process.seconds["denoiser"] for process in processes if process.forwards["denoiser"]
    ]
    observed = sum(process.observed_seconds for process in processes)
    phases = {phase: sum(process.phases.get(phase, 0.0) for process in processes) for phase in PHASES}
    return {
        "clock": processes[0].clock,
        "denoiser": {
            **_network(processes, "denoiser"),
            "rows_per_second": sum(rates) if rates else None,
            "rows_per_forward": max(process.largest for process in processes) or None,
            "observed_forwards": sum(process.observed for process in processes),
            "matching_share": sum(phases.values()) / observed if observed else None,
            "shares": {phase: seconds / observed if observed else None for phase, seconds in phases.items()},
        },
        "vae": {"encoder": _network(processes, "encoder"), "decoder": _network(processes, "decoder")},
        "peak_memory_bytes": max(peaks, default=None),
    }


def _network(processes: Sequence[Measured], network: Network) -> dict[str, Any]:
    seconds = sum(process.seconds.get(network, 0.0) for process in processes)
    rows = sum(process.rows[network] for process in processes)
    return {
        "forwards": sum(process.forwards[network] for process in processes),
        "rows": rows,
        "seconds": seconds,
        "seconds_per_row": seconds / rows if rows else None,
    }
