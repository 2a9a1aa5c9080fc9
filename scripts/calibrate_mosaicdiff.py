"""Make the masks of MosaicDiff for the network of a configuration.

    python scripts/calibrate_mosaicdiff.py --config demo_mosaicdiff.yaml --data.split val

The options are those of `bigain predict`: the settings of the compressor, and with `--compressor.masks` the file to
write. Calibrate on other images than are evaluated; the card in the file says on which.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from bigain.commands.lightning_cli import WithoutTrainer
from bigain.commands.options import checked
from bigain.commands.predict import silence_libraries
from bigain.compressors.mosaicdiff import MosaicDiff, output_of, prune
from bigain.compressors.structural import prunable, weights_digest, write_masks
from bigain.data.loader import Batch
from bigain.diffusion.trials import TIMESTEPS, keys_of_trials, trial_noise, uniform_timesteps
from bigain.errors import InputError
from bigain.tasks.forwards import Forwards
from bigain.tasks.preparing import BackboneModule


class Calibration(BackboneModule):
    """Collects the second moments of the inputs of all projections, on noised images of each stage."""

    def __init__(self, module: BackboneModule, pruner: MosaicDiff, seed: int) -> None:
        super().__init__()
        self.backbone, self.prompts_of, self.pruner, self.seed = module.backbone, module.prompts_of, pruner, seed
        self.forwards = Forwards(None, "batch_size")
        self.moments: dict[str, Tensor] = {}
        self.stage = self.images = 0

    def setup(self, stage: str) -> None:
        self.backbone.load()
        # Lightning converts the weights later.
        self.digest = weights_digest(self.backbone.denoiser)
        super().setup(stage)
        self.modules_pruned = prunable(self.pruner.sites_of(self.backbone.denoiser))
        for name, module in self.modules_pruned.items():
            output_of(name, module)[0].register_forward_pre_hook(lambda _, args, name=name: self.collect(name, args[0]))

    @torch.inference_mode()
    def on_predict_start(self) -> None:
        space = self.data.class_space
        self.conditions = self.backbone.conditions(space.prompts, space.model_labels)
        self.backbone.finish_conditions()

    def collect(self, name: str, x: Tensor) -> None:
        x = x.flatten(0, -2).float()
        key = f"{name}.{self.stage}"
        self.moments[key] = x.mT @ x + self.moments.get(key, 0)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        if not batch["image_id"]:
            return
        latents = self.backbone.encode(batch["image"])
        self.images += len(latents)
        labels = [labels[0] if labels else 0 for labels in batch["labels"]]
        edges = [0, *self.pruner.boundaries, TIMESTEPS]
        keys = keys_of_trials(batch["image_id"], len(edges) - 1, self.seed, self.device)
        for self.stage, (begin, end) in enumerate(pairwise(edges)):
            key = keys[:, self.stage]
            # Flows have no timestep 0.
            timesteps = (begin + (end - begin) * uniform_timesteps(key) / TIMESTEPS).long().clamp_min(1)
            noisy = self.backbone.parametrisation.add_noise(latents, trial_noise(key, latents.shape[1:]), timesteps)
            self.backbone.predict(noisy, timesteps, self.conditions[labels])

    def write(self, path: Path) -> None:
        tensors = {}
        for name, module in self.modules_pruned.items():
            output, size = output_of(name, module)
            for stage, removed in enumerate(self.pruner.removed(output.in_features // size)):
                if removed:
                    kept, weight = prune(output.weight, self.moments.pop(f"{name}.{stage}"), size, removed)
                    tensors |= {f"{name}.kept.{stage}": kept, f"{name}.weight.{stage}": weight.half()}
        settings = self.pruner.description()["settings"]
        data = {"dataset": self.data.name, "split": getattr(self.data, "split", None), "images": self.images}
        card = {"method": "MosaicDiff", "model": self.backbone.model, "weights_sha256": self.digest}
        card |= {"calibration": {**data, "seed": self.seed}, "sparsities": self.pruner.sparsities}
        card |= {name: settings[name] for name in ("ratio", "middle", "boundaries", "where")}
        write_masks(path, tensors, card)
        print(f"{path}: {card}")


def main() -> None:
    if {"-h", "--help"} & {*sys.argv}:
        print(__doc__)
        return
    silence_libraries()
    cli = WithoutTrainer(checked(["predict", *sys.argv[1:]]))
    pruner = next((compressor for compressor in cli.compressors() if isinstance(compressor, MosaicDiff)), None)
    if pruner is None or pruner.masks is None:
        raise InputError("name a MosaicDiff with --compressor, and the file to write with --compressor.masks")
    calibration = Calibration(cli.model, pruner, cli.config.predict.seed)
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="auto", devices=1, **options)
    trainer.predict(calibration, datamodule=cli.datamodule, return_predictions=False)
    calibration.write(Path(pruner.masks).expanduser())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
