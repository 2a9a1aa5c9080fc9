"""Find and read diffusers folders: safetensors by default, with errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from bigain.backbones.hub import NO_SUCH_FILE, read_json, reason
from bigain.errors import InputError
from bigain.runs.numbers import counted

_log = logging.getLogger(__name__)

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WEIGHTS = (".safetensors", *_PICKLES)
_CONVERT = "Convert it with save_pretrained(..., safe_serialization=True) in an environment you trust"
_BIN = f"{_CONVERT}, or set the backbone's safetensors_only to false, which reads .bin files without running code"
# Names of a component's weights without their endings, in either format; others have those of diffusers.
STEMS = {f"text_encoder{i}": {"safetensors": "model", "bin": "pytorch_model"} for i in ("", "_2", "_3")}
STEM = {"safetensors": "diffusion_pytorch_model", "bin": "diffusion_pytorch_model"}
# Other names of the same class: facebook's DiT repositories use the name from before diffusers 0.28.
_ALIASES = {
    "DiTTransformer2DModel": ("Transformer2DModel",),
    "PixArtTransformer2DModel": ("Transformer2DModel",),
    "CLIPTokenizer": ("CLIPTokenizerFast",),
    "T5Tokenizer": ("T5TokenizerFast",),
}
# What the libraries raise on damaged files and unexpected settings.
UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError),
    *(ImportError, TypeError, LookupError, AttributeError, ArithmeticError, UnboundLocalError, StrictDataclassError),
)
# Why networks of these classes are refused.
UNSUPPORTED = {
    "PixArtTransformer2DModel": "PixArt is conditioned on a text, a DiT on a class index: use bigain.backbones.PixArt",
    "SanaTransformer2DModel": "Sana's linear attention has no score per key and its feed-forward is a convolution over "
    "the full grid, so neither tokens nor keys can be left out",
}


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


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in the diffusers format.

    Attributes:
        source: Folder or hub id.
        parts: Class to load by component.
        local_files_only: Never ask the hub.
        safetensors_only: Refuse `.bin` weights; otherwise the libraries read them with torch's weights-only loader.
        variant: See `find_weights`.
        index: model_index.json.
    """

    source: str
    parts: Mapping[str, Any]
    local_files_only: bool = True
    safetensors_only: bool = True
    variant: str | None = None
    index: Mapping[str, Any] = field(default_factory=dict)

    def check_index(self, backbone: str, pipelines: Sequence[str] = ()) -> None:
        """Raise an InputError if model_index.json does not list what a backbone of the class named `backbone` loads."""
        if pipelines and (pipeline := self.index.get("_class_name")) not in pipelines:
            loads = " and ".join(pipelines)
            raise InputError(f"model_index.json of {self.source} names {pipeline}; {backbone} loads {loads}")
        for name in self.parts:
            listed = listed_class(self.index, name)
            if listed is None:
                components = ", ".join(sorted(key for key in self.index if listed_class(self.index, key)))
                raise InputError(f"{self.source} is not a {backbone} model: it has no {name} (it has {components})")
            self._check_class("model_index.json", name, listed)

    def json(self, file: str) -> dict[str, Any]:
        """Read one JSON file; raise an InputError if it cannot be read or is not a JSON object."""
        return read_json(self.source, file, self.local_files_only)

    def config(self, name: str) -> dict[str, Any]:
        """Read the configuration of a network; raise an InputError if it cannot be read or is of another class."""
        file = f"{name}/config.json"
        config = self.json(file)
        if saved := config.get("_class_name") or config.get("architectures"):
            self._check_class(file, name, str(saved[0] if isinstance(saved, list) else saved))
        if "transformers_weights" in config:
            # The entry names other files than those that are checked.
            raise InputError(f"{file} of {self.source} has transformers_weights; delete the entry")
        return config

    def _check_class(self, file: str, name: str, saved: str) -> None:
        expected = self.parts[name].__name__
        if saved != expected and saved not in _ALIASES.get(expected, ()):
            why = f": {UNSUPPORTED[saved]}" if saved in UNSUPPORTED else ""
            raise InputError(f"{file} of {self.source} gives {saved} for {name}; expected {expected}{why}")

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> Any:
        """Load one component in a precision.

        Raises:
            InputError: If it is missing, a pickle, damaged, incomplete or of another class.
        """
        kind, variant = self.parts[name], self.variant
        safetensors: bool | None = True
        if Path(self.source).is_dir():
            variant, files = find_weights(Path(self.source) / name, name, self.safetensors_only, variant)
            safetensors = files[0].suffix == ".safetensors"
        elif self.safetensors_only:
            self._check_remote_index(name)
        else:
            safetensors = None  # Prefers safetensors.
        self.config(name)
        # Otherwise the configuration of a transformers model can name a kernel on the hub, which is code.
        options = {"attn_implementation": "sdpa"} if name in STEMS else {}
        try:
            component, info = kind.from_pretrained(
                self.source,
                subfolder=name,
                use_safetensors=safetensors,
                variant=variant,
                torch_dtype=dtype,
                local_files_only=self.local_files_only,
                # True needs accelerate and does not lower the peak: see ADR 8.
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **options,
            )
        except UNLOADABLE as error:
            not_found = f"the repository has no safetensors there. Set the backbone's variant if it has one. {_BIN}"
            not_found = not_found if self.safetensors_only else NO_SUCH_FILE
            message = reason(error, self.source, self.local_files_only, not_found)
            raise InputError(f"cannot load {name} of {self.source} as {kind.__name__}: {message}") from error
        missing, surplus = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing:
            # The libraries would continue with random numbers in their place.
            number = counted(len(missing), "weight")
            raise InputError(f"{name} of {self.source} lacks {number} of a {kind.__name__}, such as {missing[0]}")
        if surplus:
            _log.warning(
                f"warning: {name} of {self.source} holds {counted(len(surplus), 'weight')} that {kind.__name__} does "
                f"not have, such as {surplus[0]}; not used"
            )
        if name not in STEMS and any(parameter.dtype != dtype for parameter in component.parameters()):
            # diffusers keeps the precision of the file if its first entry is a buffer, as in SD 3.
            component = component.to(dtype)
        return component

    def _check_remote_index(self, name: str) -> None:
        """Raise an InputError if the index of a component on the hub lists pickles; it may have none."""
        stem, variant = STEMS.get(name, STEM)["safetensors"], f"{self.variant}." if self.variant else ""
        file = f"{name}/{stem}.safetensors.index.{variant}json"
        try:
            index = self.json(file)
        except InputError as error:
            if isinstance(error.__cause__, EntryNotFoundError):
                return
            raise
        shards(index, f"{file} of {self.source}")

    def load_tokenizer(self, name: str = "tokenizer") -> Any:
        """Load a tokenizer; raise an InputError if it is missing, incomplete or damaged."""
        try:
            options = {"subfolder": name, "local_files_only": self.local_files_only}
            tokenizer = self.parts[name].from_pretrained(self.source, **options)
        except Exception as error:
            # The tokenizers library raises bare exceptions.
            if type(error) is not Exception and not isinstance(error, UNLOADABLE):
                raise
            message = reason(error, self.source, self.local_files_only)
            raise InputError(f"cannot load the {name} of {self.source}: {message}") from error
        ids = tokenizer(["a", "b"], truncation=True, max_length=8).input_ids
        if ids[0] == ids[1]:
            # transformers creates an empty tokenizer where files are missing.
            files = "tokenizer.json, or vocab.json and merges.txt, or spiece.model"
            raise InputError(f"the {name} of {self.source} has no vocabulary; expected {files}")
        return tokenizer


