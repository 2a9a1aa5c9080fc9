"""The result of `bigain bench` as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("method", "ms", "of none", "promised", "realised of the saving", "own work, ms", "peak MB")


def table(told: Mapping[str, Any]) -> str:
    """Text for a terminal.

    Args:
        told: What `--json` writes.
    """
    latents = " x ".join(map(str, told["latent"]))
    layout = "channels last" if told["channels_last"] else "contiguous"
    place = f"{told['device']} ({told['device_name']}), {told['threads']} CPU threads"
    way = f"{told['dtype']}, {layout}, {told['attention_backend']}, compile: {told['compile']}"
    often = told["forwards_per_round"]
    each = "once" if often == 1 else f"{often} times in a row"
    lines = [
        f"model    {told['model']} ({told['network']}, latents {latents}), weights: {told['weights']}",
        f"forward  {told['batch']} rows, {way}",
        f"device   {place}, torch {told['packages']['torch']}",
        f"rounds   {told['repetitions']}, each method {each} in each; medians and (lowest to highest)",
        "",
    ]
    if not told["finite"]:
        lines.insert(4, "warning  the network's output is not finite; times may differ from those of a trained one")
    rows = [_HEAD, *(_row(row) for row in [told["baseline"], *told["methods"]] if row["error"] is None)]
    lines += _aligned(rows)
    lines += [f"{row['method']}: not measured: {row['error']}" for row in told["methods"] if row["error"] is not None]
    return "\n".join(lines) + "\n"


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


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
