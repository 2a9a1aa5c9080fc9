"""The settings of a compressor as plain values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from bigain.compressors.where import Where


def constructor_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the constructor parameters of a class, including those that `**kwargs` passes on to its bases."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            signature = inspect.signature(vars(base)["__init__"]).parameters
            parameters |= {name: parameter for name, parameter in signature.items() if name not in parameters}
            if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values()):
                break
    return parameters


def plain(value: Any) -> Any:
    """Convert a setting to JSON values; objects that are not of a fixed class keep its name under `class`."""
    if hasattr(value, "description"):
        return value.description()
    if is_dataclass(value):
        content = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return content if isinstance(value, Where) else {"class": type(value).__name__, **content}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", str(value))


def changed(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain settings that differ from a constructor's defaults; of `where` only those fields."""
    different = {}
    for name, value in settings.items():
        default = plain(constructor_parameters(kind)[name].default)
        if isinstance(value, dict) and isinstance(default, dict):
            value = {key: item for key, item in value.items() if item != default.get(key)}
            default = {}
        if value != default:
            different[name] = value
    return different
