"""Decide whether torch or a Triton kernel computes an operator.

The environment variable `BIGAIN_KERNELS` is `auto` (kernels on CUDA where Triton can compile for the GPU, torch
elsewhere), `torch`, or `triton` (kernels on CUDA, and on a CPU with `TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from shutil import which

import torch
from torch import Tensor

from bigain.errors import InputError

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One program holds a row's keys; more take minutes to compile, or do not fit into shared memory.
_MAX_TOKENS = 2**14

_INSTALLED = find_spec("triton") is not None

# Since `forget_notes`: whether kernels ran, and why torch computed in their place.
_kernels_used: set[str] = set()
_torch_reasons: set[str] = set()


def kernels_serve(x: Tensor, unsupported: str = "") -> bool:
    """Return whether kernels compute with these tokens; where torch computes instead, `kernels_note` says why.

    Args:
        x: Tokens. `(b, n, c)`.
        unsupported: The part of the request that no kernel computes, in words; empty if there is none.

    Raises:
        InputError: If `BIGAIN_KERNELS` is invalid or asks for kernels where there are none.
    """
    if not _kernels_enabled(x.device.type):
        return False
    # A bool rather than the number of tokens, which compiled code may not know.
    too_many = True if x.shape[1] > _MAX_TOKENS else False  # noqa: SIM210
    return _kernels_support(x.dtype, too_many, x.requires_grad and torch.is_grad_enabled(), unsupported)


# Compiled code keeps the answers and notes from when it was traced.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _kernels_support(dtype: torch.dtype, too_many: bool, gradients: bool, unsupported: str) -> bool:
    if unsupported:
        needs_torch(unsupported)
    elif gradients:
        needs_torch("gradients")
    elif dtype not in _DTYPES:
        needs_torch(str(dtype).removeprefix("torch."))
    elif too_many:
        needs_torch(f"more than {_MAX_TOKENS} tokens")
    else:
        _kernels_used.add("triton")
        return True
    return False


def needs_torch(reason: str) -> None:
    """Note that torch computes this although kernels are on."""
    _torch_reasons.add(reason)


def kernels_note() -> str:
    """Return what computed the operators since `forget_notes`: `torch`, `triton` or `triton; torch for ...`."""
    note = "triton" if _kernels_used else "torch"
    return f"{note}; torch for {', '.join(sorted(_torch_reasons))}" if _torch_reasons else note


def forget_notes() -> None:
    """Begin the notes of a new run."""
    _kernels_used.clear()
    _torch_reasons.clear()


@cache
def _triton_problem() -> str:
    """Return why Triton cannot compile for the current GPU; empty if it can."""
    if not _INSTALLED:
        return "triton is not installed"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    # Triton compiles the launcher of each kernel with it.
    has_compiler = any(which(program) for program in (os.environ.get("CC", ""), "cc", "gcc", "clang"))
    return "" if has_compiler else "there is no C compiler"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _kernels_enabled(device: str) -> bool:
    switch = os.environ.get("BIGAIN_KERNELS", "auto")
    if device == "meta" or (switch == "auto" and device == "cpu"):
        return False
    if switch not in ("auto", "torch", "triton"):
        raise InputError(f"the environment variable BIGAIN_KERNELS must be auto, torch or triton, not {switch!r}")
    if switch == "auto" and device == "cuda" and _triton_problem():
        needs_torch(f"everything, as {_triton_problem()}")
    if switch != "triton":
        return switch == "auto" and device == "cuda" and not _triton_problem()
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not _INSTALLED or not (device == "cuda" or interpreted):
        advice = "on a CPU set TRITON_INTERPRET=1 as well (slow, for tests)" if _INSTALLED else "install triton"
        raise InputError(f"BIGAIN_KERNELS=triton, but there are no kernels on {device}; {advice}")
    return True
