"""The summary that ends `bigain predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigain.runs.names import is_proportion, setting_text, variant
from bigain.runs.schema import Estimate, Results, Site

# Settings that are told even if they are the usual ones.
_MAIN = ("ratio", "tau", "factor", "alpha", "destination", "keep", "inner")


def summary(results: Results, folder: Path, baseline: Results | None = None) -> str:
    """Text for a terminal.

    Args:
        results: Content of `results.json`.
        folder: Run directory.
        baseline: Results of the same run without compression.
    """
    dataset, timing = results["dataset"], results["timing"]
    rows = [
        ("dataset", f"{dataset['name']}, {dataset['images']} images, {dataset['classes']} classes"),
        ("model", f"{results['model']['name']} ({results['model']['backbone']})"),
        ("compressor", ", ".join(map(compressor_text, results["compressors"])) or "none"),
        ("sites", _sites(results["sites"])),
    ]
    if dataset["images"] < dataset["asked"]:
        rows[0] = ("dataset", f"{rows[0][1]} ({dataset['images']} of {dataset['asked']} images done)")
    if dataset["skipped"]:
        first = dataset["skipped"][0]
        rows.append(("skipped", f"{len(dataset['skipped'])} images, the first: {first['reason']}"))
    if dataset["unlabelled"]:
        rows.append(("unlabelled", f"{dataset['unlabelled']} images, left out of the metrics"))
    if dataset["official"] and dataset["asked"] < dataset["official"]:
        rows[0] = ("dataset", f"{rows[0][1]}, of {dataset['official']} in the official split")
    for name, estimate in results["metrics"].items():
        rows.append((name, _estimate(name, estimate)))
        if baseline is not None and name in baseline["metrics"]:
            rows.append((f"{name} without", _estimate(name, baseline["metrics"][name])))
    rows += [(name, f"none: {reason}") for name, reason in missing_metrics(results).items()]
    flops = results["flops"]["gflops_per_evaluation"]
    cost = f"{flops:.4g} GFLOPs each"
    # Results of older versions know their own cost only.
    full = results["flops"].get("baseline_gflops")
    if full is not None and results["compressors"]:
        cost += f" ({full:.4g} without compression, {100 * (1 - flops / full):.1f} % less)"
    evaluations = f"{results['evaluations']['per_image']:.4g} per image"
    if results["protocol"].get("race"):
        evaluations += f" in a race, at most {results['evaluations'].get('planned_per_image')}"
    rows.append(("evaluations", f"{evaluations}, {cost}"))
    clock = f"{timing['seconds']:.1f} in all, {timing['seconds_per_image']:.3f} per image"
    if timing["resumed_images"]:
        clock += f", {timing['resumed_images']} images were already done"
    if baseline is not None:
        clock += f" ({baseline['timing']['seconds_per_image']:.3f} without)"
    rows.append(("seconds", clock))
    rows.append(("run directory", str(folder)))
    width = max(len(name) for name, _ in rows)
    return "\n" + "".join(f"{name:<{width}}  {value}\n" for name, value in rows)


def missing_metrics(results: Results) -> dict[str, str]:
    """Return why metrics that were asked for are missing, by name in words."""
    suffix = "_missing"
    reasons = {
        key.removesuffix(suffix): str(reason) for key, reason in results.items() if key.endswith(suffix) and reason
    }
    return {name.replace("_", " ").replace("clip", "CLIP"): reason for name, reason in reasons.items()}


def _estimate(name: str, estimate: Estimate) -> str:
    scale, unit, digits = (100.0, " %", 1) if is_proportion(name) else (1.0, "", 3)
    value, low, high = (
        None if number is None else f"{scale * number:.{digits}f}"
        for number in (estimate["value"], estimate["low"], estimate["high"])
    )
    interval = "" if low is None else f"  (95 % interval {low} to {high})"
    return f"{value}{unit}{interval}"


def compressor_text(compressor: Mapping[str, Any]) -> str:
    """A compressor and its main settings on one line, from its description in `results.json`."""
    # Where it acts is what the line of sites tells.
    unusual = {*variant(compressor)} - {"where"}
    shown = {
        name: compressor_text(value) if isinstance(value, Mapping) and "settings" in value else setting_text(value)
        for name, value in compressor["settings"].items()
        if value is not None and (name in _MAIN or name in unusual)
    }
    return f"{compressor['class']}({', '.join(f'{name}={value}' for name, value in shown.items())})"


def _sites(sites: Sequence[Site]) -> str:
    if not sites:
        return "none"
    flows = {(site["tokens_in"], site["tokens_out"]) for site in sites}
    tokens = ", ".join(f"{before} -> {after}" for before, after in sorted(flows))
    names = sites[0]["name"] if len(sites) == 1 else f"{sites[0]['name']} ... {sites[-1]['name']}"
    return f"{len(sites)} ({names}), tokens {tokens}"
