"""What a result depends on besides its configuration."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch import Trainer

_PACKAGES = ("bigain", "torch", "lightning", "diffusers", "transformers", "torchmetrics", "torchvision", "numpy")


def environment(trainer: Trainer, device: torch.device, denoiser: torch.nn.Module) -> dict[str, object]:
    """Device, precision, versions and git commit of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "world_size": trainer.world_size,
        "cpu_threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "network_dtype": str(next(denoiser.parameters()).dtype),
        "attention_backend": _attention_backend(device, denoiser),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _attention_backend(device: torch.device, denoiser: torch.nn.Module) -> str:
    """Attention processors of the network and, on a GPU, the kernels that torch may choose among."""
    processors = {type(module.processor).__name__ for module in denoiser.modules() if hasattr(module, "processor")}
    used = ", ".join(sorted(processors))
    if device.type != "cuda":
        return used
    cuda = torch.backends.cuda
    enabled = {"flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled()}
    enabled["math"] = cuda.math_sdp_enabled()
    return f"{used}: {', '.join(kind for kind, on in enabled.items() if on)}"


def _git_commit() -> str | None:
    """Commit of the source tree, `-dirty` if files were changed since; None outside one."""
    tree = Path(__file__).parents[2]
    if _git(tree, "rev-parse", "--show-toplevel") != str(tree.resolve()):
        # Installed into some other project's environment: its commit says nothing about us.
        return None
    commit = _git(tree, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git(tree, "status", "--porcelain", "--untracked-files=no") else commit


def _git(tree: Path, *command: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(tree), *command], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
