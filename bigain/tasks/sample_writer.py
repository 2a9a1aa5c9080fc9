"""Generated images on disk, and their log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid

from bigain.errors import InputError
from bigain.runs.files import replacing
from bigain.runs.logs import Place, finished_images
from bigain.runs.records import SampleRecord
from bigain.runs.samples import FOLDER, sample_path
from bigain.tasks.prediction_writer import PredictionWriter, predictions_folder
from bigain.tasks.sampler import DiffusionSampler, Generated


class SampleWriter(PredictionWriter):
    """Writes generated images to `samples/<id>.png` and then their lines to the log: see `PredictionWriter`.

    A line in the log means that the image exists: a run that was killed in between generates the image again.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DiffusionSampler)
        self._format = pl_module.images
        self._folder = Path(trainer.default_root_dir) / FOLDER
        super().setup(trainer, pl_module, stage)
        if self._format != "none" and trainer.is_global_zero:
            chosen = {item.image_id for item in trainer.datamodule.items}  # type: ignore[attr-defined]
            # An extended run has images that are no longer chosen.
            self._check_files([*chosen.union(finished_images(predictions_folder(trainer)))])

    def still_there(self, trainer: Trainer, finished: Mapping[str, Place]) -> frozenset[str]:
        if self._format == "none":
            return frozenset(finished)
        # A deleted image is generated again.
        return frozenset(i for i in finished if sample_path(self._folder, i, self._format).is_file())

    def _check_files(self, image_ids: Sequence[str]) -> None:
        """Raise an InputError if two images would be one file, or files in the folder do not belong to this run."""
        # Names of the lock file, which exists: some file systems ignore case.
        if (self._folder.parent / ".LOCK-0").exists():
            ids = {str(sample_path(self._folder, i, self._format)).lower(): i for i in image_ids}
            if same := set(image_ids).difference(ids.values()):
                raise InputError(
                    f"the image of {min(same)!r} and another one differ only in upper and lower case, which the file "
                    f"system of {self._folder.parent} ignores; choose another --output, or leave one out with "
                    "--data.subset"
                )
        # After a kill, there can be images that are not in the log yet, and temporary files.
        own = {sample_path(self._folder, i, self._format) for i in (image_ids if self.resume else ())}
        files = (path for path in self._folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
        other = next((path for path in files if path not in own), None)
        if other is not None:
            raise InputError(f"{self._folder} holds other images, such as {other}; choose another --output")

    def records_of(self, trainer: Trainer, outputs: Generated) -> Sequence[SampleRecord]:
        if outputs.files:
            paths = [sample_path(self._folder, record.image_id, self._format) for record in outputs.records]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(_write, paths, outputs.files))
        if outputs.trajectory is not None:
            _show(trainer, outputs.trajectory)
        return outputs.records


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _show(trainer: Trainer, trajectory: torch.Tensor) -> None:
    """Show the first images on their way from noise to image in TensorBoard, one row per image."""
    grid = make_grid(trajectory.transpose(0, 1).flatten(0, 1), nrow=len(trajectory))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image("1 samples/from_noise_to_image", grid, 0)
