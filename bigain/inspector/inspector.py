"""The inspector: follows a few images through a run and draws pictures of the run at its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from bigain.compressors.onlookers import Decision
from bigain.data.base import EvalDataModule
from bigain.data.selection import Item, first_of_classes
from bigain.errors import InputError
from bigain.inspector.board import PICTURES, draw_run
from bigain.inspector.maps import Collector, evenly, read_maps, rows_of, write_maps
from bigain.inspector.watcher import Watcher, compressors_of
from bigain.runs.logs import finished_images
from bigain.runs.results import has_results
from bigain.tasks.prediction_writer import predictions_folder

# Most noise draws (steps) of an image, and sites, that are kept.
_DRAWS = 8
_SITES = 6

_log = logging.getLogger(__name__)


class Inspector(Watcher):
    """Draws what a compressor does to a few images, and the results of the whole run.

    The images are the first of each class in the order of the dataset. Their token maps are collected in the forwards
    of the run itself and stored in `pictures/` after each batch, so a resumed run shows all of them. At the end, the
    first process draws pictures from the files of the run, into the same folder and for TensorBoard. No number of the
    run changes. Place it before the callbacks that write predictions and results.
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
        sites = {site.index for compressor in compressors_of(trainer) for site in compressor.sites_of(denoiser)}
        self._sites = evenly(sorted(sites), _SITES)

    def begin_batch(self, module: LightningModule, image_ids: Sequence[str]) -> bool:
        rows = {item.image_id: rows_of(module, item, _DRAWS) for item in self._items if item.image_id in image_ids}
        if not rows or not self._sites:
            return False
        self._collector = Collector(rows, self._sites, module.device)
        return True

    def decided(self, decision: Decision) -> None:
        self._collector.add(decision)

    def end_batch(self, trainer: Trainer, image_ids: Sequence[str]) -> None:
        # Before the predictions are written: a finished image has its maps.
        for image_id, maps in self._collector.maps().items():
            write_maps(Path(trainer.default_root_dir) / PICTURES, image_id, maps)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After the results are written, which all processes wait for.
        if not trainer.is_global_zero or stage != "predict":
            return
        folder = Path(trainer.default_root_dir)
        if not has_results(folder):
            raise InputError(f"the inspector needs the results of {folder}; add a ResultsWriter after it")
        maps = {item: read_maps(folder / PICTURES, item.image_id) for item in self._items}
        unmapped = [item.image_id for item, sites in maps.items() if self._sites and not sites]
        done = finished_images(predictions_folder(trainer)) if unmapped else {}
        if missing := [image_id for image_id in unmapped if image_id in done]:
            advice = "which ran without the inspector before; run into a different --output to draw them"
            _log.warning(f"warning: no token maps of {', '.join(missing)}, {advice}")
        try:
            draw_run(folder, trainer.loggers, EvalDataModule.of(pl_module), maps)
        except (InputError, OSError, MemoryError) as error:
            # The results are complete; a long run must not fail because of a picture.
            _log.warning(f"warning: pictures could not be drawn ({error!r}); run the command again to draw them")
