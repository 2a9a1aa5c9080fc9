"""`results.json` and TensorBoard scalars at the end of a run, whatever its task."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.compressors.base import Compressor
from bigain.cost.environment import environment
from bigain.cost.flops import flops_per_evaluation, reduction_percent
from bigain.cost.sites import refuse_without_effect, site_table
from bigain.cost.timing import MEASURED, measured_by, timing_section
from bigain.data.base import EvalDataModule
from bigain.errors import InputError
from bigain.runs.files import read_json
from bigain.runs.logs import read_records, read_skipped
from bigain.runs.records import ImageRecord, SampleRecord
from bigain.runs.results import read_results, write_ids, write_results
from bigain.runs.schema import RESULTS_VERSION, Results
from bigain.tasks.gather import ProcessGather
from bigain.tasks.prediction_writer import MODEL, predictions_folder, read_sessions
from bigain.tokens.grid import Grid

R = TypeVar("R", ImageRecord, SampleRecord)


class RunResults(Callback, ABC, Generic[R]):
    """Writes the results of a run from its logs. Subclasses add the results of their task.

    The module needs `data`, `backbone` and `example_condition`.

    Attributes:
        task: `classification` or `generation`.
        record: Type of the records in the log.
        fingerprint: Identity of the configuration, stored with the results.
    """

    task: str
    record: type[R]

    def __init__(self, fingerprint: str | None = None) -> None:
        self.fingerprint = fingerprint

    def write_files(self, trainer: Trainer, module: Any, records: Sequence[R]) -> None:
        """Write the other files of the task. Results are written last: with them a run counts as finished."""

    @abstractmethod
    def task_results(self, trainer: Trainer, module: Any, records: Sequence[R]) -> dict[str, Any]:
        """Return the sections of `results.json` of the task: at least `metrics`, `protocol` and `evaluations`."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()
        module: Any = pl_module
        data, backbone = module.data, module.backbone
        shape = backbone.latents_of(data.image_size)
        compressors = [callback for callback in trainer.callbacks if isinstance(callback, Compressor)]  # type: ignore[attr-defined]
        # A compressor that cannot work raises its error here, before the first image.
        self._flops, self._baseline = flops_per_evaluation(backbone, shape, module.example_condition, compressors)
        latent = Grid(*shape[1:])
        self._sites = [row for compressor in compressors for row in site_table(compressor, backbone.denoiser, latent)]
        for compressor in compressors:
            refuse_without_effect(compressor, backbone.denoiser, latent)
        self._compressors = [compressor.description() for compressor in compressors]
        if trainer.is_global_zero:
            write_ids(Path(trainer.default_root_dir), [item.image_id for item in data.items])

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
        # No process leaves before the files are written.
        message, *_ = self._gather.gathered(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        if message is not None:
            raise InputError(message)

    def _write(self, trainer: Trainer, module: Any) -> None:
        folder = predictions_folder(trainer)
        finished, items = read_records(folder, self.record), module.data.items
        if not finished:
            reason = next(iter(read_skipped(folder).values()), "there were no images")
            raise InputError(f"none of the {len(items)} images could be evaluated: {reason}")
        done = [item for item in items if item.image_id in finished]
        if not done:
            raise InputError(f"none of the {len(finished)} images in the log of {folder} is in this run's dataset")
        records = [finished[item.image_id] for item in done]
        pairs = zip(done, records, strict=True)
        relabelled = [item.image_id for item, record in pairs if tuple(record.labels) != item.labels]
        if relabelled:
            raise InputError(
                f"the label of {relabelled[0]} changed since it was evaluated ({len(relabelled)} such images in "
                f"{folder}); choose another --output, or --overwrite true to delete the finished images"
            )
        results = self._results(trainer, module, records)
        self.write_files(trainer, module, records)
        write_results(Path(trainer.default_root_dir), results)
        scalars = {f"metrics/{name}": estimate["value"] for name, estimate in results["metrics"].items()}
        scalars["flops/gflops_per_evaluation"] = results["flops"]["gflops_per_evaluation"]
        scalars["evaluations/per_image"] = results["evaluations"]["per_image"]
        scalars["timing/seconds_per_image"] = results["timing"]["seconds_per_image"]
        if (rate := results["timing"]["denoiser"]["rows_per_second"]) is not None:
            scalars["timing/rows_per_second"] = rate
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=len(records))

    def _results(self, trainer: Trainer, module: Any, records: Sequence[R]) -> Results:
        data = module.data
        busy = sum(record.seconds for record in records)
        kernels = {kernel for process in self._measured for kernel in process.kernels}
        results: Any = {
            "schema_version": RESULTS_VERSION,
            "task": self.task,
            "dataset": _dataset(
                data, [record.image_id for record in records], read_skipped(predictions_folder(trainer))
            ),
            "model": {
                "backbone": type(module.backbone).__name__,
                "name": module.backbone.model,
                **read_json(predictions_folder(trainer) / MODEL, dict[str, str]),
            },
            "compressors": self._compressors,
            "sites": self._sites,
            "flops": {
                "gflops_per_evaluation": self._flops.total / 1e9,
                "baseline_gflops": self._baseline.total / 1e9,
                "reduction_percent": reduction_percent(self._flops, self._baseline),
                "by_category": self._flops.gflops,
                "by_operation": {operation: flops / 1e9 for operation, flops in self._flops.by_operation.items()},
            },
            "timing": {
                "seconds": time.perf_counter() - self._start,
                "seconds_per_image": busy / len(records),
                "resumed_images": sum(record.image_id in data.finished for record in records),
                **timing_section(self._measured),
            },
            **self.task_results(trainer, module, records),
            "environment": {
                **environment(trainer, module.device, module.backbone.denoiser, kernels),
                "sessions": read_sessions(predictions_folder(trainer)),
            },
            "fingerprint": self.fingerprint,
        }
        if not (results["timing"]["denoiser"]["forwards"] and kernels):
            _keep_measured(results, Path(trainer.default_root_dir), kernels)
        return results


