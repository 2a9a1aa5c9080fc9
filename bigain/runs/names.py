"""Names of compressors and metrics in tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# An entry of `compressors` in results.json, see `bigain.compressors.Compressor.description`.
Compressor = Mapping[str, Any]

# Shown instead of an accuracy for a compressor that is `generation_only`.
NOT_OF_ONE_STEP = "n/a: not a function of one step"
STRENGTHS = ("ratio", "factor", "tau")
_TITLES = {
    "top1": "Top-1 accuracy",
    "top1_precision": "Top-1 precision",
    "top1_precision_all": "Top-1 precision of all images",
    "map_macro": "mAP over classes",
    "map_sample": "mAP over images",
    "map_released": "mAP over images, ranked as released",
    "frechet": "FD",
    **dict.fromkeys(("kid", "kernel"), "KID"),
    "clip_score": "CLIP score",
    "pick_score": "PickScore",
    "inception_score": "Inception score",
    "dino_similarity": "DINO similarity",
    "knn": "kNN accuracy",
    "linear_probe": "Linear probe",
    "cka": "CKA",
    **{name: name.upper() for name in ("psnr", "ssim", "lpips", "cmmd")},
}


def metric_title(metric: str, unit: str = "") -> str:
    """Return a metric in words, with its protocol or model and its unit in brackets: `FD (shapes-features)`."""
    name, _, protocol = metric.removesuffix("]").partition("[")
    brackets = ", ".join(filter(None, (protocol, unit)))
    return _TITLES.get(name, name.replace("_", " ")) + (f" ({brackets})" if brackets else "")


def strength(compressors: Sequence[Compressor]) -> tuple[str, float] | None:
    """Return name and value of the ratio, factor or tau of a single compressor; None for several or without one."""
    settings = inner(compressors[0])["settings"] if len(compressors) == 1 else {}
    numbers = ((name, settings.get(name)) for name in STRENGTHS)
    return next(((name, float(value)) for name, value in numbers if isinstance(value, (int, float))), None)


def variant(compressor: Compressor) -> dict[str, Any]:
    """Return the settings that distinguish variants of a method: those that differ from the defaults, and alpha.

    The strength, the seed and the file of masks are left out. CAM includes the settings of its inner compressor.
    """
    settings = compressor["settings"]
    changed = {key: settings[key] for key in ("alpha",) if key in settings} | compressor["changed"]
    wrapped = inner(compressor)
    if wrapped is not compressor:
        del changed["inner"]
        # The paper's CAM wraps LGTM.
        changed |= ({} if wrapped["class"] == "LGTM" else {"inner": wrapped["class"]}) | variant(wrapped)
    left_out = {"seed", "masks", *(key for key in STRENGTHS if not isinstance(changed.get(key), Mapping))}
    return {key: value for key, value in changed.items() if key not in left_out}


def method(compressors: Sequence[Compressor]) -> str:
    """Classes with their changed settings: `LGTM[destination first]`; `none` without compression.

    Several compressors have no strength in common, so each shows its own: `LGTM at ratio 0.5 + ToDo at factor 2`.
    """
    return label(compressors) if len(compressors) > 1 else "".join(map(_method, compressors)) or "none"


def label(compressors: Sequence[Compressor]) -> str:
    """Name compressors in a sentence: `LGTM at ratio 0.5`, `no compression`."""
    names = []
    for compressor in compressors:
        amount = strength([compressor])
        names.append(_method(compressor) + (f" at {amount[0]} {amount[1]:g}" if amount else ""))
    return " + ".join(names) or "no compression"


def inner(compressor: Compressor) -> Compressor:
    """Return the compressor that this one wraps, such as that of CAM, or the compressor itself."""
    wrapped = compressor["settings"].get("inner")
    return wrapped if isinstance(wrapped, Mapping) and isinstance(wrapped.get("settings"), Mapping) else compressor


def setting_text(name: str, value: Any) -> str:
    """Format the value of a setting: `Linear(start=0.8, end=1.2)` for an object, otherwise as Python does.

    `where` is a mapping of its changed fields: `max_stride 2, part up`.
    """
    if isinstance(value, Mapping) and name == "where":
        return ", ".join(f"{field} {item}" for field, item in value.items())
    if not isinstance(value, Mapping) or "class" not in value:
        return str(value)
    arguments = value["settings"] if "settings" in value else {k: v for k, v in value.items() if k != "class"}
    return f"{value['class']}({', '.join(f'{key}={setting_text(key, item)}' for key, item in arguments.items())})"


def _method(compressor: Compressor) -> str:
    changes = []
    for name, value in variant(compressor).items():
        text = "+".join(map(str, value)) if isinstance(value, list) else setting_text(name, value)
        changes.append(text if name == "where" and isinstance(value, Mapping) else f"{name} {text}")
    return f"{compressor['class']}[{'; '.join(changes)}]" if changes else str(compressor["class"])
