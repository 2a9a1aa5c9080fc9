"""A stand-in for CUDA graphs on the CPU: records operators with their tensors, and runs them again without Python."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigain.backbones import cuda_graphs

# What a GPU refuses while it records: reading numbers, sizes that depend on data, copies of numbers from Python.
READING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
SIZES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
COPIES = {"lift_fresh", "lift_fresh_copy"}


class Refusing(TorchDispatchMode):
    """Refuses what waits for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(index.dtype == torch.bool for index in tensors(args[1]))
        if name in READING | SIZES | COPIES or masks or str(function) == "aten.repeat_interleave.Tensor":
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        return function(*args, **(kwargs or {}))


class Recorder(Refusing):
    """Records what a forward does to memory. As in a graph, a replay reads and writes the same addresses."""

    def __init__(self, device):
        super().__init__()
        self.calls = []

    def run(self, forward):
        return forward()

    def record(self, forward):
        self.calls = []
        with self:
            output = forward()
        calls = self.calls

        def replay():
            for function, args, kwargs, results in calls:
                for old, new in zip(results, tensors(function(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)

        return replay, output

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = super().__torch_dispatch__(function, types, args, kwargs)
        self.calls.append((function, args, kwargs or {}, tensors(results)))
        return results


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_RECORDERS", {"cpu": Recorder})
