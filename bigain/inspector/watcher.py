"""The base class of callbacks that watch compressors in some batches of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bigain.compressors.base import Compressor, compressors_of
from bigain.compressors.onlookers import Onlooker
from bigain.compressors.structural import StructuralPruner


class Watcher(Callback, Onlooker):
    """A callback that watches the compressors of a run in the batches it chooses, and costs nothing in others."""

    def __init__(self) -> None:
        self._watched: list[Compressor] = []

    def begin_batch(self, module: LightningModule, image_ids: Sequence[str]) -> bool:
        """Prepare for a batch; return whether to watch it."""
        return True

    def end_batch(self, trainer: Trainer, module: LightningModule, image_ids: Sequence[str], outputs: Any) -> None:
        """Use the observations of a watched batch, and what the module's step returned for it."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self.begin_batch(pl_module, batch["image_id"]):
            self._watched = watchable(trainer)
            for compressor in self._watched:
                compressor.onlookers.append(self)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self._watched:
            self._stop_watching()
            self.end_batch(trainer, pl_module, batch["image_id"], outputs)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_watching()

    def _stop_watching(self) -> None:
        for compressor in self._watched:
            compressor.onlookers.remove(self)
        self._watched = []


def watchable(trainer: Trainer) -> list[Compressor]:
    """Return the compressors among the callbacks of a trainer that decide on tokens, as pruners do not."""
    return [compressor for compressor in compressors_of(trainer) if not isinstance(compressor, StructuralPruner)]
