"""The base of the tasks: prepares the backbone before a run, and encodes its images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.compilation import compile_denoiser
from bigain.backbones.cuda_graphs import use_graphs
from bigain.backbones.forward import Step
from bigain.backbones.loading import module_digest
from bigain.backbones.sharing import share
from bigain.compressors.base import first_timesteps, installed_on, nearest_timesteps
from bigain.data.base import EvalDataModule
from bigain.data.latent_cache import LatentCache
from bigain.data.loader import Batch
from bigain.diffusion.trials import TIMESTEPS
from bigain.tasks.forwards import Forwards

_log = logging.getLogger(__name__)


class BackboneModule(LightningModule):
    """A module around a backbone.

    Attributes:
        generates: Whether it generates images.
        backbone: The diffusion model.
        visited: Timesteps of the model that images are evaluated at; before `check_fit` all.
        forwards: Splits its rows over forwards.
        share: Whether to compute once what rows have in common.
        latent_cache: Folder for encoded images; None encodes each time. Without a VAE it does nothing.
    """

    generates: ClassVar[bool] = False
    backbone: Backbone
    visited: Tensor = torch.arange(TIMESTEPS)
    forwards: Forwards
    share: bool
    latent_cache: str | None = None
    _first_timesteps: Sequence[int] | None = None
    _sharing = ExitStack()

    @property
    def sampling_steps(self) -> Sequence[Step]:
        """The steps that every image is generated in, the same for all; none in classification."""
        return ()

    @property
    def data(self) -> EvalDataModule:
        """The trainer's DataModule: see `EvalDataModule.of`."""
        return EvalDataModule.of(self)

    def prompts_of(self, data: EvalDataModule) -> tuple[Sequence[str], bool]:
        """Return the prompts of a run, and whether the model must be able to distinguish all of them."""
        raise NotImplementedError

    def check_fit(self, data: EvalDataModule) -> str:
        """Check that images, classes and prompts of a dataset fit the model, whose weights are not needed.

        Returns a warning, or nothing; raises an InputError if they do not fit.
        """
        self.backbone.latents_of(data.image_size)
        space = data.class_space
        self.backbone.check_classes(space.indices, space.total or len(space))
        return self.backbone.check_prompts(*self.prompts_of(data))

    def setup(self, stage: str) -> None:
        """Load the backbone in the trainer's precision, check the data, and open the cache of latents.

        Callbacks come first: compressors have set up their hooks.
        """
        backbone = self.backbone
        backbone.load()
        if warning := self.check_fit(self.data):
            rank_zero_only(_log.warning)(f"warning: {warning}")
        if self.trainer.precision == "32-true":
            # Lightning converts to half but never back: a model loaded in half would stay in half.
            backbone.float()
        compile_denoiser(backbone.denoiser, backbone.compilation)
        if backbone.cuda_graph:
            use_graphs(backbone.denoiser)
        self.forwards.equal = backbone.cuda_graph or backbone.compilation != "none"
        self.data.read_images, self.data.latents = not self.generates, None
        # Without a VAE, images are their own latents.
        if self.latent_cache is not None and backbone.vae is not None:
            # The same weights round differently at a different precision or on a different kind of device.
            encoder = f"{module_digest(backbone.vae)} {self.trainer.precision} {self.trainer.strategy.root_device.type}"
            self.data.latents = LatentCache(Path(self.latent_cache).expanduser(), self.data.image_size, encoder)

    def encode_batch(self, batch: Batch) -> Tensor:
        """Return the latents of a batch: encoded (and written to the cache, if there is one) or read from the cache."""
        latents = [batch["latent"].view(torch.float32)] if len(batch["latent"]) else []
        if len(batch["image"]):
            # One by one on a CPU: see `Forwards`.
            chunk = 1 if self.device.type == "cpu" else len(batch["image"])
            latents.insert(0, torch.cat([self.backbone.encode(images) for images in batch["image"].split(chunk)]))
            if self.data.latents is not None:
                for digest, latent in zip(batch["digests"], latents[0].cpu(), strict=False):
                    self.data.latents.write(str(digest), latent)
        return torch.cat(latents)

    def begin_sharing(self, conditions: Tensor | None = None) -> None:
        """Start to compute once what rows have in common: see `share`. The hooks of compressors run first."""
        self._sharing.close()
        self._first_timesteps = first_timesteps(installed_on(self.backbone.denoiser))
        if self.share:
            self._sharing = share(self.backbone.denoiser, conditions)

    def shared_timesteps(self, timesteps: Tensor) -> list[int] | None:
        """Return for each row the first timestep at which compressors do the same; None if they always do. `(b,)`."""
        first = self._first_timesteps
        return None if first is None else [first[step] for step in nearest_timesteps(timesteps)]

    def at_precision(self, alternative: str) -> str:
        """Return the end of a message on numbers that are not finite: the precision, and what to try instead."""
        higher = "" if self.trainer.precision == "32-true" else "--trainer.precision 32-true, or "
        return f"at precision {self.trainer.precision}; try {higher}{alternative}"

    def teardown(self, stage: str) -> None:
        self._sharing.close()

    def configure_callbacks(self) -> list[Callback]:
        """Return a callback that ends the sharing after an exception, which Lightning reports to callbacks only."""
        return [_EndSharing()]


class _EndSharing(Callback):
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, BackboneModule)
        pl_module._sharing.close()
