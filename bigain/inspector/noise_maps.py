"""Token maps of one site at one timestep, without a class prompt, over many noises: what `bigain maps` draws."""

from __future__ import annotations

import torch

from bigain.backbones.forward import RowKeys
from bigain.compressors.onlookers import Decision, Onlooker
from bigain.data.loader import Batch
from bigain.data.selection import Item, first_of_classes
from bigain.diffusion.trials import keys_of_trials
from bigain.errors import InputError
from bigain.inspector.maps import Collector, SiteMap
from bigain.runs.records import ImageRecord
from bigain.tasks.classifier import DiffusionClassifier
from bigain.tasks.preparing import BackboneModule


class NoiseMaps(DiffusionClassifier, Onlooker):
    """Collects the decisions of a compressor about the first images of each class, under noises of one timestep.

    The condition of all rows is the unconditional one. The noises are those of the first trials of a classification.

    Attributes:
        maps: The map of each image that is done.
    """

    def __init__(self, module: BackboneModule, site: int, timestep: int, draws: int, images: int, seed: int) -> None:
        """Take the backbone of a module and its rows per forward, 64 if it has no limit.

        Args:
            module: Classifier or sampler; not changed.
            site: Index of the site.
            timestep: In 0..999.
            draws: Noises of each image.
            images: Images to look at: see `first_of_classes`.
            seed: Of the noises.
        """
        super().__init__(module.backbone, rows_per_forward=module.forwards.rows or 64, share=False, seed=seed)
        self.site = site
        self.timestep = timestep
        self.draws = draws
        self.images = images
        self.maps: dict[Item, SiteMap] = {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.data.items = first_of_classes(self.data.items, self.images)

    @torch.inference_mode()
    def on_predict_start(self) -> None:
        self.conditions = self.backbone.null_condition()
        self.backbone.finish_conditions()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ImageRecord]:
        ids = batch["image_id"]
        if not ids:
            return []
        keys = keys_of_trials(ids, self.draws, self.seed, self.device)
        self._collector = Collector(dict(zip(ids, map(RowKeys, keys), strict=True)), {self.site}, self.device)
        rows = keys.flatten()
        timesteps = torch.full_like(rows, self.timestep)
        latents = self.encode_batch(batch).repeat_interleave(self.draws, 0)
        self._errors(latents, rows, timesteps, torch.zeros_like(rows)[:, None])
        maps = self._collector.maps()
        if not maps:
            raise InputError(
                f"nothing is decided about tokens at timestep {self.timestep}, so there is nothing to draw; choose a "
                "method that merges tokens or downsamples keys and a --timestep at which it acts"
            )
        self.maps |= {
            Item(image_id, labels): maps[image_id][0] for image_id, labels in zip(ids, batch["labels"], strict=True)
        }
        return []

    def decided(self, decision: Decision) -> None:
        self._collector.add(decision)
