"""The results of `bigain flops` as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from json import dumps

from bigain.commands.flops.model import CountedModel
from bigain.commands.flops.search import Match
from bigain.compressors import Compressor
from bigain.cost.flops import reduction_percent
from bigain.cost.sites import site_table
from bigain.report.tables import Table
from bigain.runs.summary import compressor_text


def count_text(model: CountedModel, compressor: Compressor | None, as_json: bool) -> str:
    """Return FLOPs by category, and the tokens at every compressed site."""
    baseline = model.baseline
    counted = baseline if compressor is None else model.count(compressor)
    sites = [] if compressor is None else site_table(compressor, model.backbone.denoiser, model.grid)
    if as_json:
        content = {
            "gflops": counted.total / 1e9,
            "by_category": counted.gflops,
            "baseline_gflops": baseline.total / 1e9,
            "reduction_percent": reduction_percent(counted, baseline),
            "sites": [{key: site[key] for key in ("name", "tokens_in", "tokens_out")} for site in sites],
        }
        return dumps(content, indent=2) + "\n"
    latents = " x ".join(map(str, model.latent))
    total = f"{counted.total / 1e9:.3f} per evaluation"
    facts = [("model", f"{model.name} ({type(model.backbone.denoiser).__name__}, latents {latents})")]
    head = ["category", "GFLOPs"]
    categories = [[name, f"{gflops:.3f}"] for name, gflops in counted.gflops.items()]
    if compressor is not None:
        facts.append(("compressor", compressor_text(compressor.description())))
        total += f", {reduction_percent(counted, baseline):.2f} % less than {baseline.total / 1e9:.3f}"
        head.append("without")
        categories = [[*row, f"{baseline.gflops[row[0]]:.3f}"] for row in categories]
    facts.append(("GFLOPs", total))
    tables = [Table((), facts), Table(head, categories, "lrr")]
    if sites:
        rows = [(site["name"], f"{site['tokens_in']} -> {site['tokens_out']}") for site in sites]
        tables.append(Table(("site", "tokens"), rows))
    return "\n\n".join(table.plain() for table in tables) + "\n"


def match_text(model: CountedModel, matches: Sequence[Match], percent: float, as_json: bool) -> str:
    """Return the setting of every method for a reduction by `percent`."""
    total = model.baseline.total / 1e9
    if as_json:
        methods = [asdict(match) for match in matches]
        return dumps({"baseline_gflops": total, "match_percent": percent, "methods": methods}, indent=2) + "\n"
    rows = []
    for match in matches:
        note = "the nearest factor" if match.setting == "factor" else ""
        if not match.reached:
            note = f"the largest {match.setting}; {percent:g} % is out of reach"
        reduction = f"{match.reduction_percent:.2f} %"
        rows.append((match.method, f"{match.setting} {match.value:g}", f"{match.gflops:.3f}", reduction, note))
    table = Table(("method", "setting", "GFLOPs", "reduction", ""), rows, "llrr").plain()
    goal = f"{percent:g} % less is {total * (1 - percent / 100):.3f}"
    return f"{model.name}: {total:.3f} GFLOPs per evaluation, {goal}\n\n{table}\n"
