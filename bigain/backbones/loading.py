"""Find and read diffusers folders: safetensors by default, with errors that say what to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import DDPMScheduler
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from bigain.backbones.hub import no_such_file, read_json, reason
from bigain.errors import InputError

# Trials, grids and schedules are defined on so many.
TIMESTEPS = 1000
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_CONVERT = "Convert it with save_pretrained(..., safe_serialization=True) in an environment you trust"
_BIN = f"{_CONVERT}, or set the backbone's safetensors_only to false, which reads .bin files without running code"
# Other names of the same class: facebook's DiT repositories use the name from before diffusers 0.28.
_SAME = {"DiTTransformer2DModel": ("Transformer2DModel",), "CLIPTokenizer": ("CLIPTokenizerFast",)}
# What the libraries raise on damaged files and unexpected settings.
_UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError),
    *(TypeError, LookupError, AttributeError, ArithmeticError, UnboundLocalError, StrictDataclassError),
)
_DDPM = f"expected a DDPM noise schedule of {TIMESTEPS} timesteps, as Stable Diffusion 1.x and 2.x and DiT have"
_WHY = {"PixArtTransformer2DModel": ": PixArt is conditioned on a text, a DiT on a class index"}


def find_model(model: str) -> str:
    """Resolve a model name to a local folder or the folder of an embedded model; a hub id is returned unchanged."""
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    assets = Path(str(resources.files("bigain"))) / "assets"
    if "/" not in model and (assets / model).is_dir():
        return str(assets / model)
    if "/" not in model or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        shipped = sorted(path.parent.name for path in assets.glob("*/model_index.json"))
        raise InputError(
            f"model {model!r} is not a folder here, not an embedded model ({', '.join(shipped)}) and not a hub id "
            "of the form owner/name"
        )
    return model


def check_index(index: Mapping[str, Any], source: str, parts: Mapping[str, Any], wanted: str) -> None:
    """Check that model_index.json lists the components to load.

    Args:
        index: Its content.
        source: Folder or hub id, for messages.
        parts: Class to load by component.
        wanted: Class of the backbone, for messages.

    Raises:
        InputError: If it lists another kind of model.
    """
    for name, kind in parts.items():
        listed = listed_class(index, name)
        if listed is None:
            others = ", ".join(sorted(other for other in index if listed_class(index, other)))
            raise InputError(f"{source} is not a {wanted} model: it has no {name} (it has {others})")
        _check_class(f"model_index.json of {source}", name, listed, kind)


def listed_class(index: Mapping[str, Any], name: str) -> str | None:
    """Return the class of a component in model_index.json; None if it is not listed."""
    entry = index.get(name)
    return str(entry[1]) if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[0] else None


def component_config(kind: Any, source: str, name: str, local_files_only: bool) -> dict[str, Any]:
    """Read the configuration of a network and check that it is of the class to load.

    Raises:
        InputError: If it cannot be read or is of another class.
    """
    config = read_json(source, f"{name}/config.json", local_files_only)
    saved = config.get("_class_name") or config.get("architectures")
    if saved:
        first = saved[0] if isinstance(saved, list) else saved
        _check_class(f"{name}/config.json of {source}", name, str(first), kind)
    return config


def load_component(
    kind: Any,
    source: str,
    name: str,
    dtype: torch.dtype | None,
    local_files_only: bool,
    safetensors_only: bool = True,
    **options: Any,
) -> Any:
    """Load one component of a diffusers folder through its `from_pretrained`.

    Args:
        kind: Class with `from_pretrained`.
        source: Folder or hub id.
        name: Subfolder.
        dtype: Precision to load in; None is float32.
        local_files_only: Never ask the hub.
        safetensors_only: Refuse `.bin` weights; otherwise the libraries read them with torch's weights-only loader.
        options: Passed on.

    Raises:
        InputError: If it is missing, a pickle, damaged, incomplete or of another class.
    """
    folder = Path(source) / name
    if Path(source).is_dir():
        _check_folder(folder, safetensors_only)
    component_config(kind, source, name, local_files_only)
    try:
        component, info = kind.from_pretrained(
            source,
            subfolder=name,
            # On the hub, None prefers safetensors; in a folder it would warn about the user's own choice.
            use_safetensors=safetensors_only or (any(folder.glob("*.safetensors")) if folder.is_dir() else None),
            torch_dtype=dtype or torch.float32,
            local_files_only=local_files_only,
            # True needs accelerate and does not lower the peak: see ADR 8.
            low_cpu_mem_usage=False,
            output_loading_info=True,
            **options,
        )
    except _UNLOADABLE as error:
        message = reason(error, source, local_files_only)
        if safetensors_only and not folder.is_dir() and no_such_file(error):
            message = f"the repository has no safetensors there. {_BIN}"
        raise InputError(f"cannot load {name} of {source} as {kind.__name__}: {message}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        # The libraries would continue with random numbers in their place.
        raise InputError(f"{name} of {source} lacks {len(missing)} weights of a {kind.__name__}, such as {missing[0]}")
    return component


def load_scheduler(source: str, local_files_only: bool) -> tuple[dict[str, Any], DDPMScheduler]:
    """Read the settings of the sampler that a folder was saved with, and the noise schedule that they define.

    Raises:
        InputError: If there are none, or they are those of another kind of diffusion.
    """
    file = "scheduler/scheduler_config.json"
    config = read_json(source, file, local_files_only)
    saved, steps = f"{file} of {source} ({config.get('_class_name')})", config.get("num_train_timesteps", TIMESTEPS)
    # Schedulers of flow matching, EDM and consistency models have no betas; continuous timesteps are noise levels.
    if not (config.get("beta_schedule") or config.get("trained_betas")) or config.get("use_flow_sigmas"):
        raise InputError(f"{saved} has no beta_schedule: a model of flow matching or EDM; {_DDPM}")
    if config.get("timestep_type", "discrete") != "discrete":
        raise InputError(f"{saved} has timestep_type {config['timestep_type']!r}; {_DDPM}")
    if steps != TIMESTEPS:
        # Before the schedule is computed, which takes as many numbers.
        raise InputError(f"{saved} gives num_train_timesteps {steps!r}; {_DDPM}")
    try:
        scheduler: DDPMScheduler = DDPMScheduler.from_config(config)
    except _UNLOADABLE as error:
        message = reason(error, source, local_files_only)
        raise InputError(f"cannot make the schedule of {file} of {source}: {message}") from error
    kind = scheduler.config["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"{source} predicts {kind!r}; expected epsilon or v_prediction")
    betas = scheduler.betas
    if len(betas) != TIMESTEPS or not ((betas >= 0) & (betas <= 1)).all():
        raise InputError(f"the betas of {saved} are not {TIMESTEPS} numbers in [0, 1]; {_DDPM}")
    return config, scheduler


def load_tokenizer(kind: Any, source: str, local_files_only: bool) -> Any:
    """Load the tokenizer of a diffusers folder.

    Raises:
        InputError: If it is missing, incomplete or damaged.
    """
    settings = Path(source) / "tokenizer" / "tokenizer_config.json"
    if Path(source).is_dir() and not settings.is_file():
        raise InputError(f"{settings} is missing; expected a diffusers folder with a tokenizer")
    try:
        tokenizer = kind.from_pretrained(source, subfolder="tokenizer", local_files_only=local_files_only)
    except Exception as error:
        # The tokenizers library raises bare exceptions.
        if type(error) is not Exception and not isinstance(error, _UNLOADABLE):
            raise
        message = reason(error, source, local_files_only)
        raise InputError(f"cannot load the tokenizer of {source}: {message}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers would create an empty one, which gives every prompt the same tokens.
        raise InputError(
            f"the tokenizer of {source} has no vocabulary; expected tokenizer.json, or vocab.json and merges.txt"
        )
    return tokenizer


def module_digest(module: nn.Module) -> str:
    """Return a hash of a module's class, configuration and weights; takes about a second per gigabyte."""
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=16)
    config: dict[str, Any] = dict(getattr(module, "config", {}))
    # Names with a leading underscore say where it was loaded from.
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_class(file: str, name: str, saved: str, kind: Any) -> None:
    if saved == kind.__name__ or saved in _SAME.get(kind.__name__, ()):
        return
    raise InputError(f"{file} gives {saved} for {name}; expected {kind.__name__}{_WHY.get(saved, '')}")


def _check_folder(folder: Path, safetensors_only: bool) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; expected a diffusers folder with this component")
    if any(folder.glob("*.safetensors")) or (not safetensors_only and any(folder.glob("*.bin"))):
        return
    # `.bin` files, which an option can read, come first.
    pickles = sorted((path.suffix != ".bin", path.name) for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        not_bin, name = pickles[0]
        raise InputError(
            f"{folder} holds {name}, a pickle, which can run code when loaded; expected safetensors. "
            f"{_CONVERT if not_bin else _BIN}"
        )
    raise InputError(f"{folder} holds no weights; expected a .safetensors file")
