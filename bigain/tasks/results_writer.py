"""The results of a run, from the logs of all its processes: `results.json`, scalars, columns, contact sheet."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.backbones.geometry import without_weights
from bigain.compressors.base import compressors_of, first_timesteps, nearest_timesteps
from bigain.cost.environment import environment
from bigain.cost.flops import Counted, reduction_percent
from bigain.cost.sites import site_table
from bigain.cost.timing import measured_by, timing_section
from bigain.diffusion.trials import TIMESTEPS
from bigain.errors import InputError
from bigain.metrics.accuracy import Accuracy, confusion_matrix
from bigain.metrics.base import Metric, evaluate
from bigain.metrics.linear_probe import LinearProbe
from bigain.metrics.multilabel import MeanAveragePrecision, Top1Precision
from bigain.metrics.representation import EffectiveRank, HighFrequency, NearestNeighbours, RepresentationClassifier
from bigain.runs.columns import write_columns, write_features
from bigain.runs.files import read_json
from bigain.runs.logs import read_records, read_skipped
from bigain.runs.records import FeatureRecord, ImageRecord, SampleRecord
from bigain.runs.results import read_results, write_ids, write_results
from bigain.runs.schema import RESULTS_VERSION, Results
from bigain.tasks.classifier import DiffusionClassifier
from bigain.tasks.contact_sheet import log_picture, write_contact_sheet
from bigain.tasks.prediction_writer import MODEL, predictions_folder, read_sessions
from bigain.tasks.probe import TRAINING, FeatureProbe
from bigain.tasks.sampler import DiffusionSampler
from bigain.tasks.scheduling import scheduler_settings
from bigain.tokens.grid import Grid

T = TypeVar("T")

# With more classes no confusion matrix is written: nobody can read it in a file.
_MOST_CLASSES = 200

_log = logging.getLogger(__name__)


class ProcessGather:
    """Gathers objects over all processes of a run. Unlike the trainer's own group, it waits more than half an hour."""

    def __init__(self, trainer: Trainer) -> None:
        """Create the process group; all processes call this together."""
        self._processes, year = trainer.world_size, timedelta(days=365)
        self._group: Any = torch.distributed.new_group(None, year, "gloo") if self._processes > 1 else None

    def gathered(self, value: T) -> list[T]:
        """Return the value of every process in the order of ranks; all processes call this."""
        values: list[Any] = [value] * self._processes
        if self._group is not None:
            torch.distributed.all_gather_object(values, value, self._group)
        return values


