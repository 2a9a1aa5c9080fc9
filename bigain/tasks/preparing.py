"""What both modules do with their backbone before a run."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bigain.backbones.base import Backbone
from bigain.backbones.compilation import compile_denoiser
from bigain.backbones.sharing import end_sharing, share
from bigain.tasks.forwards import Forwards


class BackboneModule(LightningModule):
    """A module around a backbone.

    Attributes:
        backbone: The diffusion model.
        forwards: How many rows its forwards take.
        share: Whether what rows have in common is computed once.
    """

    backbone: Backbone
    forwards: Forwards
    share: bool

    def prepare_backbone(self) -> None:
        """Load the backbone in the trainer's precision; compressors have set up their hooks, callbacks come first."""
        self.backbone.load()
        if self.trainer.precision == "32-true":
            # Lightning converts to half but never back: without this a model loaded in half would stay so.
            self.backbone.float()
        compile_denoiser(self.backbone.denoiser, self.backbone.compilation)
        self.forwards.equal = self.backbone.compilation != "none"

    def begin_sharing(self, conditions: Tensor | None = None) -> None:
        """Compute once what rows have in common: see `share`. Compressors' hooks come before."""
        end_sharing(self.backbone.denoiser)
        if self.share:
            share(self.backbone.denoiser, conditions)

    def teardown(self, stage: str) -> None:
        end_sharing(self.backbone.denoiser)

    def configure_callbacks(self) -> list[Callback]:
        """Lightning tells callbacks alone that a run ended by an exception."""
        return [_EndSharing()]


class _EndSharing(Callback):
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, BackboneModule)
        if pl_module.backbone.loaded:
            end_sharing(pl_module.backbone.denoiser)
