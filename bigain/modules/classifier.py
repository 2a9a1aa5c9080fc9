"""The diffusion classifier: the class whose condition best predicts the added noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.forward import row_keys
from bigain.data.base import Batch, EvalDataModule
from bigain.data.class_space import ClassSpace
from bigain.diffusion.elimination import Elimination, staged_elimination
from bigain.diffusion.noising import Loss, add_noise, prediction_error
from bigain.diffusion.trials import Budget, grid_timesteps, stage_trials, trial_keys, trial_noise, uniform_timesteps
from bigain.errors import InputError
from bigain.metrics.records import ImageRecord
from bigain.tokens.randomness import stable_hash


class DiffusionClassifier(LightningModule):
    """Zero-shot classification by noise prediction errors, paired over classes, with staged elimination.

    Source: Li et al., Your Diffusion Model is Secretly a Zero-Shot Classifier (ICCV 2023); BiGain, Algorithm 1.

    Every number is a function of (seed, image id, trial): batch size, order and process count do not enter.
    """

    def __init__(
        self,
        backbone: Backbone,
        trials: Sequence[int] = (5, 20),
        keep: Sequence[int] | None = (5, 1),
        budget: Budget = "cumulative",
        timesteps: Literal["grid", "uniform"] = "grid",
        loss: Loss = "l2",
        rows_per_forward: int = 64,
        seed: int = 0,
    ) -> None:
        """Set the classifier up; nothing heavy happens here.

        Args:
            backbone: The diffusion model.
            trials: Trials per class by the end of each stage, ascending; `[5, 20, 100]` for ImageNet-1K.
            keep: Classes left after each stage, ending in 1; null evaluates every class at every trial.
            budget: `cumulative`: survivors of stage i have `trials[i]` trials in all (paper); `released`: the
                release's larger later stages. The same for `[5, 20]`.
            timesteps: `grid`: evenly spaced; `uniform`: drawn from 0..999 per (seed, image, trial) (Algorithm 1).
            loss: Error of a noise prediction: `l2`, `l1` or `huber`.
            rows_per_forward: Rows (image, trial, class) per denoiser call, filled across the images of a batch.
            seed: Of noise and timesteps.

        Raises:
            InputError: If `trials` and `keep` do not fit.
        """
        super().__init__()
        if keep is not None and (len(keep) != len(trials) or min(keep) < 1 or keep[-1] != 1):
            raise InputError(f"keep must name survivors for each of the {len(trials)} stages, ending in 1, not {keep}")
        if keep is not None and list(keep) != sorted(keep, reverse=True):
            raise InputError(f"keep must not grow from stage to stage, not {list(keep)}")
        if rows_per_forward < 1:
            raise InputError(f"rows_per_forward must be at least 1, not {rows_per_forward}")
        for name, value, allowed in (
            ("budget", budget, ("cumulative", "released")),
            ("timesteps", timesteps, ("grid", "uniform")),
            ("loss", loss, ("l2", "l1", "huber")),
        ):
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        self.backbone = backbone
        try:
            stages = stage_trials(trials, budget)
        except ValueError as error:
            raise InputError(str(error)) from error
        # Without elimination the stages are one: every class at every trial.
        self.stages = stages if keep is not None else [sorted(trial for stage in stages for trial in stage)]
        self.keep = list(keep) if keep is not None else [1]
        self.grid_size = max(trials)
        self.timesteps = timesteps
        self.loss: Loss = loss
        self.rows_per_forward = rows_per_forward
        self.seed = seed
        self.finished: frozenset[str] = frozenset()

    def setup(self, stage: str) -> None:
        self.backbone.load()

    @property
    def class_space(self) -> ClassSpace:
        """The classes of the trainer's DataModule.

        Raises:
            InputError: If `Trainer.predict` was not given an `EvalDataModule`.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, EvalDataModule):
            raise InputError("DiffusionClassifier needs Trainer.predict(model, datamodule=an EvalDataModule)")
        return data.class_space

    def evaluations_per_image(self, classes: int) -> int:
        """Denoiser rows one image takes: 5k + 75 for `[5, 20]`/`[5, 1]`."""
        alive = [classes, *(min(classes, left) for left in self.keep)]
        return sum(left * len(stage) for left, stage in zip(alive, self.stages, strict=False))

    @torch.inference_mode()
    def on_predict_start(self) -> None:
        space = self.class_space
        self.conditions = self.backbone.conditions(space.prompts, space.indices)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ImageRecord]:
        """Classify the images of a batch that are not finished yet."""
        todo = [i for i, image_id in enumerate(batch["image_id"]) if image_id not in self.finished]
        if not todo:
            return []
        start = time.perf_counter()
        latents = self.backbone.encode(batch["image"][todo])
        expected = self.backbone.latent_shape
        if tuple(latents.shape[1:]) != expected and self.backbone.component == "transformer":
            raise InputError(f"the model takes latents of {expected}, but the images give {tuple(latents.shape[1:])}")
        ids = [batch["image_id"][i] for i in todo]
        result, timesteps = self.classify(latents, ids)
        # One transfer at the end of the batch, not one per stage.
        labels = batch["label"][todo].tolist()
        errors, times = result.errors.cpu(), timesteps.cpu()
        survivors = [stage.tolist() for stage in result.survivors]
        predictions = result.prediction.tolist()
        seconds = (time.perf_counter() - start) / len(todo)
        records = []
        for i, image_id in enumerate(ids):
            pairs = (~errors[i].isnan()).nonzero()
            records.append(
                ImageRecord(
                    image_id,
                    labels[i],
                    predictions[i],
                    pairs[:, 0].tolist(),
                    pairs[:, 1].tolist(),
                    times[i, pairs[:, 1]].tolist(),
                    errors[i, pairs[:, 0], pairs[:, 1]].tolist(),
                    [stage[i] for stage in survivors],
                    seconds,
                )
            )
        return records

    def classify(self, latents: Tensor, image_ids: Sequence[str]) -> tuple[Elimination, Tensor]:
        """Run the staged elimination on latents.

        Args:
            latents: `(b, c, h, w)`, float32.
            image_ids: b stable ids; noise is a function of them.

        Returns:
            The elimination, and the timestep of each image's trials, `(b, t)` int64.
        """
        device = latents.device
        image_keys = torch.tensor([stable_hash(image_id) for image_id in image_ids], device=device)
        trials = torch.arange(self.grid_size, device=device)
        keys = trial_keys(image_keys[:, None], trials[None], self.seed)
        if self.timesteps == "uniform":
            timesteps = uniform_timesteps(keys)
        else:
            timesteps = grid_timesteps(trials, self.grid_size).expand(len(latents), -1)

        def errors_of(image: Tensor, label: Tensor, trial: Tensor) -> Tensor:
            parts = zip(*(index.split(self.rows_per_forward) for index in (image, label, trial)), strict=True)
            return torch.cat([self._errors(latents, keys, timesteps, *part) for part in parts])

        classes = len(self.conditions)
        keep = [min(classes, left) for left in self.keep]
        return staged_elimination(errors_of, len(latents), classes, self.stages, keep, device), timesteps

    def _errors(
        self, latents: Tensor, keys: Tensor, timesteps: Tensor, image: Tensor, label: Tensor, trial: Tensor
    ) -> Tensor:
        """Errors of one micro-batch of (image, class, trial) rows. `(rows,)`, float32."""
        row_key = keys[image, trial]
        # Classes come fastest, so equal (image, trial) pairs are neighbours: their noise is drawn once.
        pair_key, pair = row_key.unique_consecutive(return_inverse=True)
        noise = trial_noise(pair_key, latents.shape[1:])[pair]
        t = timesteps[image, trial]
        noisy = add_noise(latents[image], noise, self.backbone.alpha_bar(t))
        with row_keys(row_key, label):
            predicted = self.backbone.predict_noise(noisy, t, self.conditions[label])
        return prediction_error(predicted, noise, self.loss)