class RunResults(Callback, ABC):
    """Writes the results of a run from its logs. Subclasses add the results of their task.

    The module needs `data`, `backbone`, `example_condition` and the timesteps `visited`.

    Attributes:
        task: `classification`, `generation` or `features`.
        record: Type of the records in the log.
        fingerprint: Identity of the configuration, stored with the results.
    """

    task: str
    record: type[Any]

    def __init__(self, fingerprint: str | None = None) -> None:
        self.fingerprint = fingerprint

    def write_files(self, trainer: Trainer, module: Any, records: Sequence[Any]) -> None:
        """Write the other files of the task. Results are written last: with them a run counts as finished."""

    @abstractmethod
    def task_results(self, trainer: Trainer, module: Any, records: Sequence[Any]) -> dict[str, Any]:
        """Return the sections of `results.json` of the task: at least `metrics`, `protocol` and `evaluations`."""

    def timesteps(self, module: Any, records: Sequence[Any]) -> Mapping[int, int]:
        """Return evaluations at each timestep in 0..999, of one image if all are alike; without records, 1 at each."""
        return Counter(nearest_timesteps(module.visited))

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()
        module: Any = pl_module
        latent, timesteps = module.backbone.latents_of(module.data.image_size), self.timesteps(module, ())
        self._counted = Counted(without_weights(module.backbone), latent, module.example_condition)
        # A compressor that cannot work raises its error here, before the first image.
        self._flops = self._counted.count(compressors_of(trainer), timesteps, module.sampling_steps)
        grid = Grid(*latent[1:])
        tables = (site_table(c, module.backbone.denoiser, grid, timesteps) for c in compressors_of(trainer))
        self._sites = [row for rows in tables for row in rows]
        if trainer.is_global_zero:
            chosen = Path(trainer.default_root_dir, "images.txt")
            before = chosen.read_bytes() if chosen.is_file() else b""
            write_ids(chosen.parent, [item.image_id for item in module.data.items])
            self._same_images = chosen.read_bytes() == before

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gather = ProcessGather(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measured = self._gather.gathered(measured_by(trainer))
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                self._write(trainer, pl_module)
            except Exception as error:  # noqa: BLE001 -- the other processes must not wait for this one
                failure = error
        # No process returns before the files are written.
        message, *_ = self._gather.gathered(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        if message is not None:
            raise InputError(message)

    def _write(self, trainer: Trainer, module: Any) -> None:
        folder = predictions_folder(trainer)
        finished, items = read_records(folder, self.record), module.data.items
        prompts, chosen = getattr(module, "prompts", {}), [item for item in items if item.image_id in finished]
        asked = {item.image_id: (item.labels, prompts.get(item.image_id)) for item in chosen}
        records = [finished[image_id] for image_id in asked]
        if not records:
            reason = next(iter(read_skipped(folder).values()), f"none of them is in the log of {folder}")
            raise InputError(f"none of the {len(items)} images could be evaluated: {reason}")
        done = {record.image_id: (tuple(record.labels), getattr(record, "prompt", None)) for record in records}
        if changed := [image_id for image_id in asked if done[image_id] != asked[image_id]]:
            raise InputError(
                f"the label or the prompt of {changed[0]} changed since it was evaluated ({len(changed)} such images "
                f"in {folder}); choose another --output, or --overwrite true to delete the finished images"
            )
        if first_timesteps(compressors_of(trainer)) is not None:
            timesteps = self.timesteps(module, records)
            self._flops = self._counted.count(compressors_of(trainer), timesteps, module.sampling_steps)
        results = self._results(trainer, module, records)
        self.write_files(trainer, module, records)
        write_results(Path(trainer.default_root_dir), results)
        scalars = {f"metrics/{name}": estimate["value"] for name, estimate in results["metrics"].items()} | {
            "flops/gflops_per_evaluation": results["flops"]["gflops_per_evaluation"],
            "evaluations/per_image": results["evaluations"]["per_image"],
            "timing/seconds_per_image": results["timing"]["seconds_per_image"],
            "timing/rows_per_second": results["timing"]["denoiser"]["rows_per_second"],
        }
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in scalars.items() if value is not None}, step=len(records))

    def _results(self, trainer: Trainer, module: Any, records: Sequence[Any]) -> Results:
        data, backbone, folder = module.data, module.backbone, predictions_folder(trainer)
        finished, skipped = {record.image_id for record in records}, read_skipped(folder)
        results: Any = {
            "schema_version": RESULTS_VERSION,
            "task": self.task,
            "dataset": {
                "name": data.name,
                "images": len(records),
                "asked": len(data.items),
                "official": data.official_images,
                "classes": len(data.class_space),
                "image_size": data.image_size,
                "unlabelled": sum(not record.labels for record in records),
                "skipped": [
                    {"image_id": item.image_id, "reason": skipped[item.image_id]}
                    for item in data.items
                    if item.image_id in skipped.keys() - finished
                ],
            },
            "model": {
                "backbone": type(backbone).__name__,
                "name": backbone.model,
                **read_json(folder / MODEL, dict[str, str]),
            },
            "compressors": [compressor.description() for compressor in compressors_of(trainer)],
            "sites": self._sites,
            "flops": {
                "gflops_per_evaluation": self._flops.total / 1e9,
                "baseline_gflops": self._counted.baseline.total / 1e9,
                "reduction_percent": reduction_percent(self._flops, self._counted.baseline),
                "by_category": self._flops.gflops,
            },
            "timing": {
                "seconds": time.perf_counter() - self._start,
                "seconds_per_image": sum(record.seconds for record in records) / len(records),
                "resumed_images": sum(record.image_id in data.finished for record in records),
                **timing_section(self._measured),
            },
            **self.task_results(trainer, module, records),
            "environment": {
                **environment(trainer, module.device, backbone.denoiser),
                "sessions": read_sessions(folder),
            },
            "fingerprint": self.fingerprint,
        }
        return _with_earlier(results, folder.parent, self._same_images)