def _keep_measured(results: Any, folder: Path, kernels: Collection[str]) -> None:
    """Take what this session did not measure, since no image was left, from the results of earlier commands."""
    try:
        earlier = read_results(folder)
    except InputError:
        return
    if not results["timing"]["denoiser"]["forwards"]:
        results["timing"] |= {key: value for key, value in earlier["timing"].items() if key in MEASURED}
        if earlier["dataset"]["images"] == results["dataset"]["images"]:
            # `bigain score` may have added metrics, or taken a different reference.
            old, new = earlier["protocol"], results["protocol"]
            rescored = any(old.get(name) != new.get(name) for name in ("extractor", "reference_file"))
            for section in ("metrics", "protocol"):
                measured = {name: value for name, value in results[section].items() if value is not None}
                results[section] |= earlier[section] if rescored else {**earlier[section], **measured}
            for key, value in earlier.items():
                if key not in results or (key.endswith("_missing") and value is None):
                    results[key] = value
    if not kernels and "attention_backend" in earlier["environment"]:
        results["environment"]["attention_backend"] = earlier["environment"]["attention_backend"]


def _dataset(data: EvalDataModule, done: Sequence[str], skipped: dict[str, str]) -> dict[str, Any]:
    """Describe the dataset, the images that were evaluated, and those that could not be."""
    finished = set(done)
    return {
        "name": data.name,
        "images": len(done),
        "asked": len(data.items),
        "official": data.official_images,
        "classes": len(data.class_space),
        "image_size": data.image_size,
        "unlabelled": sum(not item.labels for item in data.items if item.image_id in finished),
        "skipped": [
            {"image_id": item.image_id, "reason": skipped[item.image_id]}
            for item in data.items
            if item.image_id in skipped and item.image_id not in finished
        ],
    }
