"""How long the denoiser takes in a run, and how much of that is the compressor's own work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.backbones.compilation import compiled
from bigain.backbones.marks import PHASES, Mark, Network, marks_reported_to
from bigain.cost.attention_kernels import kernels_seen
from bigain.cost.memory import peak_memory, restart_peak
from bigain.cost.spans import Spans

# A compressor's phases are looked at in one forward of so many: on a GPU each takes two events.
_EVERY = 8
MEASURED = ("seconds", "clock", "denoiser", "vae", "peak_memory_bytes")


@dataclass
class Measured:
    """What one process measured.

    Attributes:
        clock: What measured; None if nothing could.
        compiled: How much of the denoiser is compiled.
        forwards: Of each network, those that were timed.
        rows: Of each network, in those forwards.
        seconds: Of each network, in those forwards.
        observed: Forwards of the denoiser in which phases were looked at.
        observed_seconds: Of the denoiser in these, phases included.
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

    The first forwards of each network warm up and are not counted. Nothing is kept from an earlier session of a resumed
    run. `results.json` gets what `timing_section` makes of it.
    """

    def __init__(self, warmup: int = 3) -> None:
        """Set the callback up.

        Args:
            warmup: Forwards of each network, of each process, that do not count.
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
        restart_peak(self._device)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._spans.clock is not None:
            # Not earlier: a module may compile when prediction starts, and callbacks start before it.
            self.measured.compiled = compiled(pl_module.backbone.denoiser)  # type: ignore[union-attr, arg-type]
            self._open.enter_context(marks_reported_to(self._marked))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()
        found = self.measured
        # By now the module has waited for its device, to hand out records.
        seconds = self._spans.settle()
        seconds.pop("onlooker", None)
        for phase in PHASES:
            found.phases[phase] = found.phases.get(phase, 0.0) + (taken := seconds.pop(phase, 0.0))
            found.observed_seconds += taken
            seconds["denoiser"] = seconds.get("denoiser", 0.0) + taken
        found.observed_seconds += (observed := seconds.pop("observed", 0.0))
        seconds["denoiser"] += observed
        for network, taken in seconds.items():
            found.seconds[network] = found.seconds.get(network, 0.0) + taken

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measured.peak_memory = peak_memory(self._device)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.close()

    def _marked(self, name: Mark, rows: int) -> AbstractContextManager[None]:
        if name in ("denoiser", "encoder", "decoder"):
            return self._forward(name, rows)
        # The time of an inner span does not count for the outer one.
        return self._spans.span(name) if self._observing or name == "onlooker" else nullcontext()

    @contextmanager
    def _forward(self, network: Network, rows: int) -> Iterator[None]:
        found, first = self.measured, not self._begun[network]
        self._begun[network] += 1
        if self._begun[network] <= self.warmup:
            with ExitStack() as watching:
                if first and network == "denoiser" and found.compiled == "none":
                    found.kernels = watching.enter_context(kernels_seen())
                yield
            return
        denoising = network == "denoiser"
        ended, graphs = self._spans.ended, _graphs(found.compiled)
        # What is compiled has no phases any more.
        observed = denoising and found.compiled == "none" and found.forwards[network] % _EVERY == 0
        self._observing = observed
        try:
            with self._spans.span("observed" if observed else network):
                yield
        finally:
            self._observing = False
        if _graphs(found.compiled) != graphs:
            # Code was compiled anew, for hooks that came or went or rows of another number.
            self._spans.forget(ended)
            return
        found.forwards[network] += 1
        found.rows[network] += rows
        found.observed += observed
        found.largest = max(found.largest, rows if denoising else 0)


def _graphs(compiled: str) -> int:
    """How many graphs torch has compiled so far in this process; 0 where it compiles nothing."""
    if compiled == "none":
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def measured_by(trainer: Trainer) -> Measured:
    """What the `Timing` of a trainer measured in this process; nothing where there is none."""
    callbacks: Sequence[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.measured for callback in callbacks if isinstance(callback, Timing)), Measured())


def timing_section(processes: Sequence[Measured]) -> dict[str, Any]:
    """What `results.json` tells of the measurements, with None for what was not measured.

    Rows per second are those of all processes together; seconds per row are of one device.
    """
    peaks = [process.peak_memory for process in processes if process.peak_memory is not None]
    rates = [one.rows["denoiser"] / one.seconds["denoiser"] for one in processes if one.forwards["denoiser"]]
    denoiser = _network(processes, "denoiser")
    observed = sum(process.observed_seconds for process in processes)
    phases = {phase: sum(process.phases.get(phase, 0.0) for process in processes) for phase in PHASES}
    return {
        "clock": processes[0].clock,
        "denoiser": {
            **denoiser,
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
