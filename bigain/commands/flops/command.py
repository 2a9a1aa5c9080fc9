"""`bigain flops`: parse, count, and tell it as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jsonargparse import Namespace

from bigain.commands.arguments import ClassParser as Parser
from bigain.commands.arguments import refusals
from bigain.commands.configs import find_config
from bigain.commands.flops.model import CountedModel
from bigain.commands.flops.search import Match, every_method, match, starting_value
from bigain.commands.predict import silence_libraries
from bigain.compressors import Compressor
from bigain.cost.flops import Flops, reduction_percent
from bigain.cost.sites import site_table
from bigain.errors import InputError
from bigain.runs.summary import compressor_text


class _Parser(Parser):
    command = "bigain flops"


def flops(args: Sequence[str]) -> str:
    """Run `bigain flops`.

    Args:
        args: Command line after `flops`.

    Returns:
        What to print.

    Raises:
        InputError: If anything given cannot work.
    """
    silence_libraries()
    given = _parse(args)
    percent = None if given.match is None else _percent(given.match)
    model = CountedModel.of(given.model, given.image_size)
    if percent is None:
        return _count(model, given.compressor, given.json)
    compressors = every_method() if given.compressor is None else [given.compressor]
    return _match(model, [match(model, compressor, percent) for compressor in compressors], percent, given.json)


def _parse(args: Sequence[str]) -> Namespace:
    parser = _Parser(prog="bigain flops")
    parser.add_argument("--model", type=str, default="sd2")
    parser.add_argument("--image_size", type=int | None, default=None)
    parser.add_argument("--match", type=str | None, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_lightning_class_args(Compressor, "compressor", subclass_mode=True, required=False)
    args = find_config(args)
    if any(arg.partition("=")[0] == "--match" for arg in args):
        args = [*args, *starting_value(args)]
    with refusals():
        return parser.instantiate(parser.parse_args(args))


def _percent(text: str) -> float:
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not 0 < percent < 100:
        raise InputError(f"match must be a percentage above 0 and below 100, such as 10%, not {text!r}")
    return percent


def _count(model: CountedModel, compressor: Compressor | None, as_json: bool) -> str:
    baseline = model.baseline
    counted = baseline if compressor is None else model.count(compressor)
    sites = [] if compressor is None else site_table(compressor, model.backbone.denoiser, model.grid)
    if not as_json:
        return _text(model, compressor, counted, sites)
    told = {
        "gflops": counted.total / 1e9,
        "by_category": counted.gflops,
        "baseline_gflops": baseline.total / 1e9,
        "reduction_percent": reduction_percent(counted, baseline),
        "sites": [{key: site[key] for key in ("name", "tokens_in", "tokens_out")} for site in sites],
    }
    return json.dumps(told, indent=2) + "\n"


def _text(model: CountedModel, compressor: Compressor | None, counted: Flops, sites: Sequence[dict[str, Any]]) -> str:
    baseline = model.baseline
    latents = " x ".join(map(str, model.latent))
    lines = [f"model       {model.name} ({type(model.backbone.denoiser).__name__}, latents {latents})"]
    if compressor is None:
        lines.append(f"GFLOPs      {counted.total / 1e9:.3f} per evaluation")
    else:
        less = f"{reduction_percent(counted, baseline):.2f} % less than {baseline.total / 1e9:.3f}"
        lines.append(f"compressor  {compressor_text(compressor.description())}")
        lines.append(f"GFLOPs      {counted.total / 1e9:.3f} per evaluation, {less}")
    without = baseline.gflops
    lines += ["", f"{'category':<15}  {'GFLOPs':>9}" + (f"  {'without':>9}" if compressor else "")]
    for category, gflops in counted.gflops.items():
        beside = f"  {without[category]:>9.3f}" if compressor else ""
        lines.append(f"{category:<15}  {gflops:>9.3f}{beside}")
    if sites:
        width = max(len(site["name"]) for site in sites)
        lines += ["", f"{'site':<{width}}  tokens"]
        lines += [f"{site['name']:<{width}}  {site['tokens_in']} -> {site['tokens_out']}" for site in sites]
    return "\n".join(lines) + "\n"


def _match(model: CountedModel, matches: Sequence[Match], percent: float, as_json: bool) -> str:
    total = model.baseline.total / 1e9
    if as_json:
        told = {"baseline_gflops": total, "match_percent": percent, "methods": [asdict(found) for found in matches]}
        return json.dumps(told, indent=2) + "\n"
    wanted = f"{percent:g} % less is {total * (1 - percent / 100):.3f}"
    lines = [f"{model.name}: {total:.3f} GFLOPs per evaluation, {wanted}"]
    lines += ["", f"{'method':<12}  {'setting':<12}  {'GFLOPs':>9}  reduction"]
    for found in matches:
        setting = f"{found.setting} {found.value:g}"
        note = "" if found.reached else f"  (the largest {found.setting}; {percent:g} % is out of reach)"
        if found.reached and found.setting == "factor":
            note = "  (the nearest factor)"
        lines.append(f"{found.method:<12}  {setting:<12}  {found.gflops:>9.3f}  {found.reduction_percent:.2f} %{note}")
    return "\n".join(lines) + "\n"
