"""`results.json`, `predictions/predictions.npz` and TensorBoard scalars at the end of a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.callbacks.environment import environment
from bigain.callbacks.flops import flops_per_evaluation
from bigain.callbacks.prediction_writer import predictions_folder, read_records, read_skipped
from bigain.compressors.base import Compressor
from bigain.data.base import EvalDataModule
from bigain.errors import InputError
from bigain.metrics.classification import classification_metrics
from bigain.metrics.records import ImageRecord, to_columns
from bigain.modules.classifier import DiffusionClassifier
from bigain.tokens.grid import Grid

SCHEMA_VERSION = 1


class ResultsWriter(Callback):
    """Writes the results of a classification run from its prediction logs.

    Attributes:
        fingerprint: Identity of the configuration, stored with the results.
    """

    def __init__(self, fingerprint: str | None = None) -> None:
        self.fingerprint = fingerprint

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionClassifier)
        self._start = time.perf_counter()
        data, backbone = pl_module.data, pl_module.backbone
        shape = backbone.latents_of(data.image_size)
        # Also the first forward: what a compressor refuses, it refuses before any image.
        self._flops = flops_per_evaluation(backbone, shape, pl_module.conditions[:1])
        compressors = [callback for callback in trainer.callbacks if isinstance(callback, Compressor)]  # type: ignore[attr-defined]
        latent = Grid(*shape[1:])
        self._sites = [row for compressor in compressors for row in site_table(compressor, backbone.denoiser, latent)]
        for compressor in compressors:
            _refuse_without_effect(compressor, backbone.denoiser, latent)
        self._compressors = [describe(compressor) for compressor in compressors]
        if trainer.is_global_zero:
            # Which images these settings chose: an id file that another run can be given as its subset.
            ids = "".join(f"{item.image_id}\n" for item in data.items)
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "images.txt", lambda path: path.write_text(ids, encoding="utf-8"))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionClassifier)
        trainer.strategy.barrier()
        folder = predictions_folder(trainer)
        if not any(path.stat().st_size for path in folder.glob("rank-*.jsonl")):
            # All processes find the same, so all stop here.
            reason = next(iter(read_skipped(folder).values()), "there was nothing to do")
            raise InputError(f"none of all {len(pl_module.data.items)} images could be evaluated: {reason}")
        if trainer.is_global_zero:
            self._write(trainer, pl_module)
        # Nobody leaves before the files are there.
        trainer.strategy.barrier()

    def _write(self, trainer: Trainer, pl_module: DiffusionClassifier) -> None:
        data = pl_module.data
        finished = read_records(predictions_folder(trainer))
        records = [finished[item.image_id] for item in data.items if item.image_id in finished]
        if not records:
            return
        results = self._results(trainer, pl_module, data, records)
        folder = predictions_folder(trainer)
        columns: dict[str, Any] = to_columns(records, len(data.class_space))
        replace_file(folder / "predictions.npz", lambda path: np.savez_compressed(path, **columns))
        text = json.dumps(results, indent=2) + "\n"
        replace_file(
            Path(trainer.default_root_dir) / "results.json", lambda path: path.write_text(text, encoding="utf-8")
        )
        scalars = {f"metrics/{name}": estimate["value"] for name, estimate in results["metrics"].items()}
        scalars["flops/gflops_per_evaluation"] = results["flops"]["gflops_per_evaluation"]
        scalars["timing/seconds_per_image"] = results["timing"]["seconds_per_image"]
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=len(records))

    def _results(
        self, trainer: Trainer, module: DiffusionClassifier, data: EvalDataModule, records: Sequence[ImageRecord]
    ) -> dict[str, Any]:
        space = data.class_space
        skipped = read_skipped(predictions_folder(trainer))
        done = {record.image_id for record in records}
        evaluations = sum(len(record.errors) for record in records)
        busy = sum(record.seconds for record in records)
        return {
            "schema_version": SCHEMA_VERSION,
            "task": "classification",
            "dataset": {
                "name": data.name,
                "images": len(records),
                "asked": len(data.items),
                "official": data.official_images,
                "classes": len(space),
                "unlabelled": sum(not record.labels for record in records),
                "skipped": [
                    {"image_id": item.image_id, "reason": skipped[item.image_id]}
                    for item in data.items
                    if item.image_id in skipped and item.image_id not in done
                ],
            },
            "model": {"backbone": type(module.backbone).__name__, "name": module.backbone.model},
            "compressors": self._compressors,
            **classification_metrics(records, space),
            "class_names": list(space.names),
            "sites": self._sites,
            "evaluations": {
                "per_image": evaluations / len(records),
                "planned_per_image": module.evaluations_per_image(len(space)),
            },
            "flops": {
                "gflops_per_evaluation": sum(self._flops.values()) / 1e9,
                "by_operation": {operation: flops / 1e9 for operation, flops in self._flops.items()},
            },
            "timing": {
                "seconds": time.perf_counter() - self._start,
                "seconds_per_image": busy / len(records),
                "evaluations_per_second": evaluations / busy if busy else None,
                "resumed_images": len(data.finished & done),
            },
            "protocol": {
                "stages": [[int(trial) for trial in stage] for stage in module.stages],
                "keep": module.keep,
                "budget": module.budget,
                "timesteps": module.timesteps,
                "loss": module.loss,
                "seed": module.seed,
            },
            "environment": environment(trainer, module.device, module.backbone.denoiser),
            "fingerprint": self.fingerprint,
        }


def site_table(compressor: Compressor, denoiser: torch.nn.Module, latent: Grid) -> list[dict[str, Any]]:
    """Name, place and tokens in and out of every site of a compressor."""
    return [
        {
            "name": site.name,
            "index": site.index,
            "part": site.part,
            "stride": site.stride,
            "tokens_in": site.grid(latent).n,
            "tokens_out": compressor.tokens_out(site, latent),
            "compressor": type(compressor).__name__,
        }
        for site in compressor.sites_of(denoiser)
    ]


def describe(compressor: Compressor) -> dict[str, Any]:
    """Class and settings of a compressor, as text where they are not plain values."""
    return {"class": type(compressor).__name__, "settings": _plain(compressor.settings())}


def _plain(value: Any) -> Any:
    if isinstance(value, Compressor):
        return describe(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", str(value))


def _refuse_without_effect(compressor: Compressor, denoiser: torch.nn.Module, latent: Grid) -> None:
    for row in site_table(compressor, denoiser, latent):
        if row["tokens_out"] >= row["tokens_in"]:
            raise InputError(f"{type(compressor).__name__} changes nothing at {row['name']}: {row['tokens_in']} tokens")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    write(temporary)
    os.replace(temporary, path)
