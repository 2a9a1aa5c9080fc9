"""Numbers as text. Wherever a number has an interval, the interval's width decides the digits."""

from __future__ import annotations

import math

from bigain.runs.schema import Estimate, MetricEstimate


def counted(number: int, noun: str) -> str:
    """Return `1 image` or `1,000 images`; `classes` of `class`, `batches` of `batch`."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{ending}"


def decimals(value: float, low: float | None = None, high: float | None = None) -> int:
    """Return the decimals that show two significant digits of an interval's width, or four of a value without one."""
    has_width = low is not None and high is not None and high > low
    size, digits = (high - low, 2) if has_width else (abs(value), 4)  # type: ignore[operator]
    return max(0, digits - 1 - math.floor(math.log10(size))) if size > 1e-12 else 0


def scaled(estimate: MetricEstimate) -> tuple[float | None, float | None, float | None]:
    """Return value and interval as they are shown: in percent if the unit is `%`; None for what is not finite."""
    factor, numbers = 100.0 if estimate["unit"] == "%" else 1.0, (estimate["value"], estimate["low"], estimate["high"])
    value, low, high = (None if x is None or not math.isfinite(x) else factor * x for x in numbers)
    return value, low, high


def with_interval(
    value: float | None, low: float | None = None, high: float | None = None, unit: str = "", name: str = ""
) -> str:
    """Format a number, with its unit and its named interval: `0.12 dB (95 % interval 0.10 to 0.14)`; `-` for None."""
    if value is None:
        return "-"
    digits = decimals(value, low, high)
    text = f"{value:z.{digits}f}" + (f" {unit}" if unit else "")
    return text if low is None or high is None else f"{text} ({name}{low:z.{digits}f} to {high:z.{digits}f})"


def bias_text(estimate: Estimate) -> str:
    """Return how biased a distance of few images is; empty if the bias is less than a twentieth of it."""
    value, bias, images = estimate["value"], estimate.get("bias", 0.0), f"with {counted(estimate['n'], 'image')}"
    if bias is None:
        return f"{images}, fewer than features: too high, compare at equal numbers only"
    if not bias > max(value / 20, 0):
        return ""
    return f"{images} about {min(bias, value):.2g} too high, compare at equal numbers only"


def signed(value: float, digits: int) -> str:
    """Format a number with its sign; zero has none."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
