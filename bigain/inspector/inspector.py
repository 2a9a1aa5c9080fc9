"""The inspector: draws what a compressor does to a few images, and curves at the end of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from bigain.compressors.base import compressors_of
from bigain.compressors.onlookers import Decision
from bigain.data.base import EvalDataModule
from bigain.data.images import decode_files
from bigain.data.selection import Item, first_of_classes
from bigain.errors import InputError
from bigain.inspector.board import PICTURES, draw_image, draw_run
from bigain.inspector.maps import Collector, evenly, rows_of
from bigain.inspector.sheets import Subject
from bigain.inspector.watcher import Watcher, watchable
from bigain.runs.names import label
from bigain.runs.records import ImageRecord
from bigain.tasks.sampler import Generated

# Most noise draws (steps) of an image, and sites, that are kept.
_DRAWS = 8
_SITES = 6

_log = logging.getLogger(__name__)


class Inspector(Watcher):
    """Draws what a compressor does to a few images, and the results of the whole run.

    The images are the first of each class in the order of the dataset. Their token maps are collected in the forwards
    of the run itself and drawn into `pictures/` after each batch. At the end, the first process draws curves from the
    files of the run into the same folder, and shows all pictures in the trainer's loggers. No number of the run
    changes. Place it before the callbacks that write predictions and results.
    """

    def __init__(self, images: int = 4) -> None:
        """Set the inspector up.

        Args:
            images: Number of images to follow.

        Raises:
            InputError: If it is not positive.
        """
        if images < 1:
            raise InputError(f"inspect must be at least 1 image, or 0 or null for no pictures, not {images}")
        super().__init__()
        self.images = images
        self._items: list[Item] = []
        self._sites: list[int] = []
        self._collector: Collector

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._items = first_of_classes(EvalDataModule.of(pl_module).items, self.images)
        denoiser: Any = pl_module.backbone.denoiser  # type: ignore[union-attr]
        sites = {site.index for compressor in watchable(trainer) for site in compressor.sites_of(denoiser)}
        self._sites = evenly(sorted(sites), _SITES)

    def begin_batch(self, module: LightningModule, image_ids: Sequence[str]) -> bool:
        rows = {item.image_id: rows_of(module, item, _DRAWS) for item in self._items if item.image_id in image_ids}
        if not rows or not self._sites:
            return False
        self._collector = Collector(rows, self._sites, module.device)
        return True

    def decided(self, decision: Decision) -> None:
        self._collector.add(decision)

    def end_batch(self, trainer: Trainer, module: LightningModule, image_ids: Sequence[str], outputs: Any) -> None:
        # Before the predictions are written: a finished image has its pictures.
        maps = self._collector.maps()
        with _warning_of_pictures():
            for number, item in enumerate(self._items):
                if item.image_id in maps and (subject := _subject(item, trainer, module, outputs)) is not None:
                    draw_image(Path(trainer.default_root_dir) / PICTURES, number, subject, maps[item.image_id])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After the results are written, which all processes wait for.
        if not trainer.is_global_zero or stage != "predict":
            return
        with _warning_of_pictures():
            draw_run(Path(trainer.default_root_dir), trainer.loggers, EvalDataModule.of(pl_module).class_space.names)


@contextmanager
def _warning_of_pictures() -> Iterator[None]:
    """Turn an error into a warning: a long run must not fail because of a picture."""
    try:
        yield
    except (InputError, OSError, MemoryError) as error:
        _log.warning(f"warning: pictures could not be drawn: {error!r}")


def _subject(item: Item, trainer: Trainer, module: Any, outputs: Any) -> Subject | None:
    """Return an image of a batch with its title, from what the step returned; None if the step failed for it."""
    files, records = outputs if isinstance(outputs, Generated) else ((), outputs)
    number = next((number for number, record in enumerate(records) if record.image_id == item.image_id), None)
    if number is None:
        return None
    data = EvalDataModule.of(module)
    names = data.class_space.names
    title = f"{item.image_id}: " + (", ".join(names[index] for index in item.labels[:3]) or "no class")
    image: Tensor | None = None
    if files:
        image = decode_files([files[number]])[0]
    elif not isinstance(outputs, Generated):
        try:
            image = data.read_image(item)
        except InputError:
            # Its latent was cached and the image is gone; the maps are still useful.
            title += ", which can no longer be read"
    record = records[number]
    if isinstance(record, ImageRecord):
        title += f"; predicted {names[record.prediction]} ({'right' if record.prediction in item.labels else 'wrong'})"
    methods = label([compressor.description() for compressor in compressors_of(trainer)])
    run = f"{methods}, {module.backbone.model}, {data.name}"
    picture = np.full((64, 64, 3), 160, np.uint8) if image is None else image.permute(1, 2, 0).numpy()
    return Subject(picture, [title, run])
