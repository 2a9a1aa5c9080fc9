"""The inspector: follows a few fixed images through a run, and shows the whole of it at the end."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.backbones.forward import RowKeys
from bigain.compressors.base import Compressor, Decision, Onlooker
from bigain.data.base import EvalDataModule
from bigain.data.selection import Item, first_of_classes
from bigain.errors import InputError
from bigain.inspector.maps import Collected, parts_of, read_maps, write_maps
from bigain.inspector.rows import evenly, matches, rows_of
from bigain.inspector.show import Shown, show
from bigain.runs.logs import finished_ids
from bigain.tasks.prediction_writer import predictions_folder

FOLDER = "pictures"
# Noise draws (steps) that are kept of an image, and sites.
_DRAWS = 8
_SITES = 6

_log = logging.getLogger(__name__)


class Inspector(Callback, Onlooker):
    """Shows what a compressor does to a few fixed images, and the results of the whole run, as pictures.

    The images are the first of each class in the order of the dataset. What is decided about them is collected in the
    forwards of the run itself and stored in `pictures/` when their batch is done, so a run that goes on shows all of
    them. At the end the first process draws from the files of the run, into the same folder and for TensorBoard. No
    number of the run changes. Place it before the callbacks that write predictions and results.
    """

    def __init__(self, images: int = 4) -> None:
        """Set the inspector up.

        Args:
            images: How many images to follow.

        Raises:
            InputError: If it is not positive.
        """
        if images < 1:
            raise InputError(f"inspect must be at least 1 image, or 0 or null for no pictures, not {images}")
        self.images = images
        self._items: list[Item] = []
        self._sites: set[int] = set()
        self._compressors: list[Compressor] = []
        self._collected = Collected()
        self._here: list[int] = []
        self._which: list[tuple[int, int]] = []
        self._wanted: RowKeys | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compressors = [one for one in trainer.callbacks if isinstance(one, Compressor)]  # type: ignore[attr-defined]
        self._items = first_of_classes(EvalDataModule.of(pl_module).items, self.images)
        denoiser: Any = pl_module.backbone.denoiser  # type: ignore[union-attr]
        acted_on = sorted({site.index for one in self._compressors for site in one.sites_of(denoiser)})
        self._sites = set(evenly(acted_on, _SITES))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        here = [item for item in self._items if item.image_id in set(batch["image_id"])]
        if not here or not self._compressors:
            return
        self._here = [self._items.index(item) for item in here]
        rows = [rows_of(pl_module, item, _DRAWS) for item in here]
        self._which = [
            (image, draw) for image, of_one in zip(self._here, rows, strict=True) for draw in range(len(of_one.keys))
        ]
        classes = [of_one.classes for of_one in rows if of_one.classes is not None]
        device = pl_module.device
        keys = torch.cat([of_one.keys for of_one in rows]).to(device)
        self._wanted = RowKeys(keys, torch.cat(classes).to(device) if classes else None)
        for compressor in self._compressors:
            compressor.onlookers.append(self)

    def decided(self, decision: Decision) -> None:
        if decision.site.index not in self._sites:
            return
        cache, key = decision.context.cache, (id(self), "rows")
        if key not in cache:
            assert self._wanted is not None
            cache[key] = matches(decision.context, self._wanted)
        rows, which = cache[key]
        if which:
            parts = parts_of(decision, rows)
            self._collected.add(decision, parts, [self._which[i] for i in which])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Before the writer of predictions: what is finished has its maps.
        for image in self._here:
            maps = self._collected.of_image(image)
            if maps:
                write_maps(_maps_file(trainer, self._items[image]), self._items[image].image_id, maps)
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        for compressor in self._compressors:
            if self in compressor.onlookers:
                compressor.onlookers.remove(self)
        self._collected = Collected()
        self._here = []
        self._which = []
        self._wanted = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After the results, which all processes have waited for.
        if not trainer.is_global_zero or stage != "predict":
            return
        data = EvalDataModule.of(pl_module)
        found = [read_maps(_maps_file(trainer, item), item.image_id) for item in self._items]
        missing = [one.image_id for one, maps in zip(self._items, found, strict=True) if maps is None]
        without = []
        if self._compressors and missing:
            done = finished_ids(predictions_folder(trainer))
            without = [image_id for image_id in missing if image_id in done]
        if without:
            _log.warning(
                f"warning: there are no pictures of the tokens of {', '.join(without)}, which ran without the "
                "inspector before; for them run into another --output"
            )
        folder = Path(trainer.default_root_dir)
        try:
            show(trainer, Shown(folder, folder / FOLDER, data, self._items, [maps or [] for maps in found]))
        except (OSError, MemoryError) as error:
            # The results are whole, and a run of hours has not failed for want of a picture.
            _log.warning(f"warning: pictures could not be drawn ({error!r}); run the command again to draw them")


def _maps_file(trainer: Trainer, item: Item) -> Path:
    # By the id, which may hold anything: a run that is extended follows other images.
    name = hashlib.sha256(item.image_id.encode()).hexdigest()[:12]
    return Path(trainer.default_root_dir) / FOLDER / f"maps_{name}.npz"
