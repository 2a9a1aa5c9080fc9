"""The results of a classification and of a generation run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw

from bigain.data.images import read_images, text_font
from bigain.metrics.accuracy import Accuracy, confusion_matrix
from bigain.metrics.base import Metric, evaluate
from bigain.metrics.multilabel import MeanAveragePrecision, Top1Precision
from bigain.runs.columns import write_columns
from bigain.runs.files import replacing
from bigain.runs.records import ImageRecord, SampleRecord
from bigain.runs.samples import FOLDER, sample_path
from bigain.tasks.classifier import DiffusionClassifier
from bigain.tasks.run_results import RunResults
from bigain.tasks.sampler import DiffusionSampler
from bigain.tasks.scheduling import scheduler_settings

# With more classes no confusion matrix is written: nobody can read it in a file.
_MOST_CLASSES = 200
# Most images of a contact sheet, and of its rows.
_SHEET, _COLUMNS = 64, 8
# Largest side of an image, line of text and gap, in px.
_TILE, _TEXT, _GAP = 128, 18, 4


class ResultsWriter(RunResults[ImageRecord]):
    """Writes `results.json` and `predictions/predictions.npz` of a classification: see `RunResults`."""

    task = "classification"
    record = ImageRecord

    def write_files(self, trainer: Trainer, module: DiffusionClassifier, records: Sequence[ImageRecord]) -> None:
        write_columns(Path(trainer.default_root_dir), records, len(module.data.class_space))

    def task_results(
        self, trainer: Trainer, module: DiffusionClassifier, records: Sequence[ImageRecord]
    ) -> dict[str, Any]:
        space = module.data.class_space
        shipped: list[Metric] = [Top1Precision(), MeanAveragePrecision()] if space.multilabel else [Accuracy()]
        matrix, per_class = None, None
        if not space.multilabel:
            labels, predictions = [record.labels[0] for record in records], [record.prediction for record in records]
            matrix = confusion_matrix(labels, predictions, len(space))
            per_class = [{"correct": row[label], "n": sum(row)} for label, row in enumerate(matrix)]
        evaluations = sum(record.evaluations for record in records)
        busy = sum(record.seconds for record in records)
        race = module.race
        return {
            "metrics": evaluate([*shipped, *module.metrics], records, space)[0],
            "per_class": per_class,
            "confusion_matrix": matrix if len(space) <= _MOST_CLASSES else None,
            "class_names": list(space.names),
            "evaluations": {
                "per_image": evaluations / len(records),
                "planned_per_image": module.evaluations_per_image(len(space)),
                "per_second": evaluations / busy if busy else None,
                "gflops_per_image": evaluations / len(records) * self._flops.total / 1e9,
            },
            "scheduler": scheduler_settings(module.backbone.training_schedule),
            "protocol": {
                "stages": None if race else [[int(trial) for trial in stage] for stage in module.stages],
                "keep": None if race else module.keep,
                "budget": None if race else module.budget,
                "race": {**asdict(race), "trials": module.grid_size} if race else None,
                "timesteps": module.timesteps,
                "loss": module.loss,
                "seed": module.seed,
            },
        }


class GenerationResults(RunResults[SampleRecord]):
    """Writes `results.json` and `contact_sheet.png` of a generation: see `RunResults`."""

    task = "generation"
    record = SampleRecord

    def write_files(self, trainer: Trainer, module: DiffusionSampler, records: Sequence[SampleRecord]) -> None:
        _contact_sheet(trainer, module, records)

    def task_results(
        self, trainer: Trainer, module: DiffusionSampler, records: Sequence[SampleRecord]
    ) -> dict[str, Any]:
        measuring = module.measuring
        metrics, incomplete = evaluate(measuring.metrics, records, module.data.class_space)
        # Both keys are always there: null if nothing is missing.
        missing = {"distance": None, "clip_score": None, **incomplete, **measuring.missing}
        return {
            "metrics": metrics,
            **{f"{name}_missing": reason for name, reason in missing.items()},
            "evaluations": {"per_image": len(module.scheduler.timesteps) * (1 if module.guidance == 1 else 2)},
            "scheduler": scheduler_settings(module.scheduler),
            "protocol": {
                "scheduler": module.scheduler_class.__name__,
                "scheduler_options": module.scheduler_options,
                "steps": module.steps,
                "guidance": module.guidance,
                "images": module.images,
                "extractor": None if module.extractor is None else module.extractor.protocol,
                "reference_file": module.reference,
                "clip_model": module.clip_model,
                "reference": None if measuring.reference is None else measuring.reference.described(),
                "seed": module.seed,
            },
        }


def _contact_sheet(trainer: Trainer, module: DiffusionSampler, records: Sequence[SampleRecord]) -> None:
    """Write the first images with their classes side by side, to a file and to TensorBoard."""
    if module.images == "none":
        return
    root, records = Path(trainer.default_root_dir), records[:_SHEET]
    images = read_images([sample_path(root / FOLDER, record.image_id, module.images) for record in records])
    # About 128 px each, by whole factors.
    largest = max(images.shape[-2:])
    step, factor = max(1, largest // _TILE), max(1, _TILE // largest)
    tiles = images[..., ::step, ::step].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width = tiles.shape[-2] + _TEXT, tiles.shape[-1] + _GAP
    columns = min(_COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(tiles) // columns) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), text_font(11)
    for number, (record, tile) in enumerate(zip(records, tiles, strict=True)):
        x, y = _GAP + number % columns * width, _GAP + number // columns * height
        sheet.paste(Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()), (x, y))
        names = [module.data.class_space.names[label] for label in record.labels]
        text = " ".join((", ".join(names) or record.prompt or record.image_id).split())
        cut = (f"{text[:length]}..." for length in range(len(text) - 1, 0, -1))
        shown = next((line for line in (text, *cut) if font.getlength(line) <= width - _GAP), "")
        draw.text((x, y + tile.shape[-2] + 2), shown, "black", font)
    with replacing(root / "contact_sheet.png") as file:
        sheet.save(file, "PNG")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image("1 samples/contact_sheet", np.asarray(sheet), 0, dataformats="HWC")
