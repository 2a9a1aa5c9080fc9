"""CUDA graphs of a denoiser with hooks: the kernels of a forward, recorded once and then launched together.

Small networks and small batches are bound by launches from Python. The first forward of each kind (shapes, dtypes,
row keys) is recorded with all hooks; later ones copy their inputs to where the recorded kernels read them. No Python
runs in a replay: hooks see the copies that `rows_now()` returned while recording.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, register_dataclass, tree_flatten, tree_unflatten

from bigain.backbones.forward import RowKeys, Sharing, row_keys, rows_now
from bigain.backbones.marks import marks_reported_to
from bigain.backbones.sites import layout_of
from bigain.errors import InputError, out_of_memory
from bigain.tokens.grid import Grid

_log = logging.getLogger(__name__)

# Forwards before a recording: libraries choose kernels, Triton compiles, `share` computes keys of prompts.
_WARM_UP = 2

# Row keys are inputs of a forward; no recorded forward depends on the step.
register_dataclass(RowKeys, drop_field_names=["step"])
register_dataclass(Sharing)

_instances: WeakSet[Graphs] = WeakSet()
# By network, functions that return whether its forwards are watched; then they must run in Python.
_watchers: WeakKeyDictionary[nn.Module, list[Callable[[], bool]]] = WeakKeyDictionary()


def use_graphs(denoiser: nn.Module) -> None:
    """Replay the forwards of a network from CUDA graphs, in place, from the next one on.

    Forwards run as before where that is impossible, which is logged, and while an onlooker watches. Recorded forwards
    do not notice modules that are replaced or hooks that are not a compressor's: call this again after changing them.

    Args:
        denoiser: A network that is not compiled. Its outputs are tuples of tensors.
    """
    # The attribute that `nn.Module.compile` sets; copies of a network do not inherit it.
    denoiser._compiled_call_impl = Graphs(denoiser)


def graphs_of(denoiser: nn.Module) -> Graphs | None:
    """Return the graphs of a network that replays its forwards; None if every forward runs Python."""
    call = getattr(denoiser, "_compiled_call_impl", None)
    used = isinstance(call, Graphs) and not call.refuses(next(denoiser.parameters()).device)
    return call if used else None


def graphs_note(denoiser: nn.Module) -> str:
    """Describe how a network runs for `results.json`: `none`, `3 recorded`, or why there are none."""
    call = getattr(denoiser, "_compiled_call_impl", None)
    return call.note if isinstance(call, Graphs) else "none"


def watch_for(denoiser: nn.Module, watched: Callable[[], bool]) -> Callable[[], None]:
    """Run forwards of a network in Python while `watched()` is true; call the result to stop."""
    watchers = _watchers.setdefault(denoiser, [])
    watchers.append(watched)
    return lambda: watchers.remove(watched)


def forget_graphs() -> None:
    """Discard all graphs, which do not notice added or removed hooks; they are recorded again when networks run."""
    for graphs in _instances:
        graphs.forget()


@dataclass(frozen=True)
class _Graph:
    """A recorded forward: `replay` reads the inputs and overwrites the output."""

    inputs: list[Tensor]
    replay: Callable[[], None]
    output: Sequence[Tensor]


class Graphs:
    """Calls one network: see `use_graphs`.

    Attributes:
        replays: Forwards that were replayed.
    """

    def __init__(self, network: nn.Module) -> None:
        self.replays = 0
        self._network = network
        self._signature = inspect.signature(network.forward)
        self._latent_of = layout_of(network).latent_of
        # Listing the parameters takes longer than launching a small graph.
        self._tensor_dicts = [part for module in network.modules() for part in (module._parameters, module._buffers)]
        self._weights: list[Any] = []
        self._graphs: dict[Any, _Graph] = {}
        self._recorder: Any = None
        self._lock = threading.Lock()
        self._refusal: str | None = None
        _instances.add(self)

    @property
    def note(self) -> str:
        """How many forwards are recorded, or why none is."""
        return f"{len(self._graphs)} recorded" if self._refusal is None else f"none: {self._refusal}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        weight = next(self._network.parameters())
        if torch.is_grad_enabled() and self._refusal is None:
            self._refuse("gradients are enabled")
        if self.refuses(weight.device) or any(watched() for watched in _watchers.get(self._network, ())):
            return self._network._call_impl(*args, **kwargs)
        call = self._signature.bind(*args, **kwargs)
        if isinstance(timestep := call.arguments.get("timestep"), (int, float)):
            # As an input; the network itself would copy the number from the host, which cannot be recorded.
            call.arguments["timestep"] = torch.full((), timestep, device=weight.device, dtype=torch.float32)
        # Some networks take a dictionary of tensors.
        leaves, structure = tree_flatten((call.args, call.kwargs, rows_now()))
        autocast = torch.is_autocast_enabled(weight.device.type) and torch.get_autocast_dtype(weight.device.type)
        state = (torch.is_inference_mode_enabled(), autocast, self._latent(call.arguments), structure)
        key = (*state, *map(_leaf_key, leaves))
        weights = [(t.data_ptr(), t.dtype) for tensors in self._tensor_dicts for t in tensors.values() if t is not None]
        # Threads would overwrite the inputs and outputs of each other.
        with self._lock:
            if weights != self._weights:
                # The graphs read the weights that were replaced.
                self.forget()
                self._weights = weights
            try:
                graph = self._graphs.get(key)
            except TypeError as error:
                self._refuse(f"an argument is neither a tensor nor hashable ({error})")
                return self._network._call_impl(*args, **kwargs)
            if graph is not None:
                self.replays += 1
            elif (graph := self._record(weight.device, leaves, structure)) is None:
                return self._network._call_impl(*args, **kwargs)
            self._graphs[key] = graph
            torch._foreach_copy_(graph.inputs, _tensors(leaves))
            graph.replay()
            # The next replay overwrites the output.
            return tuple(tensor.clone() for tensor in graph.output)

    def _latent(self, arguments: Mapping[str, Any]) -> Grid | None:
        """Return the latent size, which hooks read, if it follows from numbers in tensors rather than their shapes."""
        try:
            return None if self._latent_of is None else self._latent_of(arguments)
        except InputError:
            # Compressors raise it in the forward.
            return None

    def refuses(self, device: torch.device) -> bool:
        """Return whether forwards cannot be replayed and run without graphs; the first time, log why.

        Args:
            device: Of the network.
        """
        if self._refusal is None and device.type not in _RECORDERS:
            self._refuse(f"the network is on {device}")
        return self._refusal is not None

    def forget(self) -> None:
        """Discard the graphs and their memory, and forget why recording was refused."""
        self._graphs.clear()
        self._recorder = self._refusal = None

    def _refuse(self, reason: str) -> None:
        self.forget()
        self._refusal = reason
        _log.warning(f"warning: no CUDA graphs: {reason}")

    def _record(self, device: torch.device, leaves: Sequence[Any], structure: TreeSpec) -> _Graph | None:
        """Record a forward with these arguments and row keys, flat; None if that is impossible."""
        copies = [value.clone() if isinstance(value, Tensor) else value for value in leaves]

        def run() -> Any:
            # A new `Sharing` each time, because a forward may change it.
            args, kwargs, rows = tree_unflatten(copies, structure)
            # Parts of a recording cannot be timed.
            with marks_reported_to(lambda *_: nullcontext()), row_keys(**vars(rows)) if rows else nullcontext():
                return self._network._call_impl(*args, **kwargs)

        inputs, recording = _tensors(copies), False
        try:
            self._recorder = self._recorder or _RECORDERS[device.type](device)
            for _ in range(_WARM_UP):
                self._recorder.run(run)
            recording = True
            graph = _Graph(inputs, *self._recorder.record(run))
            if type(graph.output) is not tuple:
                raise TypeError(f"the network returns a {type(graph.output).__name__}, not a tuple (return_dict=False)")
            return graph
        except Exception as error:
            causes = [error]
            while isinstance(cause := causes[-1].__context__, Exception):
                causes.append(cause)
            if (memory_error := next(filter(out_of_memory, causes), None)) is not None:
                # Frees memory for the smaller forwards that will be tried.
                self.forget()
                raise memory_error from None
            if not recording:
                raise
            # The first exception of the chain says what cannot be recorded.
            self._refuse(" ".join(str(causes[-1]).split())[:300])
            return None


class _CudaRecorder:
    """Records on a stream of its own, into memory that all graphs of a network share: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._memory = torch.cuda.graph_pool_handle()

    def run(self, forward: Callable[[], Any]) -> Any:
        with torch.cuda.device(self._device):
            caller_stream = torch.cuda.current_stream()
            self._stream.wait_stream(caller_stream)
            # Also restores the stream if a recording fails, which `torch.cuda.graph` does not.
            with torch.cuda.stream(self._stream):
                result = forward()
            caller_stream.wait_stream(self._stream)
        return result

    def record(self, forward: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Return what replays a forward, and its output."""
        graph = torch.cuda.CUDAGraph()

        def record() -> Any:
            # Other threads may pin memory meanwhile, as those of data loaders do.
            with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
                return forward()

        return graph.replay, self.run(record)


_RECORDERS: dict[str, type[Any]] = {"cuda": _CudaRecorder}


def _leaf_key(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.stride(), value.dtype, value.device


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
