"""The result of `bigain bench` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigain.report.tables import Table

_HEAD = ("method", "ms", "of none", "promised", "realised of the saving", "own work, ms", "peak MB")


def as_text(result: Mapping[str, Any]) -> str:
    """Return text for a terminal.

    Args:
        result: The object that `--json` writes.
    """
    latents = " x ".join(map(str, result["latent"]))
    layout = "channels last" if result["channels_last"] else "contiguous"
    repeats = result["forwards_per_round"]
    facts = [
        ("model", f"{result['model']} ({result['network']}, latents {latents}), weights: {result['weights']}"),
        (
            "forward",
            f"{result['batch']} rows, {result['dtype']}, {layout}, {result['attention_backend']}, compile: "
            f"{result['compile']}",
        ),
        (
            "device",
            f"{result['device']} ({result['device_name']}), {result['threads']} CPU threads, torch "
            f"{result['packages']['torch']}",
        ),
        (
            "rounds",
            f"{result['repetitions']}, each method {'once' if repeats == 1 else f'{repeats} times in a row'} in each; "
            "medians and (lowest to highest)",
        ),
    ]
    if not result["finite"]:
        facts.append(("warning", "the output of the network is not finite; times may differ from a trained network's"))
    rows = [_row(row) for row in (result["baseline"], *result["methods"]) if row["error"] is None]
    failed = [f"{row['method']}: not measured: {row['error']}" for row in result["methods"] if row["error"] is not None]
    return "\n".join([Table((), facts).plain(), "", Table(_HEAD, rows).plain(), *failed]) + "\n"


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    realised, own, peak = row["realised_percent"], row["overhead_milliseconds"], row["peak_memory_bytes"]
    return (
        row["method"],
        _spread(row["milliseconds"], 1),
        _spread(row["ratio"], 3),
        f"{row['promised_ratio']:.3f}",
        "" if realised is None else f"{realised['median']:.0f} % ({realised['low']:.0f} to {realised['high']:.0f})",
        "?" if own is None else f"{sum(own.values()):.1f}",
        "?" if peak is None else f"{peak / 1e6:,.0f}",
    )


def _spread(values: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"
