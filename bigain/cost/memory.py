"""The most memory that was in use: what torch held of a GPU, or this process of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Sets the high-water mark of resident memory back: see proc(5).
_RESET_PEAK = "5"


def restart_peak(device: torch.device) -> bool:
    """Forget the peak so far.

    Returns:
        Whether that can be done here; on a CPU, on Linux alone.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return device.type == "cpu"


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak since `restart_peak`, or of the whole process; None where nobody tells.

    Args:
        device: A GPU, of which torch's own tensors count; or the CPU, where everything in the process does.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    if _STATUS.is_file():
        line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return None if line is None else int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # there is none on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
