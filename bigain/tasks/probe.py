"""The feature probe: pooled outputs of transformer blocks, the representation of each image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.forward import row_keys
from bigain.backbones.sites import Site, layout_of
from bigain.data.base import EvalDataModule
from bigain.data.loader import Batch
from bigain.diffusion.trials import TIMESTEPS, trial_keys, trial_noise
from bigain.errors import InputError, check_choice
from bigain.metrics.base import Metric
from bigain.runs.records import FeatureRecord
from bigain.tasks.forwards import Forwards
from bigain.tasks.preparing import BackboneModule
from bigain.tokens.frequency import band_energy
from bigain.tokens.grid import Grid
from bigain.tokens.randomness import stable_hash

Pool = Literal["mean", "grid"]
# Folder in a run directory with the run of the training split; reports leave out what begins with a dot.
TRAINING = ".train"
# Cells per side of `pool: grid`.
_CELLS = 4
# Channels of the widest blocks of SD 2.0, for estimates of disk space.
_CHANNELS = 1280


class FeatureProbe(BackboneModule):
    """Features of images: outputs of transformer blocks at noise levels, pooled over tokens.

    Source: Xiang et al., Denoising Diffusion Autoencoders are Unified Self-supervised Learners (ICCV 2023).

    The condition is blank: an empty prompt, or the null class. Every feature is a function of (seed, image id,
    timestep), independent of the other timesteps, of batch size, order and number of processes. Each forward runs the
    whole network, so its FLOPs are those of one evaluation in the other tasks.
    """

    share = False

    def __init__(
        self,
        backbone: Backbone,
        sites: Sequence[int] | None = None,
        timesteps: Sequence[int] = (100, 300, 500),
        pool: Pool = "mean",
        train_data: dict[str, Any] | None = None,
        rows_per_forward: int = 64,
        latent_cache: str | None = None,
        metrics: Sequence[Metric] = (),
        seed: int = 0,
    ) -> None:
        """Set the probe up; nothing is loaded yet.

        Args:
            backbone: The diffusion model.
            sites: Transformer blocks whose outputs are the features, by index from 0 in execution order; null: the one
                in the middle, such as block 14 of the 28 of DiT-XL/2.
            timesteps: Noise levels in 0..999, of each image the same noise at each.
            pool: `mean` over all tokens, or `grid`: means of 4 x 4 cells of the token map, side by side.
            train_data: Settings of `data` for the training split of a linear probe, such as `{split: trainval}`; limits
                and subsets do not apply to it. `bigain predict` runs it first, into `.train` of the run directory. null
                fits none.
            rows_per_forward: Most rows (image, timestep) per denoiser call. On a CPU at most 8; halved when memory runs
                out: see `Forwards`.
            latent_cache: Folder for encoded images, for this and later runs; null encodes each time. Without a VAE it
                does nothing.
            metrics: Further metrics: see `Metric`. They do not enter the identity of a run.
            seed: Of the noise. Commands set it: `--seed`.

        Raises:
            InputError: If a setting is out of range, or the backbone is compiled.
        """
        super().__init__()
        if not timesteps or len({*timesteps}) < len(timesteps) or not all(0 <= t < TIMESTEPS for t in timesteps):
            raise InputError(f"timesteps must be different integers in 0..{TIMESTEPS - 1}, not {list(timesteps)}")
        if sites is not None and (not sites or len({*sites}) < len(sites)):
            raise InputError(f"sites must be different indices of transformer blocks, or null, not {list(sites)}")
        check_choice("pool", pool, get_args(Pool))
        if backbone.cuda_graph or backbone.compilation != "none":
            raise InputError("features are read between blocks: leave out the backbone's compile and cuda_graph")
        if unmet := [metric.name for metric in metrics if metric.needs]:
            raise InputError(f"metrics: {unmet[0]} measures generated images; a feature probe has none")
        self.backbone = backbone
        self.sites, self.timesteps, self.pool, self.train_data = sites, list(timesteps), pool, train_data
        self.forwards = Forwards(rows_per_forward, "rows_per_forward")
        self.latent_cache, self.metrics, self.seed = latent_cache, list(metrics), seed

    def check_fit(self, data: EvalDataModule) -> str:
        # Not the classes: with a blank condition they need not be those of the model.
        tokens = self.backbone.tokens_of(*self.backbone.latents_of(data.image_size)[1:])
        # On the host.
        self.visited = self.backbone.parametrisation.on_schedule(torch.tensor(self.timesteps), tokens)
        layout = layout_of(self.backbone.denoiser)
        count = len(layout.sites)
        if unknown := [i for i in self.sites or () if not 0 <= i < count]:
            raise InputError(f"sites: {unknown[0]} is no block of {layout.model}, which has 0 to {count - 1}")
        self.blocks: list[Site] = [layout.sites[i] for i in self.sites or [count // 2]]
        return ""

    def bytes_per_image(self, classes: int, image_size: int) -> int:
        """Return about how much disk space one image takes in a run directory, log and columns. Bytes."""
        cells = 1 if self.pool == "mean" else _CELLS**2
        return 10 * _CHANNELS * cells * len(self.timesteps) * len(self.sites or [0])

    def evaluations_per_image(self, classes: int) -> int:
        """Return the denoiser rows per image: one per timestep."""
        return len(self.timesteps)

    @torch.inference_mode()
    def on_predict_start(self) -> None:
        self.example_condition = self.backbone.null_condition()
        self.backbone.finish_conditions()
        self.begin_sharing()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[FeatureRecord]:
        """Return the records of a batch; images with features that are not finite are added to `batch["failed"]`."""
        if not batch["image_id"]:
            return []
        start = time.perf_counter()
        computed = self.features(self.encode_batch(batch), batch["image_id"])
        columns = {name: values.cpu().numpy() for name, values in computed.items()}
        seconds = (time.perf_counter() - start) / len(batch["image_id"])
        records = []
        for i, image_id in enumerate(batch["image_id"]):
            if not_finite := [name for name, rows in columns.items() if not np.isfinite(rows[i]).all()]:
                reason = f"the features {not_finite[0]} (site@timestep) are not finite "
                batch["failed"][image_id] = reason + self.at_precision("other weights")
                continue
            features = {name: rows[i, :-1] for name, rows in columns.items()}
            shares, labels = {name: float(rows[i, -1]) for name, rows in columns.items()}, list(batch["labels"][i])
            records.append(FeatureRecord(image_id, labels, seconds, features, shares, batch["digests"][i]))
        return records

    def keys_of(self, image_ids: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Return the keys of all timesteps of images. `(b, t)`, int64."""
        image_keys = torch.tensor([stable_hash(image_id) for image_id in image_ids], device=device)
        return trial_keys(image_keys[:, None], torch.tensor(self.timesteps, device=device)[None], self.seed)

    def features(self, latents: Tensor, image_ids: Sequence[str]) -> dict[str, Tensor]:
        """Compute the features of images by site and timestep: `2@100` is block 2 at timestep 100.

        `(b, c, h, w)` float32 -> `(b, d + 1)` float32 each, the share of energy in high frequencies at the end.
        """
        keys = self.keys_of(image_ids, latents.device)
        return {
            f"{site.index}@{timestep}": features
            for j, timestep in enumerate(self.timesteps)
            for site, features in zip(self.blocks, self._features_at(j, latents, keys[:, j]), strict=True)
        }

    def _features_at(self, j: int, latents: Tensor, keys: Tensor) -> Sequence[Tensor]:
        """Return the features of each block at the timestep of this index, with their shares. `(b, d + 1)` each."""
        on_host = self.visited[j : j + 1]
        shared, timestep = self.shared_timesteps(on_host), on_host.to(latents.device)
        outputs: dict[int, Tensor] = {}
        widths: list[int] = []

        def record(module: Any, args: Any, output: Any, index: int) -> None:
            # Where a block keeps text apart, it returns text and image tokens.
            outputs[index] = output[-1] if isinstance(output, tuple) else output

        def compute(rows: Tensor, first: int, last: int) -> Tensor:
            x, key, timesteps = latents[rows], keys[rows], timestep.expand(len(rows))
            noisy = self.backbone.parametrisation.add_noise(x, trial_noise(key, x.shape[1:]), timesteps)
            condition = self.example_condition.expand(len(x), *self.example_condition.shape[1:])
            with row_keys(key, timestep=shared[0] if shared else None):
                self.backbone.predict(noisy, timesteps, condition)
            pooled = [self._pooled(site, outputs[site.index], Grid(*x.shape[2:])) for site in self.blocks]
            widths[:] = [features.shape[1] for features in pooled]
            return torch.cat(pooled, 1)

        with ExitStack() as hooks:
            for site in self.blocks:
                hooks.callback(site.block.register_forward_hook(partial(record, index=site.index)).remove)
            return self.forwards.run(compute, len(latents), latents.device).split(widths, 1)

    def _pooled(self, site: Site, output: Tensor, latent: Grid) -> Tensor:
        """Pool the tokens of a block, and append their share of high frequencies. `(b, n, c)` -> `(b, d + 1)`."""
        grid = site.grid(latent)
        tokens = site.split(output, grid.n)[1].float()
        _, low, high = band_energy(tokens, grid, 2).unbind(1)
        # Without any variation over the map there are no frequencies.
        share = (high / (low + high)).nan_to_num(0).float()[:, None]
        if self.pool == "mean":
            return torch.cat([tokens.mean(1), share], 1)
        cells = F.adaptive_avg_pool2d(tokens.mT.unflatten(2, (grid.h, grid.w)), _CELLS)
        return torch.cat([cells.flatten(1), share], 1)
