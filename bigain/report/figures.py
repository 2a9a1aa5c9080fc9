"""The figures of a report, as PNG and SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigain.report.curves import curves
from bigain.report.pareto import pareto
from bigain.report.rows import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: Any = {
    # Names of runs are text, whatever they hold.
    "text.parse_math": False,
    # The same input gives the same file.
    "svg.hashsalt": "bigain",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_CURVES = (
    "Accuracy and distance against compression: {}. Error bars are 95 % intervals, hollow markers the paper's values, "
    "the dashed line is without compression."
)
_PARETO = (
    "Cost, accuracy and distance: {}. The line joins what nothing else beats in both; on a panel of accuracy and "
    "distance a larger marker costs more, and what nothing else beats in all three is outlined in black."
)


@dataclass(frozen=True)
class Plot:
    """A drawn figure.

    Attributes:
        name: File name without suffix.
        caption: What it shows.
    """

    name: str
    caption: str


def draw(groups: Sequence[Group], folder: Path) -> list[list[Plot]]:
    """Draw the figures of every group into a folder.

    Returns:
        Of each group: the curves if anything varies, the Pareto plot if two rows have a number.
    """
    found = []
    with plain_style():
        for number, group in enumerate(groups, 1):
            stem = f"{number}-{_plain(group.dataset)}-{_plain(group.model)}"
            drawn = [("curves", _CURVES, curves(group.rows)), ("pareto", _PARETO, pareto(group.rows))]
            found.append(
                [
                    save(figure, folder, Plot(f"{kind}-{stem}", caption.format(f"{group.dataset}, {group.model}")))
                    for kind, caption, figure in drawn
                    if figure is not None
                ]
            )
    return found


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw inside this block in our style, not the user's own: the same runs give the same files everywhere."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def save(figure: Figure, folder: Path, plot: Plot) -> Plot:
    """Write a figure as PNG and SVG."""
    # Figures made without pyplot are drawn without a window, whatever backend is configured.
    figure.savefig(folder / f"{plot.name}.png", dpi=120, metadata={"Software": None})
    figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None, "Creator": None})
    return plot


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-40:] or "x"
