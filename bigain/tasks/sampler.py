"""The sampler: generates one image per item of a dataset, from its class, prompt or caption."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from diffusers import SchedulerMixin
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.forward import Sharing, Step, row_keys
from bigain.data.base import EvalDataModule
from bigain.data.images import ImageFormat, decode_files, encode_images, quantise
from bigain.data.loader import Batch
from bigain.diffusion.sampling import item_keys, sample, step_keys
from bigain.errors import InputError, check_choice
from bigain.metrics.accuracy import Agreement
from bigain.metrics.base import Images, Metric
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.inception import Inception
from bigain.metrics.inception_score import InceptionScore
from bigain.metrics.reference import ReferenceStatistics
from bigain.runs.files import find_reference
from bigain.runs.numbers import counted
from bigain.runs.records import SampleRecord
from bigain.tasks.forwards import ROWS_ON_CPU, Forwards
from bigain.tasks.preparing import BackboneModule
from bigain.tasks.scheduling import make_scheduler
from bigain.tasks.scoring import Measuring, distances
from bigain.tokens.randomness import stable_hash

_warn = rank_zero_only(logging.getLogger(__name__).warning)


class Generated(NamedTuple):
    """The encoded images of a batch, none if images are not kept, and its b records."""

    files: Sequence[bytes] = ()
    records: Sequence[SampleRecord] = ()


class DiffusionSampler(BackboneModule):
    """Samples with classifier-free guidance (Ho and Salimans, 2021), one forward per step for the guided pair.

    Every image is a function of (seed, image id), independent of batch size, order and number of processes.
    """

    generates = True

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
        items_per_forward: int | None = None,
        share: bool = True,
        metrics: Sequence[Metric] = (),
        seed: int = 0,
    ) -> None:
        """Set the sampler up; nothing is loaded yet.

        Args:
            backbone: The diffusion model.
            scheduler: A diffusers scheduler class; the noise schedule and the prediction type are the model's.
            scheduler_options: Further settings of the scheduler, e.g. `timestep_spacing: linspace`.
            steps: Denoising steps.
            guidance: Weight w of `null + w * (conditional - null)`; 1 samples without guidance, in half the rows.
            images: `png`, rounded; `jpeg100_truncate`, as the release writes them; `none` keeps only features.
            extractor: Computes the features for distances to real images; null computes none.
            reference: Statistics of real images, an `.npz` file of the extractor's protocol; null computes no distance.
            items_per_forward: Most items, each with its guided pair, in one forward; null: the whole batch. On a CPU at
                most 4; halved when memory runs out: see `Forwards`.
            share: Compute once what both rows of a guided pair have in common, on a U-Net: see `share`.
            metrics: Further metrics: see `Metric`. They change no image and do not enter the identity of a run.
            seed: Of the initial latents and of the noise that the scheduler adds. Commands set it: `--seed`.

        Raises:
            InputError: If a number is out of range.
        """
        super().__init__()
        if steps < 1 or guidance < 0:
            raise InputError(f"steps must be at least 1 and guidance at least 0, not {steps} and {guidance}")
        check_choice("images", images, get_args(ImageFormat))
        if images == "none" and extractor is None:
            raise InputError("images: none keeps only features; give an extractor, or keep the images")
        if compared := [metric.name for metric in metrics if "other images" in metric.needs]:
            raise InputError(f"metrics: {compared[0]} compares two runs; use `bigain score RUN --against OTHER`")
        self.backbone = backbone
        self.scheduler_class, self.scheduler_options = scheduler, dict(scheduler_options or {})
        self.steps, self.guidance, self.seed, self.share = steps, guidance, seed, share
        self.images: ImageFormat = images
        self.extractor, self.reference, self.metrics = extractor, reference, list(metrics)
        # An item is two rows.
        self.forwards = Forwards(items_per_forward, "items_per_forward", ROWS_ON_CPU // 2)
        # Separate: a decoder that runs out of memory must not change the denoiser's forwards.
        self.decoding = Forwards(items_per_forward, "items_per_forward in decoding", ROWS_ON_CPU // 2)

    def prompts_of(self, data: EvalDataModule) -> tuple[Sequence[str], bool]:
        return data.generation_prompts(), False

    def check_fit(self, data: EvalDataModule) -> str:
        """Check the scheduler, too."""
        latents = self.backbone.latents_of(data.image_size)
        if self.guidance != 1:
            self.backbone.check_guidance()
        self.scheduler, self.timestep_options = make_scheduler(
            self.backbone, self.scheduler_class, self.scheduler_options, self.steps, latents
        )
        self.visited = self.scheduler.timesteps
        unlabelled = [item.image_id for item in data.items if not item.labels]
        if unlabelled and not self.backbone.takes_text:
            raise InputError(
                f"{self.backbone.model} generates images of classes; {counted(len(unlabelled), 'item')} without one, "
                f"such as {unlabelled[0]}; choose a text-conditional model, or leave them out with --data.subset"
            )
        return super().check_fit(data)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.prompts = dict(zip([i.image_id for i in self.data.items], self.data.generation_prompts(), strict=True))
        self.measuring = self.prepare_measuring()

    def prepare_measuring(self) -> Measuring:
        """Load the extractor and the reference, and find out which metrics can be computed.

        Images are worth generating without metrics, so what is missing is a warning; a wrong file is an error.

        Raises:
            InputError: If a reference has a different protocol, or nothing at all would be kept of the images.
        """
        missing: dict[str, str] = {}
        available: list[Metric] = []
        extractor, statistics = self.extractor, None
        if extractor is None:
            missing["distance"] = "no extractor was asked for"
        else:
            try:
                extractor.load()
            except InputError as error:
                if self.images == "none":
                    raise
                missing["distance"] = str(error)
            loaded = "distance" not in missing
            if self.reference is None:
                missing.setdefault("distance", "no reference statistics were given")
            elif not (path := find_reference(self.reference)).exists():
                missing.setdefault("distance", f"reference {path} does not exist")
            else:
                digest = extractor.digest() if loaded else ""
                statistics = ReferenceStatistics.load(path, extractor.protocol, extractor.dimension, digest)
                available += distances(statistics) if loaded else []
            if loaded:
                available += [
                    Agreement(extractor),
                    *([InceptionScore(extractor)] if isinstance(extractor, Inception) else []),
                ]
            else:
                extractor = None
            if "distance" in missing:
                kept = "Features are kept" if self.images == "none" else "Images are kept for `bigain score`"
                _warn(f"warning: no distance will be computed: {missing['distance']}. {kept}")
        for metric in self.metrics:
            if (reason := metric.unavailable()) is None:
                available.append(metric)
            else:
                missing[metric.name] = reason
                kept = f". Images are kept for `{metric.later}`" if metric.later else ""
                _warn(f"warning: no {metric.title or metric.name} will be computed: {reason}{kept}")
        return Measuring(available, extractor, statistics, missing)

    def bytes_per_image(self, classes: int, image_size: int) -> int:
        """Return about how much disk space one image takes in a run directory, with its features. Bytes."""
        image = 0 if self.images == "none" else 2 * image_size**2
        return image + 6 * (0 if self.extractor is None else self.extractor.dimension)

    def evaluations_per_image(self, classes: int) -> int:
        """Return the denoiser rows per image, two per step with guidance, whatever the classes.

        Before `check_fit` has made the scheduler, a second-order one counts as if it visited only `steps` timesteps.
        """
        steps = len(self.scheduler.timesteps) if hasattr(self, "scheduler") else self.steps
        return steps * (1 if self.guidance == 1 else 2)

    @torch.inference_mode()
    def on_predict_start(self) -> None:
        first = self.data.items[0]
        self.encoded: dict[str, Tensor] = {}
        # One row of the conditions, for counting FLOPs.
        self.example_condition = self._conditions([self.prompts[first.image_id]], [first.labels])
        # A model may have been trained without a null condition.
        self.null = self.backbone.null_condition() if self.guidance != 1 else self.example_condition
        self.shape = self.backbone.latents_of(self.data.image_size)
        prompts = list(dict.fromkeys(self.prompts.values()))
        if self.backbone.takes_text and len(prompts) <= len(self.data.class_space):
            # Of classes, not captions: text encoders run once and leave the device.
            self.encoded = dict(zip(prompts, self._conditions(prompts, [()] * len(prompts)), strict=True))
            self.backbone.finish_conditions()
        self.begin_sharing()

    def predict_step(self, batch: Batch, batch_idx: int) -> Generated:
        """Generate the images of a batch; those that are not finite are added to `batch["failed"]` instead."""
        if not batch["image_id"]:
            return Generated()
        start = time.perf_counter()
        prompts = [self.prompts[image_id] for image_id in batch["image_id"]]
        latents = self.generate(batch["image_id"], self._conditions(prompts, batch["labels"]))
        pixels = self.decoding.run(lambda i, first, last: self.backbone.decode(latents[i]), len(latents), self.device)
        finite = pixels.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
        reason = f"{self.scheduler_class.__name__} and {self.backbone.model} gave numbers that are not finite "
        reason += self.at_precision("another scheduler")
        batch["failed"].update({image_id: reason for i, image_id in enumerate(batch["image_id"]) if i not in finite})
        if not finite:
            return Generated()
        images = quantise(pixels[finite], self.images)
        files = encode_images(images.cpu(), self.images)
        if self.images == "jpeg100_truncate":
            # Metrics are of the images on disk.
            images = decode_files(files).to(images.device)
        prompts = [prompts[i] for i in finite]
        features, measured = self.measuring.measure(Images(images, prompts))
        seconds = (time.perf_counter() - start) / len(latents)
        records = [
            SampleRecord(batch["image_id"][i], list(batch["labels"][i]), prompt, seconds, feature, values)
            for i, prompt, feature, values in zip(finite, prompts, features, measured, strict=True)
        ]
        return Generated(files, records)

    def generate(self, image_ids: Sequence[str], condition: Tensor) -> Tensor:
        """Sample latents.

        Args:
            image_ids: b stable ids; the initial noise is a function of them.
            condition: Rows of `Backbone.conditions`. `(b, ...)`.

        Returns:
            `(b, c, h, w)`, float32.
        """
        device = condition.device
        keys = item_keys(torch.tensor([stable_hash(image_id) for image_id in image_ids], device=device), self.seed)
        # All steps of some items, then of the next: compressors may keep features from step to step.
        return self.forwards.run(lambda i, *_: self._sample(keys[i], condition[i]), len(keys), device)

    def _sample(self, keys: Tensor, condition: Tensor) -> Tensor:
        """Sample the items of one forward. `(b,)`, `(b, ...)` -> `(b, c, h, w)`, float32."""
        guidance: Tensor | None = None

        def denoise(x: Tensor, timestep: Tensor, step: int) -> Tensor:
            nonlocal guidance
            # Not `timestep`: if it is on a GPU, reading it waits.
            on_host = self.scheduler.timesteps[step : step + 1]
            shared = self.shared_timesteps(on_host)
            of_forward = {"timestep": shared[0] if shared else None, "step": Step(step, float(on_host))}
            output, guidance = self._guided(x, condition, step_keys(keys, step), timestep, guidance, **of_forward)
            return output

        return sample(denoise, keys, self.shape, self.scheduler, self.steps, self.timestep_options)

    @property
    def sampling_steps(self) -> Sequence[Step]:
        return [Step(number, timestep) for number, timestep in enumerate(self.scheduler.timesteps.tolist())]

    def _guided(
        self,
        x: Tensor,
        condition: Tensor,
        rows: Tensor,
        timestep: Tensor,
        guidance: Tensor | None = None,
        /,
        **of_forward: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the guided network output of items `(b, c, h, w)` with keys `(b,)`, from one forward of 2b rows.

        Takes the `guidance` of `RowKeys` of the step before and returns that of this step. `of_forward` are further
        arguments of `row_keys`: what is known of the timestep on the host.
        """
        if self.guidance == 1:
            with row_keys(rows, **of_forward):
                return self.backbone.predict(x, timestep.expand(len(x)), condition), None
        conditions = torch.cat((self.null.expand_as(condition), condition))
        items = torch.arange(len(x), device=x.device)
        sharing = Sharing(items, items.repeat(2)) if self.share else None
        pairs = None if guidance is None else guidance.repeat(2, 1, 1)
        with row_keys(rows.repeat(2), sharing=sharing, guidance=pairs, **of_forward):
            output = self.backbone.predict(x.repeat(2, 1, 1, 1), timestep.expand(2 * len(x)), conditions)
        unconditional, conditional = output.chunk(2)
        difference = conditional - unconditional
        return unconditional + self.guidance * difference, difference.abs().mean(1)

    def _conditions(self, prompts: Sequence[str], labels: Sequence[Sequence[int]]) -> Tensor:
        """Return the conditions of items. `(b, ...)`."""
        if self.encoded:
            return torch.stack([self.encoded[prompt] for prompt in prompts])
        model_labels = self.data.class_space.model_labels
        classes = [model_labels[item_labels[0]] if item_labels else 0 for item_labels in labels]

        def compute(items: Tensor, first: int, last: int) -> Tensor:
            return self.backbone.conditions([prompts[i] for i in items.tolist()], [classes[i] for i in items.tolist()])

        return self.forwards.run(compute, len(prompts), self.device)
