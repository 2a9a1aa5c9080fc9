"""Generated images side by side: the same items and noise without and with each compressor."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bigain.errors import InputError
from bigain.report.rows import Row
from bigain.runs.files import sample_path
from bigain.runs.logs import iterate_records
from bigain.runs.records import SampleRecord
from bigain.runs.results import Run, read_ids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]

SAMPLES = (
    "Images of the same initial noise: {}. Below each compressed one, if there is one without compression: their "
    "absolute difference, averaged over the channels."
)
SAMPLES_BY_STRENGTH = (
    "Images of the same initial noise against the strength of compression: {}. Outwards from the image without "
    "compression, more is compressed."
)
_MOST_ITEMS, _MOST_RUNS = 4, 8
# The methods on the left and on the right in the paper, for grids of two out of several methods.
_LEFT, _RIGHT = ("LGTM", "IEKVD"), ("ToMe", "ToDo")
# Inches of an image, and the most pixels of its sides.
_INCHES, _PIXELS = 1.3, 512
# Characters in a line of the prompt.
_WIDTH = 20


def sample_columns(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with generations to show side by side; of many, the cheapest of each method."""
    columns = [row for row in rows if "generation" in row.runs]
    if len(columns) > _MOST_RUNS:
        columns = list({row.method: row for row in columns}.values())[:_MOST_RUNS]
    return columns


def strength_columns(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return generations of two methods by ratio or factor, one to the left and one to the right of the image without.

    Of more than two methods, those of the paper. Empty unless a method has generations of several strengths.
    """
    columns = [row for row in rows if "generation" in row.runs]
    methods: dict[str, dict[float, Row]] = {}
    for row in columns:
        if row.strength and row.strength[0] == kind:
            methods.setdefault(row.method, {})[row.strength[1]] = row
    if all(len(of_method) < 2 for of_method in methods.values()):
        return []
    left = min(methods, key=lambda name: (name.startswith(_RIGHT), not name.startswith(_LEFT), name))
    right = min({*methods} - {left}, key=lambda name: (not name.startswith(_RIGHT), name), default="")
    outwards = [[row for _, row in sorted(methods.get(name, {}).items())] for name in (left, right)]
    return [*reversed(outwards[0]), *[row for row in columns if row.method == "none"][:1], *outwards[1]]


def sample_grid(rows: Sequence[Row], differences: bool, ids: Sequence[str] = ()) -> Figure | None:
    """Draw images that several generations have in common, a column for each; None if there are none.

    With `differences`, those from the first row without compression stand below, if there is one. Without `ids`, the
    first four images.
    """
    runs = [row.runs["generation"] for row in rows]
    count = len(ids) or _MOST_ITEMS
    items = dict(itertools.islice(_items(runs, ids), count)) if len(runs) > 1 else {}
    return _draw(rows, [*items.values()], _prompts(runs[0], items), differences) if items else None


def _items(runs: Sequence[Run], ids: Sequence[str]) -> Iterator[tuple[str, list[Pixels]]]:
    """Yield ids with their images `(h, w, 3)` in all runs, without those that a run lacks or has at another size."""
    try:
        ids = ids or read_ids(runs[0].path)
    except InputError:
        return
    for image_id in ids:
        try:
            paths = [sample_path(run.path, image_id, run.results["protocol"]["images"]) for run in runs]
            images = [np.asarray(Image.open(path, formats=("PNG", "JPEG")).convert("RGB")) for path in paths]
        except (OSError, KeyError, Image.DecompressionBombError):
            # The run kept no images, or they were moved.
            continue
        if len({image.shape for image in images}) == 1:
            yield image_id, images


def _prompts(run: Run, ids: Collection[str]) -> list[str]:
    """Return prompts from the log, or the id where it has none."""
    prompts: dict[str, str] = {}
    with suppress(InputError):
        for record in iterate_records(run.path / "predictions", SampleRecord):
            if record.image_id in ids:
                prompts[record.image_id] = record.prompt
            if len(prompts) == len(ids):
                break
    return [prompts.get(image_id) or image_id for image_id in ids]


def _draw(rows: Sequence[Row], items: Sequence[Sequence[Pixels]], prompts: Sequence[str], differences: bool) -> Figure:
    """Draw images by item and row, and differences: see `sample_grid`."""
    from matplotlib.figure import Figure

    plain = next((i for i, row in enumerate(rows) if row.method == "none" and differences), None)
    lines = 1 if plain is None else 2
    width, height = (1.2, 0.3) if differences else (0.5, 0.6)
    figure = Figure(figsize=(width + _INCHES * len(rows), height + _INCHES * lines * len(items)), layout="constrained")
    axes = figure.subplots(lines * len(items), len(rows), squeeze=False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.grid(visible=False)
    for panel, row in zip(axes[0], rows, strict=True):
        strength = f"\n{row.strength[0]} {row.strength[1]:g}" if row.strength else "\n"
        panel.set_title(textwrap.fill(row.method, _WIDTH) + strength, fontsize="small")
    for panels, images, prompt in zip(axes[::lines], items, prompts, strict=True):
        panels[0].set_ylabel(textwrap.fill(prompt, _WIDTH, max_lines=3), fontsize="small")
        for panel, image in zip(panels, images, strict=True):
            panel.imshow(_small(image), interpolation="nearest")
    if plain is not None:
        changes = [[np.abs(image.astype(float) - images[plain]).mean(axis=2) for image in images] for images in items]
        largest = max(1.0, *(difference.max() for item_changes in changes for difference in item_changes))
        for panels, item_changes in zip(axes[1::2], changes, strict=True):
            for panel, difference in zip(panels, item_changes, strict=True):
                drawn = panel.imshow(_small(difference), cmap="magma", vmin=0, vmax=largest, interpolation="nearest")
            panels[plain].set_visible(False)
        figure.colorbar(drawn, ax=axes, label="difference, of 255", shrink=0.3, pad=0.01)
    return figure


def _small(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return every k-th pixel: the figure shows no more."""
    step = -(-max(image.shape[:2]) // _PIXELS)
    return image[::step, ::step]
