"""What a result depends on besides its configuration."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch import Trainer

_PACKAGES = ("bigain", "torch", "lightning", "diffusers", "transformers", "torchmetrics", "torchvision", "numpy")


def environment(trainer: Trainer, device: torch.device) -> dict[str, object]:
    """Device, precision, versions and git commit of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "attention_backend": _attention_backend(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _attention_backend() -> str:
    cuda = torch.backends.cuda
    enabled = {"flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled()}
    enabled["math"] = cuda.math_sdp_enabled()
    return "sdpa: " + ", ".join(kind for kind, on in enabled.items() if on)


def _git_commit() -> str | None:
    """Commit of the source tree, if this is one."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