def _with_earlier(new: dict[str, Any], run: Path, same_images: bool) -> Any:
    """Return the earlier results of a run that had nothing left to do, with what only the new ones have.

    The earlier ones have the times of the forwards, and metrics that `bigain score` added. Those of other images are
    reported and left out.
    """
    try:
        earlier: Any = read_results(run)
    except InputError:
        return new
    images, resumed = new["dataset"]["images"], new["timing"]["resumed_images"]
    if not (same_images and resumed == images == earlier["dataset"]["images"]):
        if lost := earlier["metrics"].keys() - new["metrics"]:
            fix = "repeat `bigain score`, or give --baseline true"
            _log.warning(f"warning: results.json no longer has {', '.join(sorted(lost))}, of other images; {fix}")
        return new
    kept, named = (results["protocol"].get("reference") for results in (earlier, new))
    if None not in (kept, named) and kept != named:
        fix = f"`bigain score {run} --reference {new['protocol']['reference_file']}`"
        _log.warning(f"warning: the distances in results.json remain those to {kept['source']}; {fix} replaces them")
    merged = {
        section: {**new[section], **{name: value for name, value in earlier[section].items() if value is not None}}
        for section in ("metrics", "protocol")
    }
    # A metric that the earlier results have is not missing.
    missing = {
        key: reason for key, reason in new.items() if key.endswith("_missing") and earlier.get(key, reason) is not None
    }
    timing = {**earlier["timing"], "resumed_images": new["timing"]["resumed_images"]}
    return {**new, **earlier, **merged, **missing, "dataset": new["dataset"], "timing": timing}


class ResultsWriter(RunResults):
    """Writes `results.json` and `predictions/predictions.npz` of a classification: see `RunResults`."""

    task = "classification"
    record = ImageRecord

    def timesteps(self, module: DiffusionClassifier, records: Sequence[ImageRecord]) -> Mapping[int, int]:
        if not records:
            return super().timesteps(module, records)
        counts = np.zeros(TIMESTEPS, np.int64)
        for record in records:
            counts += np.bincount(np.minimum(record.timesteps, TIMESTEPS - 1), minlength=TIMESTEPS)
        return {step: int(count) for step, count in enumerate(counts) if count}

    def write_files(self, trainer: Trainer, module: DiffusionClassifier, records: Sequence[ImageRecord]) -> None:
        write_columns(Path(trainer.default_root_dir), records, len(module.data.class_space))

    def task_results(
        self, trainer: Trainer, module: DiffusionClassifier, records: Sequence[ImageRecord]
    ) -> dict[str, Any]:
        space = module.data.class_space
        standard: list[Metric] = [Top1Precision(), MeanAveragePrecision()] if space.multilabel else [Accuracy()]
        matrix = None
        if not space.multilabel:
            labels, predictions = [record.labels[0] for record in records], [record.prediction for record in records]
            matrix = confusion_matrix(labels, predictions, len(space))
        evaluations, seconds = sum(record.evaluations for record in records), sum(record.seconds for record in records)
        race, latent = module.race, module.backbone.latents_of(module.data.image_size)[1:]
        return {
            "metrics": evaluate([*standard, *module.metrics], records, space)[0],
            "per_class": matrix and [{"correct": row[label], "n": sum(row)} for label, row in enumerate(matrix)],
            "confusion_matrix": matrix if len(space) <= _MOST_CLASSES else None,
            "class_names": list(space.names),
            "evaluations": {
                "per_image": evaluations / len(records),
                "planned_per_image": module.evaluations_per_image(len(space)),
                "per_second": evaluations / seconds if seconds else None,
            },
            "scheduler": scheduler_settings(module.backbone.training_schedule),
            "protocol": {
                "stages": None if race else [[int(trial) for trial in stage] for stage in module.stages],
                "keep": None if race else module.keep,
                "budget": None if race else module.budget,
                "race": {**asdict(race), "trials": module.trial_count} if race else None,
                **{name: getattr(module, name) for name in ("timesteps", "loss", "seed")},
                # Only where they were asked for.
                **({"noises": module.noises} if module.noises > 1 else {}),
                **({"bands": {"count": module.bands, "grid": [*latent]}} if module.bands else {}),
                **({"weights": module.weights} if module.weights != "uniform" else {}),
            },
        }


