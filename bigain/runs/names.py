"""What compressors are called in tables and sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Compressor = Mapping[str, Any]

# Settings that go without saying; whatever differs is told.
_USUAL: Mapping[str, Any] = {
    "score": "laplacian_l1",
    "mode": "mean",
    "cell": [2, 2],
    "modules": ["self_attn"],
    "metric": None,
    "aggregate": "max",
    "noise_alpha": 0.1,
    "sim_beta": 1.0,
    "where": "Where(max_stride=1, min_stride=1, part=None, blocks=None)",
}
_DESTINATIONS = {"LGTM": "cell", "ToMe": "random"}
_STRENGTHS = ("ratio", "factor", "tau")
_NO_PROPORTIONS = ("frechet", "kernel", "psnr", "ssim", "lpips", "clip_score")
_FIELD = re.compile(r"(\w+)=('[^']*'|\([^)]*\)|\[[^\]]*\]|[^,()]+)")


def is_proportion(metric: str) -> bool:
    """Whether people read a metric in percent."""
    return not metric.startswith(_NO_PROPORTIONS)


def signed(value: float, digits: int = 1) -> str:
    """With its sign, of which zero has none."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def strength(compressors: Sequence[Compressor]) -> tuple[str, float] | None:
    """Name and value of what says how much a single compressor removes: its ratio, factor or tau."""
    if len(compressors) != 1:
        return None
    settings = inner(compressors[0])["settings"]
    for name in _STRENGTHS:
        value = settings.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return name, float(value)
    return None


def variant(compressor: Compressor) -> dict[str, Any]:
    """Settings of a compressor that differ from the usual ones, but its strength and its seed."""
    found: dict[str, Any] = {}
    for name, value in compressor["settings"].items():
        if name == "inner" and inner(compressor) is value:
            found |= {} if value.get("class") == "LGTM" else {"inner": value.get("class")}
            found |= variant(value)
        elif name == "destination":
            if value != _DESTINATIONS.get(str(compressor.get("class"))):
                found[name] = value
        elif name not in (*_STRENGTHS, "seed") and (name not in _USUAL or value != _USUAL[name]):
            found[name] = value
    return found


def method(compressors: Sequence[Compressor]) -> str:
    """Classes with what is unusual about them: `LGTM[destination first]`; `none` without compression.

    Several have no strength in common, so each has its own here: `LGTM at ratio 0.5 + ToDo at factor 2`.
    """
    if len(compressors) > 1:
        return label(compressors)
    return " + ".join(map(_method, compressors)) or "none"


def label(compressors: Sequence[Compressor]) -> str:
    """For a sentence: `LGTM at ratio 0.5`, `no compression`."""
    if not compressors:
        return "no compression"
    parts = []
    for compressor in compressors:
        found = strength([compressor])
        parts.append(_method(compressor) + (f" at {found[0]} {found[1]:g}" if found else ""))
    return " + ".join(parts)


def inner(compressor: Compressor) -> Compressor:
    """What a compressor such as CAM wraps, or itself."""
    inner = compressor["settings"].get("inner")
    return inner if isinstance(inner, Mapping) and isinstance(inner.get("settings"), Mapping) else compressor


def _method(compressor: Compressor) -> str:
    told = "; ".join(_told(name, value) for name, value in variant(compressor).items())
    return f"{compressor['class']}[{told}]" if told else str(compressor["class"])


def _told(name: str, value: Any) -> str:
    if name == "where":
        usual = dict(_FIELD.findall(_USUAL["where"]))
        fields = [(key, text) for key, text in _FIELD.findall(str(value)) if usual.get(key) != text]
        return ", ".join(f"{key} {text.strip(chr(39))}" for key, text in fields) or "where"
    if isinstance(value, list):
        return f"{name} {'+'.join(map(str, value))}"
    return f"{name} {value}"
