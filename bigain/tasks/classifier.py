"""The diffusion classifier: the class whose condition best predicts the noise, the velocity or the clean image."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.forward import pair_sharing, row_keys
from bigain.data.base import EvalDataModule
from bigain.data.class_space import ClassSpace
from bigain.data.loader import Batch
from bigain.diffusion.elimination import Elimination, staged_elimination
from bigain.diffusion.noising import Loss, band_errors, prediction_error
from bigain.diffusion.parametrisation import Target
from bigain.diffusion.racing import Race, race_elimination
from bigain.diffusion.trials import (
    Budget,
    grid_timesteps,
    keys_of_trials,
    random_order,
    stage_trials,
    trial_noise,
    uniform_timesteps,
    with_repeats,
)
from bigain.errors import InputError, check_choice
from bigain.metrics.base import Metric
from bigain.runs.records import ImageRecord
from bigain.tasks.forwards import Forwards
from bigain.tasks.preparing import BackboneModule

Timesteps = Literal["grid", "uniform"]


class DiffusionClassifier(BackboneModule):
    """Zero-shot classification by noise prediction errors, paired over classes, with staged elimination.

    Source: Li et al., Your Diffusion Model is Secretly a Zero-Shot Classifier (ICCV 2023); BiGain, Algorithm 1.

    Every number is a function of (seed, image id, trial), independent of batch size, order and number of processes.
    """

    def __init__(
        self,
        backbone: Backbone,
        trials: Sequence[int] = (5, 20),
        keep: Sequence[int] | None = (5, 1),
        budget: Budget = "cumulative",
        race: Race | None = None,
        timesteps: Timesteps = "grid",
        noises: int = 1,
        loss: Loss = "l2",
        weights: Literal["uniform", "snr"] | Sequence[float] = "uniform",
        bands: int | None = None,
        rows_per_forward: int = 64,
        share: bool = True,
        latent_cache: str | None = None,
        metrics: Sequence[Metric] = (),
        seed: int = 0,
    ) -> None:
        """Set the classifier up; nothing is loaded yet.

        Args:
            backbone: The diffusion model.
            trials: Trials per class by the end of each stage, ascending; `[5, 20, 100]` for ImageNet-1K. With `noises`,
                timesteps.
            keep: Classes left after each stage, ending in 1; null evaluates every class at every trial.
            budget: `cumulative`: survivors of stage i have `trials[i]` trials in total (paper); `released`: the
                release's larger later stages. The same for `[5, 20]`.
            race: Instead of stages, drop each class as soon as a test finds that it cannot win: see `Race`. Only the
                last of `trials` is used then; `keep` and `budget` are ignored. `{}` is the default race.
            timesteps: `grid`: evenly spaced; `uniform`: drawn from 0..999 per (seed, image, trial) (Algorithm 1).
            noises: Noises at each timestep: with 4, `[5, 20]` is 20 and 80 trials. The first is that of `noises: 1`.
            loss: Error of a prediction. `epsilon`, `velocity`, `x0`: squared, of the noise, the velocity or the clean
                latents that the network's output implies. `l2`, `l1`, `huber`: of the noise; of the velocity for models
                of flow matching, whose noise is almost known at high noise.
            weights: What the error of each trial is multiplied by, before it is stored: `uniform`, 1; `snr`, the ratio
                of signal to noise; or a list of as many numbers as the last of `trials`, from low noise to high.
            bands: Store each error by frequency, too, for `bigain explain`: the number of bands, such as 8, besides the
                mean; at most the shorter side of the latents. No other number changes.
            rows_per_forward: Most rows (image, trial, class) per denoiser call, across the images of a batch. On a CPU
                at most 8; halved when memory runs out: see `Forwards`.
            share: Compute once what rows of one (image, trial) have in common, on a U-Net: see `share`.
            latent_cache: Folder for encoded images, for this and later runs; null encodes each time. Without a VAE it
                does nothing.
            metrics: Further metrics: see `Metric`. They change no prediction and do not enter the identity of a run.
            seed: Of noise and timesteps. Commands set it: `--seed`.

        Raises:
            InputError: If `trials` and `keep` do not match, or a setting is unknown.
        """
        super().__init__()
        if keep is not None and (len(keep) != len(trials) or min(keep) < 1 or keep[-1] != 1):
            raise InputError(f"keep must name survivors for each of the {len(trials)} stages, ending in 1, not {keep}")
        if keep is not None and list(keep) != sorted(keep, reverse=True):
            raise InputError(f"keep must not grow from stage to stage, not {list(keep)}")
        check_choice("budget", budget, get_args(Budget))
        check_choice("timesteps", timesteps, get_args(Timesteps))
        check_choice("loss", loss, get_args(Loss))
        if noises < 1 or (bands is not None and bands < 1):
            raise InputError(f"noises must be at least 1, and bands at least 1 or null, not {noises} and {bands}")
        if bands and loss in ("l1", "huber"):
            raise InputError(f"bands are parts of a squared error; use loss: l2 with them, not {loss}")
        if isinstance(weights, str):
            check_choice("weights", weights, ("uniform", "snr"))
        elif len(weights) != max(trials) or timesteps != "grid" or not all(0 <= x < math.inf for x in weights):
            raise InputError(
                f"weights must be uniform, snr or {max(trials)} numbers of at least 0, one for each trial of "
                f"timesteps: grid, not {list(weights)} with timesteps: {timesteps}"
            )
        if unmet := [metric.name for metric in metrics if metric.needs]:
            raise InputError(f"metrics: {unmet[0]} measures generated images; a classification has none")
        try:
            stages = stage_trials(trials, budget)
        except ValueError as error:
            raise InputError(str(error)) from error
        # Without elimination there is one stage: every class at every trial.
        stages = stages if keep is not None else [sorted(trial for stage in stages for trial in stage)]
        self.backbone = backbone
        self.grid_size, self.trial_count = max(trials), max(trials) * noises
        self.stages = [
            [trial + first for first in range(0, self.trial_count, self.grid_size) for trial in stage]
            for stage in stages
        ]
        self.keep = list(keep) if keep is not None else [1]
        self.race, self.budget, self.timesteps, self.noises = race, budget, timesteps, noises
        self.loss: Loss = loss
        self.bands, self.weights = bands, weights
        self.forwards = Forwards(rows_per_forward, "rows_per_forward")
        self.seed, self.share, self.latent_cache = seed, share, latent_cache
        self.metrics = list(metrics)

    def prompts_of(self, data: EvalDataModule) -> tuple[Sequence[str], bool]:
        return data.class_space.prompts, True

    def check_fit(self, data: EvalDataModule) -> str:
        check_answers(data.class_space)
        size = self.backbone.latents_of(data.image_size)[1:]
        side = min(size)
        ids = [item.image_id for item in data.items[: None if self.timesteps == "uniform" else 1]]
        self.visited = self.timesteps_of(keys_of_trials(ids, self.grid_size, self.seed), *size).unique()
        if self.bands is not None and self.bands > side:
            # A band narrower than 1 / side may hold no frequency.
            raise InputError(f"bands must be at most {side}, the shorter side of the latents, not {self.bands}")
        return super().check_fit(data)

    def bytes_per_image(self, classes: int, image_size: int) -> int:
        """Return about how much disk space one image takes in a run directory, log and columns. Bytes."""
        return (60 + 16 * (1 + self.bands if self.bands else 0)) * self.evaluations_per_image(classes)

    @property
    def target(self) -> Target:
        """The target of the errors; needs the loaded backbone."""
        match self.loss:
            case "epsilon" | "velocity" | "x0":
                return self.loss
        return self.backbone.parametrisation.default_target

    def evaluations_per_image(self, classes: int) -> int:
        """Return the denoiser rows per image: 5k + 75 for `[5, 20]`/`[5, 1]`. With a race, the most possible."""
        if self.race is not None:
            return classes * self.trial_count
        counts = [classes, *(min(classes, survivors) for survivors in self.keep)]
        return sum(count * len(stage) for count, stage in zip(counts, self.stages, strict=False))

    @torch.inference_mode()
    def on_predict_start(self) -> None:
        space = self.data.class_space
        self.conditions = self.backbone.conditions(space.prompts, space.model_labels)
        self.example_condition = self.conditions[:1]
        self.backbone.finish_conditions()
        self.begin_sharing(self.conditions)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ImageRecord]:
        """Classify the images of a batch; those with errors that are not finite are added to `batch["failed"]`."""
        if not batch["image_id"]:
            return []
        start = time.perf_counter()
        not_finite: dict[int, tuple[int, int, float]] = {}
        result, timesteps = self.classify(self.encode_batch(batch), batch["image_id"], not_finite)
        errors, timesteps, predictions = result.errors.cpu(), timesteps.cpu(), result.prediction.tolist()
        survivors, bands = [stage.tolist() for stage in result.survivors], result.bands
        bands = None if bands is None else bands.cpu()
        seconds = (time.perf_counter() - start) / len(batch["image_id"])
        space, records = self.data.class_space, []
        for i, image_id in enumerate(batch["image_id"]):
            if i in not_finite:
                label, trial, error = not_finite[i]
                where = f"for class {space.names[label]!r} at timestep {timesteps[i, trial]}"
                reason = f"the network's error {where} is {error} {self.at_precision('other weights')}"
                batch["failed"][image_id] = reason
                continue
            classes, trials = (~errors[i].isnan()).nonzero(as_tuple=True)
            labels = batch["labels"][i]
            records.append(
                ImageRecord(
                    image_id=image_id,
                    label=list(labels) if space.multilabel else labels[0],
                    prediction=predictions[i],
                    classes=classes.tolist(),
                    trials=trials.tolist(),
                    timesteps=timesteps[i, trials].tolist(),
                    errors=errors[i, classes, trials].tolist(),
                    survivors=[alive for stage in survivors if (alive := [label for label in stage[i] if label >= 0])],
                    seconds=seconds,
                    digest=batch["digests"][i],
                    bands=() if bands is None else bands[i, classes, trials].tolist(),
                )
            )
        return records

    def stages_of(self, image_id: str) -> Sequence[Sequence[int]]:
        """Return the new trials of each stage of an image, or of each look of its race."""
        if self.race is None:
            return self.stages
        (order,) = random_order(self.keys_of([image_id])).tolist()
        return self.race.stages(order)

    def keys_of(self, image_ids: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Return the keys of all trials of images. `(b, t)`, int64."""
        return with_repeats(keys_of_trials(image_ids, self.grid_size, self.seed, device), self.noises)

    def timesteps_of(self, keys: Tensor, height: int, width: int) -> Tensor:
        """Return the timesteps of trials with these keys, of latents of a size, for one noise. `(b, t)`."""
        if self.timesteps == "uniform":
            timesteps = uniform_timesteps(keys[:, : self.grid_size])
        else:
            trials = torch.arange(self.grid_size, device=keys.device)
            timesteps = grid_timesteps(trials, self.grid_size).expand(len(keys), -1)
        return self.backbone.parametrisation.on_schedule(timesteps, self.backbone.tokens_of(height, width))

    def classify(
        self, latents: Tensor, image_ids: Sequence[str], not_finite: dict[int, tuple[int, int, float]]
    ) -> tuple[Elimination, Tensor]:
        """Run the staged elimination, or the race, on latents.

        Args:
            latents: `(b, c, h, w)`, float32.
            image_ids: b stable ids; the noise is a function of them.
            not_finite: Gets class, trial and value of an image's first error that is infinite or NaN, by its index.

        Returns:
            The elimination, and the timestep of each image's trials, rounded, `(b, t)` int64.
        """
        device, classes = latents.device, len(self.conditions)
        keys = self.keys_of(image_ids, device)
        timesteps = self.timesteps_of(keys, *latents.shape[2:]).repeat(1, self.noises)
        weights, bands = None, None
        if self.weights == "snr":
            weights = self.backbone.parametrisation.snr(timesteps)
        elif self.weights != "uniform":
            weights = torch.tensor(self.weights, device=device).repeat(self.noises).expand_as(timesteps)
        if self.bands is not None:
            bands = latents.new_full((len(latents), classes, self.trial_count, 1 + self.bands), torch.nan)

        def errors_of(image: Tensor, trial: Tensor, label: Tensor) -> Tensor:
            errors = self._errors(latents[image], keys[image, trial], timesteps[image, trial], label)
            if weights is not None:
                errors *= weights[image, trial].view(-1, *[1] * (errors.ndim - 1))
            if bands is not None:
                bands[image[:, None], label, trial[:, None]] = errors[..., 1:]
                errors = errors[..., 0]
            for i, j in (~errors.isfinite()).nonzero().tolist():
                not_finite.setdefault(int(image[i]), (int(label[i, j]), int(trial[i]), float(errors[i, j])))
            return errors

        if self.race is not None:
            result = race_elimination(errors_of, random_order(keys), classes, self.race)
        else:
            keep = [min(classes, survivors) for survivors in self.keep]
            result = staged_elimination(errors_of, len(latents), classes, self.stages, keep, device)
        return replace(result, bands=bands), timesteps.round().long()

    def _errors(self, latents: Tensor, keys: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Compute the errors of p (image, trial) pairs under s classes each.

        Latents of each pair `(p, c, h, w)`, `(p,)`, `(p,)`, `(p, s)` -> `(p, s)`, float32; with `bands`
        `(p, s, 2 + bands)`, each error before its parts.
        """
        shared = self.shared_timesteps(timesteps)
        if shared is None:
            return self._errors_together(latents, keys, timesteps, labels)
        groups = {step: [i for i, other in enumerate(shared) if other == step] for step in sorted(set(shared))}
        pairs = [torch.tensor(group, device=labels.device) for group in groups.values()]
        errors = [
            self._errors_together(latents[pair], keys[pair], timesteps[pair], labels[pair], step)
            for step, pair in zip(groups, pairs, strict=True)
        ]
        return torch.cat(errors)[torch.cat(pairs).argsort()]

    def _errors_together(
        self, latents: Tensor, keys: Tensor, timesteps: Tensor, labels: Tensor, shared: int | None = None
    ) -> Tensor:
        """Compute the errors of pairs whose rows may share a forward, that of the `shared` timestep: see `row_keys`."""
        classes, labels_of, parametrisation = labels.shape[1], labels.flatten(), self.backbone.parametrisation

        def compute(rows: Tensor, first: int, last: int) -> Tensor:
            pairs = slice(first // classes, last // classes + 1)
            key, t, x = keys[pairs], timesteps[pairs], latents[pairs]
            pair, label = rows // classes - pairs.start, labels_of[rows]
            # Drawn once per pair: all classes see the same noise.
            noise = trial_noise(key, x.shape[1:])
            noisy = parametrisation.add_noise(x, noise, t)
            truth = parametrisation.target(self.target, x, noise, t)
            sharing = pair_sharing(len(rows), first, last, classes, rows.device) if self.share else None
            with row_keys(key[pair], label, sharing, timestep=shared):
                predicted = self.backbone.predict_target(noisy[pair], t[pair], self.conditions[label], self.target)
            error = prediction_error(predicted, truth[pair], self.loss)
            if self.bands is None:
                return error
            return torch.cat([error[:, None], band_errors(predicted, truth[pair], self.bands)], 1)

        errors = self.forwards.run(compute, labels.numel(), labels.device)
        return errors.view(*labels.shape, *errors.shape[1:])


def check_answers(space: ClassSpace) -> None:
    """Raise an InputError if there are fewer than two classes."""
    if not len(space):
        raise InputError("a classification needs classes, but this dataset has prompts alone; generate from them")
    if len(space) < 2:
        raise InputError(f"a classification needs at least two classes, but {space.names[0]} is the only one")
