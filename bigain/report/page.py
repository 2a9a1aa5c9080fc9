"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from bigain.report.document import Section


def page(
    title: str, sections: Sequence[Section], remarks: Sequence[str], left_out: Sequence[str], figures: Path
) -> str:
    """The page; figures are in it as SVG, and everything that is not ours is escaped.

    Args:
        title: Its title.
        sections: What it says.
        remarks: What to know of all tables.
        left_out: Directories that are not in it, and why.
        figures: Folder of the drawn figures.
    """
    from jinja2 import Environment, StrictUndefined

    images = {plot.name: _data_uri(figures / f"{plot.name}.svg") for section in sections for plot in section.plots}
    # Autoescape: names of runs are text from outside.
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, remarks=remarks, left_out=left_out, images=images)


def _data_uri(path: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
