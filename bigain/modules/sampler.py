"""The sampler: one image per item of a dataset, from its class, prompt or caption."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.forward import row_keys
from bigain.data.base import EvalDataModule
from bigain.data.image_files import ImageFormat, decode_files, encode_images, quantise
from bigain.data.samples import Batch
from bigain.diffusion.sampling import item_keys, sample, step_keys
from bigain.errors import InputError
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.records import SampleRecord
from bigain.metrics.reference import ReferenceStatistics
from bigain.tokens.precision import without_autocast
from bigain.tokens.randomness import stable_hash

# Shown at so many points of the first batch's way from noise to image.
_log = logging.getLogger(__name__)

_SHOWN_ITEMS, _SHOWN_STEPS = 4, 5
_NOISE_SCHEDULE = ("beta_", "trained_betas", "num_train_timesteps", "rescale_betas")


@dataclass(frozen=True)
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


def find_reference(reference: str) -> Path:
    """A reference file, or the one that an embedded extractor of this name comes with."""
    embedded = Path(str(resources.files("bigain"))) / "assets" / reference / "reference.npz"
    return embedded if embedded.is_file() else Path(reference).expanduser()


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)


class DiffusionSampler(LightningModule):
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
        self.seed = seed

    def setup(self, stage: str) -> None:
        self.backbone.load()
        if self.trainer.precision == "32-true":
            self.backbone.float()
        self.scheduler = self.make_scheduler()
        self.data.read_images = False
        ids = [item.image_id for item in self.data.items]
        self.prompts = dict(zip(ids, self.data.generation_prompts(), strict=True))
        self.prepare_distance()

    def prepare_distance(self) -> None:
        """Load extractor and reference. Images are worth making without them; a wrong one is refused all the same."""
        self.no_distance: str | None = None
        self.reference_statistics: ReferenceStatistics | None = None
        self._extracting = False
        if self.extractor is None:
            self.no_distance = "no extractor was asked for"
            return
        try:
            self.extractor.load()
            self._extracting = True
        except InputError as error:
            if self.images == "none":
                raise
            self.no_distance = str(error)
        if self.reference is None:
            self.no_distance = self.no_distance or "no reference statistics were given"
        elif not (path := find_reference(self.reference)).is_file():
            self.no_distance = self.no_distance or f"reference {path} does not exist"
        else:
            digest = self.extractor.digest() if self._extracting else ""
            dimension = self.extractor.dimension
            self.reference_statistics = ReferenceStatistics.load(path, self.extractor.protocol, dimension, digest)
        if self.no_distance is not None:
            kept = "Features are kept" if self.images == "none" else "Images are kept for `bigain score`"
            _warn(f"warning: no distance will be computed: {self.no_distance}. {kept}")

    def make_scheduler(self) -> Any:
        """The scheduler with the model's noise schedule.

        Raises:
            InputError: If it cannot sample from this model.
        """
        config, kind = self.backbone.scheduler_config, self.scheduler_class
        known = set(inspect.signature(kind.__init__).parameters) - {"self"}
        unknown = sorted(set(self.scheduler_options) - known)
        if unknown:
            raise InputError(f"{kind.__name__} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
        if "prediction_type" not in known:
            raise InputError(
                f"{kind.__name__} has no prediction type, but {self.backbone.model} predicts "
                f"{self.backbone.prediction_type}; choose another scheduler"
            )
        # The noise schedule is the model's; what the folder's own sampler did about spacing or clipping is not.
        settings = {key: config[key] for key in config if key in known and key.startswith(_NOISE_SCHEDULE)}
        # In latent space there is nothing to clip to.
        settings |= {"clip_sample": False} if "clip_sample" in known else {}
        settings |= {"prediction_type": self.backbone.prediction_type, **self.scheduler_options}
        try:
            scheduler: Any = kind(**settings)
            scheduler.set_timesteps(self.steps)
        except (ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError) as error:
            raise InputError(
                f"{kind.__name__} cannot be made for {self.backbone.model} with {settings}: {error}"
            ) from error
        return scheduler

    @property
    def data(self) -> EvalDataModule:
        """The trainer's DataModule.

        Raises:
            InputError: If `Trainer.predict` was not given an `EvalDataModule`.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, EvalDataModule):
            raise InputError("DiffusionSampler needs Trainer.predict(model, datamodule=an EvalDataModule)")
        return data

    def bytes_per_image(self, classes: int, image_size: int) -> int:
        """Disk space that one image takes in a run directory, about: the image itself, and its features."""
        image = 0 if self.images == "none" else 2 * image_size**2
        return image + 6 * (0 if self.extractor is None else self.extractor.dimension)

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

    def predict_step(self, batch: Batch, batch_idx: int) -> Generated | None:
        """Generate the images of a batch; None if all were finished before."""
        if not batch["image_id"]:
            return None
        start = time.perf_counter()
        prompts = [self.prompts[image_id] for image_id in batch["image_id"]]
        shown: list[Tensor] = []
        # Of a second-order scheduler, more than the steps that were asked for.
        steps = len(self.scheduler.timesteps)
        watched = {round((i + 1) * steps / _SHOWN_STEPS) - 1 for i in range(_SHOWN_STEPS if batch_idx == 0 else 0)}

        def watch(step: int, latents: Tensor) -> None:
            if step in watched:
                shown.append(quantise(self.backbone.decode(latents[:_SHOWN_ITEMS]), "png"))

        latents = self.generate(batch["image_id"], self._conditions(prompts, batch["labels"]), watch)
        pixels = self.backbone.decode(latents)
        if not pixels.isfinite().all():
            raise InputError(
                f"{self.scheduler_class.__name__} and {self.backbone.model} gave numbers that are not finite among "
                f"{batch['image_id'][0]} to {batch['image_id'][-1]}; try --trainer.precision 32-true or bf16-true, or "
                "another scheduler"
            )
        images = quantise(pixels, self.images)
        files = encode_images(images.cpu(), self.images)
        if self.images == "jpeg100_truncate":
            # Distances are between what is on disk.
            images = decode_files(files).to(images.device)
        features = self._features(images)
        seconds = (time.perf_counter() - start) / len(images)
        records = [
            SampleRecord(image_id, list(labels), prompt, seconds, feature)
            for image_id, labels, prompt, feature in zip(
                batch["image_id"], batch["labels"], prompts, features, strict=True
            )
        ]
        return Generated(files, records, torch.stack(shown).cpu() if shown else None)

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
        guided = self.guidance != 1
        null = self.null.expand(len(condition), *self.null.shape[1:])
        conditions = torch.cat((null, condition)) if guided else condition

        def denoise(x: Tensor, timestep: Tensor, step: int) -> Tensor:
            rows = step_keys(keys, step)
            if not guided:
                with row_keys(rows):
                    return self.backbone.predict(x, timestep.expand(len(x)), conditions)
            with row_keys(rows.repeat(2)):
                output = self.backbone.predict(x.repeat(2, 1, 1, 1), timestep.expand(2 * len(x)), conditions)
            without, with_condition = output.chunk(2)
            return without + self.guidance * (with_condition - without)

        return sample(denoise, keys, self.shape, self.scheduler, self.steps, watch)

    def _conditions(self, prompts: Sequence[str], labels: Sequence[Sequence[int]]) -> Tensor:
        indices = self.data.class_space.indices
        # An image without labels has a caption, and no class that a class-conditional model could take.
        first = [of_one[0] if of_one else 0 for of_one in labels]
        return self.backbone.conditions_of(prompts, first if indices is None else [indices[label] for label in first])

    def _features(self, images: Tensor) -> list[list[float] | None]:
        if self.extractor is None or not self._extracting:
            return [None] * len(images)
        with without_autocast(images):
            features: list[list[float] | None] = self.extractor(images).float().tolist()
        return features