def listed_class(index: Mapping[str, Any], name: str) -> str | None:
    """Return the class of a component in model_index.json; None if it is not listed."""
    entry = index.get(name)
    return str(entry[1]) if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[0] else None


def find_weights(
    folder: Path, name: str, safetensors_only: bool = True, variant: str | None = None
) -> tuple[str | None, list[Path]]:
    """Find the one set of weights of a component for a variant.

    Args:
        folder: Holds the component.
        name: The component, on which the names of the files depend.
        safetensors_only: Refuse `.bin` weights, and indices that list them.
        variant: The `fp16` of `diffusion_pytorch_model.fp16.safetensors`; None takes the weights without one, or else
            the only variant.

    Returns:
        The variant, and one file or all shards; some may be missing.

    Raises:
        InputError: If there is no such set, more than one, or one that cannot be read safely.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; expected a diffusers folder with this component")
    stems, files = STEMS.get(name, STEM), sorted(path.name for path in folder.iterdir())
    for suffix in ("safetensors",) if safetensors_only else ("safetensors", "bin"):
        # A shard's name has a hyphen where that of a variant has a point.
        pattern = re.compile(
            rf"{stems[suffix]}(?:\.(?P<single>[^.-]+))?\.{suffix}"
            rf"|{stems[suffix]}\.{suffix}\.index(?:\.(?P<index>[^.]+))?\.json"
        )
        matches = list(filter(None, map(pattern.fullmatch, files)))
        variants = {match["single"] or match["index"] for match in matches}
        chosen = next(iter(variants)) if variant is None and len(variants) == 1 else variant
        matching = [match[0] for match in matches if (match["single"] or match["index"]) == chosen]
        if len(matching) > 1:
            sets = " and ".join(matching)
            raise InputError(
                f"{folder} holds two sets of weights, {sets}, which may differ; delete one with its shards"
            )
        if matching:
            file, indexed = folder / matching[0], matching[0].endswith(".json")
            names = shards(read_json(str(folder), file.name, True), file, suffix) if indexed else matching
            return chosen, [folder / shard for shard in names]
        if matches:
            requested = f"of variant {variant}" if variant else "without a variant"
            available = ", ".join(match[0] for match in matches)
            raise InputError(f"{folder} has no weights {requested}, but {available}; set the backbone's variant")
    # `.bin` files, which an option can read, come first.
    if pickles := sorted((not file.endswith(".bin"), file) for file in files if file.endswith(_PICKLES)):
        not_bin, pickle = pickles[0]
        fix = _CONVERT if not_bin else _BIN
        raise InputError(
            f"{folder} holds {pickle}, a pickle, which can run code when loaded; expected safetensors. {fix}"
        )
    raise InputError(f"{folder} holds no weights; expected a .safetensors file, {stems['safetensors']}.safetensors")


def shards(index: Mapping[str, Any], source: str | Path, suffix: str = "safetensors") -> list[str]:
    """Return the names of the shards that an index lists, or raise an InputError; `source` is for messages."""
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise InputError(f"{source} does not list the shards of its weights; fetch it again")
    names = sorted(set(listed.values()))
    # The libraries unpickle a shard with another ending.
    if invalid := [name for name in names if not name.endswith(f".{suffix}") or re.search(r"[/\\]", name)]:
        raise InputError(f"{source} lists {invalid[0]} as a shard; expected .{suffix} files beside it. {_BIN}")
    return names


def module_digest(module: nn.Module) -> str:
    """Return the sha256 of a module's class, configuration and weights, in hex; takes about a second per gigabyte."""
    digest = hashlib.sha256(type(module).__name__.encode())
    config: dict[str, Any] = dict(getattr(module, "config", {}))
    # Names with a leading underscore say where it was loaded from.
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
