"""The results of a generation run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid, save_image

from bigain.data.images import read_images, sample_path
from bigain.metrics.generation import LEAST_IMAGES, agreement_metrics, clip_metrics, distance_metrics
from bigain.runs.files import replacing
from bigain.runs.records import SampleRecord
from bigain.tasks.run_results import RunResults
from bigain.tasks.sample_writer import FOLDER
from bigain.tasks.sampler import DiffusionSampler

_SHEET = 64

_log = logging.getLogger(__name__)


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
        missing = measuring.no_distance
        with_features = [record.features for record in records if record.features is not None]
        if missing is None and len(with_features) < len(records):
            missing = f"{len(records) - len(with_features)} images were made without features; run bigain score"
        if missing is None and len(records) < LEAST_IMAGES:
            missing = f"{len(records)} images are too few for a distance"
        reference = measuring.reference
        metrics: dict[str, Any] = {}
        features = np.asarray(with_features, np.float32)
        if missing is None and reference is not None:
            metrics = distance_metrics(features, reference)
        if measuring.extractor is not None and len(features) == len(records):
            asked = [record.labels for record in records]
            metrics.update(agreement_metrics(measuring.extractor, features, asked, module.data.class_space))
        scores = [record.clip_score for record in records if record.clip_score is not None]
        no_score = measuring.no_clip_score
        if module.clip_model is not None and no_score is None and len(scores) < len(records):
            no_score = f"{len(records) - len(scores)} images were made without; run bigain score --clip-model"
        if scores and len(scores) == len(records):
            metrics.update(clip_metrics(scores, str(module.clip_model)))
        return {
            "metrics": metrics,
            "distance_missing": missing,
            "clip_score_missing": no_score,
            "evaluations": {"per_image": len(module.scheduler.timesteps) * (1 if module.guidance == 1 else 2)},
            "protocol": {
                "scheduler": module.scheduler_class.__name__,
                "scheduler_options": module.scheduler_options,
                "steps": module.steps,
                "guidance": module.guidance,
                "images": module.images,
                "extractor": None if module.extractor is None else module.extractor.protocol,
                "reference_file": module.reference,
                "clip_model": module.clip_model,
                "reference": None if reference is None else reference.described(),
                "seed": module.seed,
            },
        }


def _contact_sheet(trainer: Trainer, module: DiffusionSampler, records: Sequence[SampleRecord]) -> None:
    """The first images side by side, as a file and in TensorBoard."""
    if module.images == "none":
        return
    root = Path(trainer.default_root_dir)
    paths = [sample_path(root / FOLDER, record.image_id, module.images) for record in records[:_SHEET]]
    images = read_images(paths)
    # A sheet is for looking at: no more than 128 px each.
    images = images[..., :: max(1, images.shape[-2] // 128), :: max(1, images.shape[-1] // 128)]
    grid = make_grid(images, nrow=8)
    with replacing(root / "contact_sheet.png") as file:
        save_image(grid.to(torch.float32) / 255, file, format="png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image("samples/contact_sheet", grid, 0)
