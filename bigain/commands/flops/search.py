"""`--match`: the ratio or factor at which a method reaches a reduction of FLOPs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from json import dumps
from typing import Any

from bigain.commands.flops.model import CountedModel
from bigain.commands.parsing import options_of
from bigain.compressors import LGTM, Compressor, methods
from bigain.cost.flops import reduction_percent
from bigain.diffusion.schedules import Schedule
from bigain.errors import InputError
from bigain.report.tables import Table

# Ratios are searched in thousandths.
_STEPS = 1000
# Values to start the search from, for arguments without a default.
_START: dict[str, Any] = {"ratio": 0.5, "factor": 2, "keep": "low"}


def every_method() -> list[Compressor]:
    """Return a compressor of each shipped method that has a ratio or factor, with a value to start from."""
    compressors = []
    for kind in methods().values():
        parameters = {name: p for name, p in inspect.signature(kind).parameters.items() if p.kind is not p.VAR_KEYWORD}
        start = {name: value for name, value in {**_START, "inner": LGTM(ratio=0.5)}.items() if name in parameters}
        if {name for name, p in parameters.items() if p.default is p.empty} <= start.keys():
            compressors.append(kind(**start))
    return compressors


def with_starting_values(options: Sequence[str]) -> list[str]:
    """Add a value to start from for every named compressor whose ratio or factor is not given."""
    _, groups = options_of(options)
    given_options = {group[0].partition("=")[0] for group in groups}
    added = []
    for option, *values in groups:
        prefix, _, value = option.partition("=")
        kind = methods().get((value or next(iter(values), "")).rpartition(".")[2])
        for setting in ("ratio", "factor"):
            has_setting = kind is not None and setting in inspect.signature(kind).parameters
            has_schedule = any(option.startswith(f"{prefix}.{setting}.") for option in given_options)
            if has_setting and not has_schedule and not {f"{prefix}.{setting}", f"{prefix}.tau"} & given_options:
                added.append(f"{prefix}.{setting}={_START[setting]}")
    return [*options, *added]


def find_match(model: CountedModel, compressor: Compressor, percent: float) -> dict[str, Any]:
    """Find the setting of a method, with all of its other settings, for a reduction by `percent`.

    Returns:
        A row of `--json`: `method`; `setting`, which is `ratio`, `tau` or `factor`; `value`, the smallest ratio in
        thousandths that reaches the reduction, or the largest possible one, or the factor with the nearest reduction;
        `gflops` and `reduction_percent` with this value; `below_percent`, that with a ratio a thousandth lower;
        `reached`, whether any value reaches the reduction.

    Raises:
        InputError: If the compressor has neither ratio nor factor, or a schedule of it, or cannot work on the model.
    """
    settings = innermost(compressor).settings()
    setting = next((name for name in ("tau", "ratio", "factor") if settings.get(name) is not None), None)
    if setting is None:
        raise InputError(f"{type(compressor).__name__} has neither ratio nor factor to search for")
    if isinstance(settings[setting], Schedule):
        raise InputError(f"{setting} follows a schedule that cannot be matched; give a number")
    is_integer = setting == "factor"
    low, high = _range(model, compressor, setting)

    def value_of(step: int) -> float:
        return step if is_integer else step / _STEPS

    @cache
    def reduction(step: int) -> float:
        try:
            counted = model.count([changed(compressor, **{setting: value_of(step)})])
            return reduction_percent(counted, model.baseline)
        except InputError:
            # A small value may remove nothing; an error of the largest one concerns all.
            if step == high:
                raise
            return -math.inf

    reached = reduction(high) >= percent
    best = _smallest_step(reduction, low, high, percent)
    if is_integer and reached:
        best = min((step for step in (best, best - 1) if step >= low), key=lambda s: abs(reduction(s) - percent))
    return {
        "method": type(compressor).__name__,
        "setting": setting,
        "value": value_of(best),
        "gflops": model.baseline.total / 1e9 * (1 - reduction(best) / 100),
        "reduction_percent": reduction(best),
        "below_percent": None if is_integer or best == low else max(0.0, reduction(best - 1)),
        "reached": reached,
    }


def match_text(
    model: CountedModel, matches: Sequence[dict[str, Any]], left_out: Mapping[str, str], percent: float, as_json: bool
) -> str:
    """Return the setting of every method for a reduction by `percent`, and why methods are left out, by their name."""
    total = model.baseline.total / 1e9
    if as_json:
        content = {"baseline_gflops": total, "match_percent": percent, "methods": matches}
        return dumps(content | ({"left_out": left_out} if left_out else {}), indent=2) + "\n"
    rows = []
    for match in matches:
        setting, reduction = match["setting"], f"{match['reduction_percent']:.2f} %"
        note = "the nearest factor" if setting == "factor" else ""
        if not match["reached"]:
            note = f"the largest {setting}; {percent:g} % is out of reach"
        elif match["below_percent"] is not None and match["reduction_percent"] > percent + 1:
            note = f"just below, {match['below_percent']:.2f} %"
        rows.append((match["method"], f"{setting} {match['value']:g}", f"{match['gflops']:.3f}", reduction, note))
    table = Table(("method", "setting", "GFLOPs", "reduction", ""), rows, "llrr").plain()
    goal = f"{percent:g} % less is {total * (1 - percent / 100):.3f}"
    notes = "".join(f"left out: {name}: {reason}\n" for name, reason in left_out.items())
    return f"{model.name}: {total:.3f} GFLOPs per evaluation, {goal}\n\n{table}\n{notes}"


def innermost(compressor: Compressor) -> Compressor:
    """Return the compressor that one wraps, such as that of CAM, or the compressor itself."""
    inner = getattr(compressor, "inner", None)
    return compressor if inner is None else innermost(inner)


def changed(compressor: Compressor, **changes: Any) -> Compressor:
    """Return the same method with other settings, those of the innermost compressor."""
    settings: dict[str, Any] = compressor.settings()
    if "inner" in settings:
        changes = {"inner": changed(settings["inner"], **changes)}
    return type(compressor)(**settings | changes)


def _range(model: CountedModel, compressor: Compressor, setting: str) -> tuple[int, int]:
    """Return the smallest and largest step."""
    grids = [site.grid(model.grid) for site in compressor.sites_of(model.backbone.denoiser)]
    if setting == "factor":
        return 2, min(min(grid) for grid in grids)
    if setting == "tau":
        return 1, _STEPS
    # At least one token remains, in each cell or in the whole sequence.
    largest = getattr(innermost(compressor), "largest_ratio", 1 - 1 / min(grid.n for grid in grids))
    return 1, math.floor(_STEPS * largest)


def _smallest_step(reduction: Callable[[int], float], low: int, high: int, percent: float) -> int:
    """Return the smallest step whose reduction reaches `percent`, or `high` if none does.

    Reductions rise with the step. The Illinois method (false position that halves the value of an end that stays)
    needs few counts.
    """
    lower, f_low, f_high = low - 1, -percent, reduction(high) - percent
    fixed = ""
    while f_high >= 0 and high - lower > 1:
        guess = lower + round((high - lower) * f_low / (f_low - f_high)) if f_low < f_high else lower
        middle = min(max(guess, lower + 1), high - 1)
        difference = max(reduction(middle) - percent, -percent)
        if difference >= 0:
            high, f_high, f_low = middle, difference, f_low / 2 if fixed == "lower" else f_low
            fixed = "lower"
        else:
            lower, f_low, f_high = middle, difference, f_high / 2 if fixed == "high" else f_high
            fixed = "high"
    return high
