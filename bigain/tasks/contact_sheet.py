"""The first images of a generation side by side, with their classes or prompts; pictures in loggers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image

from bigain.data.images import Picture, read_images, sheet
from bigain.runs.files import read_json, replacing, sample_path
from bigain.runs.records import SampleRecord

# Most images of a contact sheet, and pictures in a row.
_SHEET, _COLUMNS = 64, 8
# Largest side of an image in px.
_TILE = 128


def write_contact_sheet(
    run: Path, records: Sequence[SampleRecord], image_format: str, baseline: Path | None = None
) -> Image.Image:
    """Write `contact_sheet.png` of a run.

    Args:
        run: Directory of the generation.
        records: Its images; the first 64 are drawn.
        image_format: Of both runs.
        baseline: Directory of a generation of the same images, drawn to the right of each.

    Raises:
        InputError: If an image or the names of the classes cannot be read.
    """
    records = records[:_SHEET]
    runs = [run] if baseline is None else [run, baseline]
    paths = [[sample_path(folder, record.image_id, image_format) for record in records] for folder in runs]
    images = torch.cat([read_images(run_paths) for run_paths in paths], -1)
    # Scaled to about 128 px by integer factors.
    largest = max(images.shape[-2], images.shape[-1] // len(runs))
    step, factor = max(1, largest // _TILE), max(1, _TILE // largest)
    tiles = images[..., ::step, ::step].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    names = read_json(run / "predictions/classes.json", dict[str, Any], "run its command again")["names"]
    captioned: list[tuple[str, Picture]] = []
    for record, tile in zip(records, tiles, strict=True):
        title = ", ".join(names[label] for label in record.labels) or record.prompt or record.image_id
        captioned.append((" ".join(title.split()), tile.permute(1, 2, 0).numpy()))
    columns = _COLUMNS // len(runs)
    rows = [("", captioned[start : start + columns]) for start in range(0, len(captioned), columns)]
    contact_sheet = sheet([] if baseline is None else ["left: compressed, right: without compression"], rows)
    with replacing(run / "contact_sheet.png") as file:
        contact_sheet.save(file, "PNG")
    return contact_sheet


def log_picture(logger: Logger, tag: str, picture: Image.Image, step: int) -> None:
    """Show a picture in a logger that shows any: TensorBoard, MLflow, and those with W&B's `log_image`."""
    untyped: Any = logger
    if isinstance(logger, TensorBoardLogger):
        untyped.experiment.add_image(tag, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        untyped.experiment.log_image(logger.run_id, np.asarray(picture), f"{tag}.png")
    elif hasattr(logger, "log_image"):
        untyped.log_image(key=tag, images=[picture], step=step)
