"""The summary that ends `bigain predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bigain.runs.names import setting_text, variant
from bigain.runs.numbers import bias_text, counted, scaled, with_interval
from bigain.runs.schema import MetricEstimate, Results, Site

# Settings that are shown even if they have their defaults.
_MAIN = ("ratio", "tau", "factor", "alpha", "destination", "keep", "inner")


def summary(results: Results, folder: Path, baseline: Results | None = None) -> str:
    """Return a list of names and values for a terminal; `baseline` are results of the same run without compression."""
    dataset, timing = results["dataset"], results["timing"]
    images = f"{dataset['name']}, {counted(dataset['images'], 'image')}, {counted(dataset['classes'], 'class')}"
    if dataset["images"] < dataset["asked"]:
        images += f" ({dataset['images']:,} of {counted(dataset['asked'], 'image')} done)"
    if dataset["official"] and dataset["asked"] < dataset["official"]:
        images += f", of {dataset['official']} in the official split"
    rows = [
        ("dataset", images),
        ("model", f"{results['model']['name']} ({results['model']['backbone']})"),
        ("compressor", ", ".join(map(compressor_text, results["compressors"])) or "none"),
        ("sites", _sites(results["sites"])),
    ]
    if dataset["skipped"]:
        first = dataset["skipped"][0]
        rows.append(("skipped", f"{counted(len(dataset['skipped']), 'image')}, the first: {first['reason']}"))
    if dataset["unlabelled"] and dataset["classes"]:
        rows.append(("unlabelled", f"{counted(dataset['unlabelled'], 'image')}, left out of the metrics"))
    for name, estimate in results["metrics"].items():
        rows.append((name, _estimate(estimate)))
        if baseline is not None and name in baseline["metrics"]:
            rows.append((f"{name} without", _estimate(baseline["metrics"][name])))
    if "fidelity_to" in results:
        rows.append(("fidelity to", str(results["fidelity_to"]["run"])))
    rows += [(name, f"none: {reason}") for name, reason in missing_metrics(results).items()]
    flops = results["flops"]["gflops_per_evaluation"]
    cost, uncompressed = f"{flops:.4g} GFLOPs each", results["flops"]["baseline_gflops"]
    if results["compressors"]:
        saved = 100 * (1 - flops / uncompressed)
        cost += f" ({uncompressed:.4g} without compression, {abs(saved):.1f} % {'more' if saved < 0 else 'less'})"
    evaluations = f"{results['evaluations']['per_image']:.4g} per image"
    if results["protocol"].get("race"):
        evaluations += f" in a race, at most {results['evaluations'].get('planned_per_image')}"
    rows.append(("evaluations", f"{evaluations}, {cost}"))
    clock = f"{timing['seconds']:.1f} in all, {timing['seconds_per_image']:.3f} per image"
    if timing["resumed_images"]:
        clock += f", {counted(timing['resumed_images'], 'image')} already done"
    if baseline is not None:
        clock += f" ({baseline['timing']['seconds_per_image']:.3f} without)"
    rows += [("seconds", clock), ("run directory", str(folder))]
    return f"\n{tabulate(rows, tablefmt='plain', disable_numparse=True)}\n"


def missing_metrics(results: Results) -> dict[str, str]:
    """Return the reason for every requested metric that is missing, by its name in words."""
    return {
        key.removesuffix("_missing").replace("_", " ").replace("clip", "CLIP"): str(reason)
        for key, reason in results.items()
        if key.endswith("_missing") and reason
    }


def _estimate(estimate: MetricEstimate) -> str:
    text = with_interval(*scaled(estimate), estimate["unit"], "95 % interval ")
    return "; ".join(filter(None, (text, bias_text(estimate))))


def compressor_text(compressor: Mapping[str, Any]) -> str:
    """Return a compressor and its main settings on one line, from its description in `results.json`."""
    # `where` is left out: the list of sites shows it.
    changed = {*variant(compressor)} - {"where"}
    arguments = []
    for name, value in compressor["settings"].items():
        if value is not None and (name in _MAIN or name in changed):
            inner = isinstance(value, Mapping) and "settings" in value
            arguments.append(f"{name}={compressor_text(value) if inner else setting_text(name, value)}")
    return f"{compressor['class']}({', '.join(arguments)})"


def _sites(sites: Sequence[Site]) -> str:
    if not sites:
        return "none"
    flows = sorted({(site["tokens_in"], site["tokens_out"]) for site in sites})
    tokens = ", ".join(f"{before} -> {after}" for before, after in flows)
    names = sites[0]["name"] if len(sites) == 1 else f"{sites[0]['name']} ... {sites[-1]['name']}"
    return f"{len(sites)} ({names}), tokens {tokens}"
