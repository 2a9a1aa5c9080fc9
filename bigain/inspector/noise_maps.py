"""Token maps of one site at one timestep, without a class prompt, over many noises: what `bigain maps` draws."""

from __future__ import annotations

import torch

from bigain.backbones.base import Backbone
from bigain.backbones.forward import RowKeys
from bigain.compressors.base import Decision, Onlooker
from bigain.data.loader import Batch
from bigain.data.selection import Item, first_of_classes
from bigain.diffusion.trials import TIMESTEPS, keys_of_trials
from bigain.errors import InputError
from bigain.inspector.maps import Collector, SiteMap
from bigain.runs.records import ImageRecord
from bigain.tasks.classifier import DiffusionClassifier


class NoiseMaps(DiffusionClassifier, Onlooker):
    """Collects the decisions of a compressor about the first images of each class, under noises of one timestep.

    The condition of all rows is the unconditional one. The noises are those of the first trials of a classification.

    Attributes:
        maps: The map of each image that is done.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        site: int,
        timestep: int,
        draws: int,
        images: int,
        rows_per_forward: int = 64,
        seed: int = 0,
    ) -> None:
        """Set it up; nothing is loaded yet.

        Args:
            backbone: The diffusion model.
            site: Index of the site.
            timestep: In 0..999.
            draws: Noises of each image.
            images: Images to look at: see `first_of_classes`.
            rows_per_forward: Most noises per denoiser call.
            seed: Of the noises.

        Raises:
            InputError: If a number is out of range.
        """
        super().__init__(backbone, rows_per_forward=rows_per_forward, share=False, seed=seed)
        for name, value in (("draws", draws), ("images", images)):
            if value < 1:
                raise InputError(f"--{name} must be at least 1, not {value}")
        if not 0 <= timestep < TIMESTEPS:
            raise InputError(f"--timestep must be in 0..{TIMESTEPS - 1}, not {timestep}")
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
        latents = self._latents(batch).repeat_interleave(self.draws, 0)
        self._errors(latents, rows, timesteps, torch.zeros_like(rows)[:, None])
        maps = self._collector.maps()
        self.maps |= {
            Item(image_id, labels): maps[image_id][0] for image_id, labels in zip(ids, batch["labels"], strict=True)
        }
        return []

    def decided(self, decision: Decision) -> None:
        self._collector.add(decision)