class GenerationResults(RunResults):
    """Writes `results.json` and `contact_sheet.png` of a generation: see `RunResults`."""

    task = "generation"
    record = SampleRecord

    def write_files(self, trainer: Trainer, module: DiffusionSampler, records: Sequence[SampleRecord]) -> None:
        """Write the first images with their classes side by side, to a file and to the loggers."""
        if module.images == "none":
            return
        sheet = write_contact_sheet(Path(trainer.default_root_dir), records, module.images)
        for logger in trainer.loggers:
            log_picture(logger, "1 samples/contact_sheet", sheet, 0)

    def task_results(
        self, trainer: Trainer, module: DiffusionSampler, records: Sequence[SampleRecord]
    ) -> dict[str, Any]:
        measuring = module.measuring
        metrics, incomplete = evaluate(measuring.metrics, records, module.data.class_space)
        # This key always exists: null if no distance is missing.
        missing = {"distance": None, **incomplete, **measuring.missing}
        return {
            "metrics": metrics,
            **{f"{name}_missing": reason for name, reason in missing.items()},
            "evaluations": {"per_image": module.evaluations_per_image(len(module.data.class_space))},
            "scheduler": scheduler_settings(module.scheduler),
            "protocol": {
                "scheduler": module.scheduler_class.__name__,
                **{name: getattr(module, name) for name in ("scheduler_options", "steps", "guidance", "images")},
                "extractor": None if module.extractor is None else module.extractor.protocol,
                "reference_file": module.reference,
                "reference": None if measuring.reference is None else measuring.reference.described(),
                "seed": module.seed,
            },
        }


class FeatureResults(RunResults):
    """Writes `results.json` and `predictions/features.safetensors` of a feature probe: see `RunResults`."""

    task = "features"
    record = FeatureRecord

    def write_files(self, trainer: Trainer, module: FeatureProbe, records: Sequence[FeatureRecord]) -> None:
        in_order = sorted(records, key=lambda record: record.image_id)
        write_features(Path(trainer.default_root_dir), in_order, self._predictions)

    def task_results(self, trainer: Trainer, module: FeatureProbe, records: Sequence[FeatureRecord]) -> dict[str, Any]:
        names = list(module.data.class_space.names)
        metrics: list[Metric] = [NearestNeighbours(), EffectiveRank(), HighFrequency(), *module.metrics]
        if module.train_data is not None:
            metrics.insert(0, LinearProbe(Path(trainer.default_root_dir) / TRAINING, names))
        estimates, missing = evaluate(metrics, records, module.data.class_space)
        classifiers = [metric for metric in metrics if isinstance(metric, RepresentationClassifier)]
        self._predictions = {name: column for metric in classifiers for name, column in metric.predictions.items()}
        return {
            "metrics": estimates,
            **{f"{name}_missing": reason for name, reason in missing.items()},
            "class_names": names,
            "evaluations": {"per_image": len(module.timesteps)},
            "scheduler": scheduler_settings(module.backbone.training_schedule),
            "protocol": {
                "sites": {str(site.index): site.name for site in module.blocks},
                **{name: getattr(module, name) for name in ("timesteps", "pool", "train_data", "seed")},
            },
        }
