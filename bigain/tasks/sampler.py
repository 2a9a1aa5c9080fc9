"""The sampler: one image per item of a dataset, from its class, prompt or caption."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.forward import Sharing, row_keys
from bigain.data.base import EvalDataModule
from bigain.data.images import ImageFormat, decode_files, encode_images, quantise
from bigain.data.loader import Batch
from bigain.diffusion.sampling import Trajectory, item_keys, sample, step_keys
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.runs.records import SampleRecord
from bigain.tasks.forwards import ROWS_ON_CPU, Forwards
from bigain.tasks.measuring import Measuring, prepare_measuring
from bigain.tasks.preparing import BackboneModule
from bigain.tasks.scheduling import count_steps, make_scheduler
from bigain.tokens.randomness import stable_hash

# Shown at so many points of the first batch's way from noise to image.
_SHOWN_ITEMS, _SHOWN_STEPS = 4, 5


@dataclass
class Generated:
    """Images of a batch and what is kept of them.

    Attributes:
        files: Encoded images; empty where none are kept.
        records: b records.
        trajectory: Decoded latents of the first items after some of the steps, `(steps, items, 3, s, s)` uint8; None
            but for the first batch.
    """

    files: Sequence[bytes]
    records: Sequence[SampleRecord]
    trajectory: Tensor | None = None


class DiffusionSampler(BackboneModule):
    """Samples with classifier-free guidance (Ho and Salimans, 2021), one forward per step for the guided pair.

    Every image is a function of (seed, image id): batch size, order and process count do not enter.
    """

    def __init__(
        self,
        backbone: Backbone,
        scheduler: type[SchedulerMixin],
        scheduler_options: Mapping[str, Any] | None = None,
        steps: int = 50,
        guidance: float = 7.5,
        images: ImageFormat = "png",
        extractor: FeatureExtractor | None = None,
        reference: str | None = None,
        clip_model: str | None = None,
        items_per_forward: int | None = None,
        share: bool = True,
        seed: int = 0,
    ) -> None:
        """Set the sampler up; nothing heavy happens here.

        Args:
            backbone: The diffusion model.
            scheduler: A diffusers scheduler class; noise schedule and prediction type are the model's.
            scheduler_options: Further settings of the scheduler, e.g. `timestep_spacing: linspace`.
            steps: Denoising steps.
            guidance: Weight w of `null + w * (conditional - null)`; 1 samples without guidance, in half the rows.
            images: `png`, rounded; `jpeg100_truncate`, as the release writes them; or `none`, to keep features only.
            extractor: Of features for distances to real images; null computes none.
            reference: Statistics of real images, an `.npz` file of the extractor's protocol; null computes no distance.
            clip_model: Folder of a CLIP model, for the similarity of every image and its prompt; null computes none.
            items_per_forward: Items, each with its guided pair, in one forward at most; null: the whole batch. On a
                CPU 4, if that is less; halved when memory runs out: see `Forwards`.
            share: Compute once what both rows of a guided pair have in common, on a U-Net: see `share`.
            seed: Of the initial latents and of whatever noise the scheduler adds.

        Raises:
            InputError: If a number is out of range.
        """
        super().__init__()
        if steps < 1 or guidance < 0:
            raise InputError(f"steps must be at least 1 and guidance at least 0, not {steps} and {guidance}")
        self.backbone = backbone
        self.scheduler_class = scheduler
        self.scheduler_options = dict(scheduler_options or {})
        self.steps = steps
        self.guidance = guidance
        if images not in ("png", "jpeg100_truncate", "none"):
            raise InputError(f"images must be png, jpeg100_truncate or none, not {images!r}")
        if images == "none" and extractor is None:
            raise InputError("images: none keeps features alone; give an extractor, or keep the images")
        self.images: ImageFormat = images
        self.extractor = extractor
        self.reference = reference
        self.clip_model = clip_model
        # An item is two rows.
        self.forwards = Forwards(items_per_forward, "items_per_forward", ROWS_ON_CPU // 2)
        # Apart: a decoder that runs out of memory shall not change the denoiser's forwards.
        self.decoding = Forwards(items_per_forward, "items_per_forward in decoding", ROWS_ON_CPU // 2)
        self.seed = seed
        self.share = share

    def setup(self, stage: str) -> None:
        self.prepare_backbone()
        self.scheduler = make_scheduler(self.backbone, self.scheduler_class, self.scheduler_options, self.steps)
        self.data.read_images = False
        unlabelled = [item.image_id for item in self.data.items if not item.labels]
        if unlabelled and not self.backbone.takes_text:
            raise InputError(
                f"{self.backbone.model} makes images of classes, and {len(unlabelled)} items have none, such as "
                f"{unlabelled[0]}; choose a text-conditional model, or leave them out with --data.subset"
            )
        ids = [item.image_id for item in self.data.items]
        self.prompts = dict(zip(ids, self.data.generation_prompts(), strict=True))
        self.measuring = self.prepare_measuring()

    def prepare_measuring(self) -> Measuring:
        """Load what measures images: see `prepare_measuring`."""
        return prepare_measuring(self.extractor, self.reference, self.clip_model, self.images != "none")

    @property
    def data(self) -> EvalDataModule:
        """The trainer's DataModule: see `EvalDataModule.of`."""
        return EvalDataModule.of(self)

    def bytes_per_image(self, classes: int, image_size: int) -> int:
        """Disk space that one image takes in a run directory, about: the image itself, and its features."""
        image = 0 if self.images == "none" else 2 * image_size**2
        return image + 6 * (0 if self.extractor is None else self.extractor.dimension)

    def evaluations_per_image(self, classes: int) -> int:
        """Denoiser rows one image takes, two per step with guidance, whatever the classes; no model is needed.

        Raises:
            InputError: If the scheduler cannot be made.
        """
        return count_steps(self.scheduler_class, self.scheduler_options, self.steps) * (1 if self.guidance == 1 else 2)

    @torch.inference_mode()
    def on_predict_start(self) -> None:
        space = self.data.class_space
        self.backbone.check_classes(space.prompts, space.indices)
        first = self.data.items[0]
        # One row of the conditions, for counting.
        self.example_condition = self._conditions([self.prompts[first.image_id]], [first.labels])
        # A model may have been trained without.
        self.null = self.backbone.null_condition() if self.guidance != 1 else self.example_condition
        self.shape = self.backbone.latents_of(self.data.image_size)
        self.begin_sharing()

    def predict_step(self, batch: Batch, batch_idx: int) -> Generated:
        """Generate the images of a batch; those that are not finite go to `batch["failed"]` instead."""
        if not batch["image_id"]:
            return Generated((), ())
        start = time.perf_counter()
        prompts = [self.prompts[image_id] for image_id in batch["image_id"]]
        # Of a second-order scheduler, more than the steps that were asked for.
        steps, items = len(self.scheduler.timesteps), len(prompts)
        shown = Trajectory(steps, _SHOWN_STEPS, min(_SHOWN_ITEMS, items) if batch_idx == 0 else 0)
        latents = self.generate(batch["image_id"], self._conditions(prompts, batch["labels"]), shown)
        pixels = self.decoding.run(lambda i, first, last: self.backbone.decode(latents[i]), items, self.device)
        made = self._made(batch, pixels)
        if not made:
            return Generated((), ())
        images = quantise(pixels[made], self.images)
        files = encode_images(images.cpu(), self.images)
        if self.images == "jpeg100_truncate":
            # Distances are between what is on disk.
            images = decode_files(files).to(images.device)
        prompts = [prompts[i] for i in made]
        features, scores = self.measuring.features(images, self.decoding), self.measuring.clip_scores(images, prompts)
        seconds = (time.perf_counter() - start) / items
        records = [
            SampleRecord(batch["image_id"][i], list(batch["labels"][i]), prompt, seconds, feature, score)
            for i, prompt, feature, score in zip(made, prompts, features, scores, strict=True)
        ]
        # A failed image has no way to show.
        way = shown.latents if len(made) == items else []
        trajectory = [quantise(self.backbone.decode(latents), "png") for latents in way]
        return Generated(files, records, torch.stack(trajectory).cpu() if trajectory else None)

    def _made(self, batch: Batch, pixels: Tensor) -> list[int]:
        """Which items of a batch became images; the others are noted in it."""
        finite = pixels.isfinite().flatten(1).all(1).tolist()
        for image_id, fine in zip(batch["image_id"], finite, strict=True):
            if not fine:
                batch["failed"][image_id] = (
                    f"{self.scheduler_class.__name__} and {self.backbone.model} gave numbers that are not finite at "
                    f"precision {self.trainer.precision}; try --trainer.precision 32-true, or another "
                    "scheduler"
                )
        return [i for i, fine in enumerate(finite) if fine]

    def generate(self, image_ids: Sequence[str], condition: Tensor, watch: Any = None) -> Tensor:
        """Sample latents.

        Args:
            image_ids: b stable ids; the initial noise is a function of them.
            condition: Rows of `Backbone.conditions`. `(b, ...)`.
            watch: Called with the step and the latents after it.

        Returns:
            `(b, c, h, w)`, float32.
        """
        device = condition.device
        keys = item_keys(torch.tensor([stable_hash(image_id) for image_id in image_ids], device=device), self.seed)

        def denoise(x: Tensor, timestep: Tensor, step: int) -> Tensor:
            rows = step_keys(keys, step)
            return self._per_item(lambda i: self._guided(x[i], condition[i], rows[i], timestep), len(x))

        return sample(denoise, keys, self.shape, self.scheduler, self.steps, watch)

    def _guided(self, x: Tensor, condition: Tensor, rows: Tensor, timestep: Tensor) -> Tensor:
        """The guided network output of items `(b, c, h, w)` with keys `(b,)`, one forward of 2b rows."""
        if self.guidance == 1:
            with row_keys(rows):
                return self.backbone.predict(x, timestep.expand(len(x)), condition)
        conditions = torch.cat((self.null.expand_as(condition), condition))
        items = torch.arange(len(x), device=x.device)
        sharing = Sharing(items, items.repeat(2)) if self.share else None
        with row_keys(rows.repeat(2), sharing=sharing):
            output = self.backbone.predict(x.repeat(2, 1, 1, 1), timestep.expand(2 * len(x)), conditions)
        without, with_condition = output.chunk(2)
        return without + self.guidance * (with_condition - without)

    def _per_item(self, compute: Callable[[Tensor], Tensor], items: int) -> Tensor:
        """What `compute` gives for the numbers of items, in forwards of equal size."""
        return self.forwards.run(lambda numbers, first, last: compute(numbers), items, self.device)

    def _conditions(self, prompts: Sequence[str], labels: Sequence[Sequence[int]]) -> Tensor:
        """Conditions of items. `(b, ...)`."""
        indices = self.data.class_space.indices
        first = [of_one[0] if of_one else 0 for of_one in labels]
        classes = first if indices is None else [indices[label] for label in first]

        def compute(items: Tensor) -> Tensor:
            numbers = items.tolist()
            return self.backbone.conditions_of([prompts[i] for i in numbers], [classes[i] for i in numbers])

        return self._per_item(compute, len(prompts))
