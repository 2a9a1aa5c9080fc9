"""The results of a classification run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from bigain.metrics.accuracy import Accuracy, confusion_matrix
from bigain.metrics.base import Metric, evaluate
from bigain.metrics.multilabel import MeanAveragePrecision, Top1Precision
from bigain.runs.columns import write_columns
from bigain.runs.records import ImageRecord
from bigain.tasks.classifier import DiffusionClassifier
from bigain.tasks.run_results import RunResults

# With more classes no confusion matrix is written: nobody can read it in a file.
_MOST_CLASSES = 200


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
        evaluations = sum(len(record.errors) for record in records)
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
