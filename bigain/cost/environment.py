"""The environment that a result depends on besides its configuration."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from bigain.backbones.compilation import compiled
from bigain.backbones.cuda_graphs import graphs_note
from bigain.tokens.dispatch import kernels_note

_CPUINFO = Path("/proc/cpuinfo")
_PACKAGES = ("bigain", "torch", "lightning", "diffusers", "transformers", "torchmetrics", "torchvision", "numpy")


def environment(trainer: Trainer, device: torch.device, denoiser: torch.nn.Module) -> dict[str, object]:
    """Describe device, precision, versions and git commit of a run, and how attention is computed."""
    return {
        "device": str(device),
        **session(device),
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "network_dtype": str(next(denoiser.parameters()).dtype),
        "attention_backend": attention_backend(device, denoiser),
        "kernels": kernels_note(),
        "compile": compiled(denoiser),
        "cuda_graph": graphs_note(denoiser),
        "git_commit": git_commit(),
    }


def session(device: torch.device) -> dict[str, Any]:
    """Describe what may differ when a run is continued and then changes its last digits."""
    return {
        "device_name": device_name(device),
        "cpu_threads": torch.get_num_threads(),
        "kernels": os.environ.get("BIGAIN_KERNELS", "auto"),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in _PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """Return the model of a GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # On Linux only this file names the processor.
    match = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE) if _CPUINFO.is_file() else None
    return match[1] if match else platform.processor() or platform.machine()


def slow_precision(device: str, precision: str) -> tuple[str, str]:
    """Return why a precision is slow on a kind of device, and a faster one; empty texts if it is not slow."""
    if device == "cuda" and precision.startswith("bf16") and not torch.cuda.is_bf16_supported(False):
        return "slow, this GPU emulates bfloat16", "16-true"
    if device == "cpu" and precision.startswith("16"):
        return "slow, processors compute float16 in software", "32-true"
    # The condition under which torch uses oneDNN: its own convolutions are 70 times slower, its products 6 times.
    has_bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device == "cpu" and precision.startswith("bf16") and not has_bfloat16:
        return "slow, torch has no fast bfloat16 for this processor", "32-true"
    return "", ""


def attention_backend(device: torch.device, denoiser: torch.nn.Module) -> str:
    """Name the attention processors of the network and, on a GPU, the kernels that torch may choose from."""
    processors = {type(module.processor).__name__ for module in denoiser.modules() if hasattr(module, "processor")}
    names = ", ".join(sorted(processors))
    if device.type != "cuda":
        return names
    cuda = torch.backends.cuda
    enabled = {"flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled()}
    enabled |= {"cudnn": cuda.cudnn_sdp_enabled(), "math": cuda.math_sdp_enabled()}
    return f"{names}: any of {', '.join(kind for kind, on in enabled.items() if on)}"


def git_commit() -> str | None:
    """Return the commit of the source tree, with `-dirty` if files were changed; None outside a checkout."""
    tree = Path(__file__).parents[2]
    if _git(tree, "rev-parse", "--show-toplevel") != str(tree.resolve()):
        # Installed inside another project's checkout.
        return None
    commit = _git(tree, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git(tree, "status", "--porcelain", "--untracked-files=no") else commit


def _git(tree: Path, *command: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(tree), *command], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
