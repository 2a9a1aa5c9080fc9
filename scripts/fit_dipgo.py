r"""Learn the scores of DiP-GO for the network of a configuration, whose weights stay as they are.

    python scripts/fit_dipgo.py --config demo_dipgo.yaml
    python scripts/fit_dipgo.py --config demo_none.yaml --compressor DiPGO --compressor.ratio 0.1 \
        --compressor.masks masks/shapes_dit.safetensors

The options are those of `bigain predict`, whose images are not read: the network is fitted on its own samples. The
compressor's `masks` is the file to write. An interrupted fit continues from the `.ckpt` beside it when started again
with the same arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from bigain.backbones.base import Backbone
from bigain.backbones.geometry import without_weights
from bigain.commands.lightning_cli import WithoutTrainer
from bigain.commands.options import checked
from bigain.commands.predict import silence_libraries
from bigain.compressors.dipgo import DiPGO, choose_kept
from bigain.compressors.structural import prunable, weights_digest, write_masks
from bigain.diffusion.parametrisation import Flow
from bigain.diffusion.sampling import item_keys, sample
from bigain.diffusion.trials import TIMESTEPS, trial_noise
from bigain.errors import InputError
from bigain.tasks.scheduling import make_scheduler
from bigain.tokens.randomness import mix, random_uniform

# Steps in which the network's own samples are made.
_SAMPLING_STEPS = 20
_CHECKPOINT_EVERY = 20


class PrunerNetwork(nn.Module):
    """Scores from one learned query per module and bin: self-attention among the queries, then a linear layer."""

    def __init__(self, modules: int, bins: int, width: int = 64) -> None:
        super().__init__()
        self.shape = modules, bins
        self.queries = nn.Parameter(torch.randn(1, modules * bins, width))
        self.attention = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0, batch_first=True)
        self.head = nn.Linear(width, 1)
        # Gates begin nearly open.
        nn.init.constant_(self.head.bias, 3)

    def forward(self) -> Tensor:
        """Return the scores, in (0, 1). `(modules, bins)`."""
        return self.head(self.attention(self.queries)).sigmoid().view(self.shape)


class GateFit(LightningModule):
    """Fits scores: as gates they should change predictions little, and save the share `ratio` of the FLOPs.

    Every step is a function of (seed, step), so that a resumed fit equals an uninterrupted one. `samples` are latents
    that the network made, `(m, c, h, w)`, with their `conditions`; `costs` those of `costs_of`; `settings` are `seed`,
    `learning_rate`, `parts`, and whatever else a resumed fit must share. The network, in float32, stays hooked.
    """

    # The network is not part of a checkpoint.
    strict_loading = False

    def __init__(self, backbone: Backbone, pruner: DiPGO, settings: Mapping[str, Any], **tensors: Tensor) -> None:
        super().__init__()
        self.save_hyperparameters(dict(settings))
        self.backbone, self.bins, self.ratio = backbone, pruner.bins, pruner.ratio
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.pruner = PrunerNetwork(len(self.costs), pruner.bins)
        self.gates: Tensor | None = None
        for i, module in enumerate(prunable(pruner.sites_of(backbone.denoiser)).values()):
            module.register_forward_hook(lambda _, args, output, i=i: self.gated(output, i))

    def gated(self, output: Tensor, i: int) -> Tensor:
        return output if self.gates is None else output * self.gates[i, :, None, None]

    def inconsistency(self, keys: Tensor, bins: Tensor, gates: Tensor) -> Tensor:
        """Return how much gates change predictions, a mean square, of one row for each key.

        Sample, timestep within the bin, and noise are functions of the key. `(b,)`, `(b,)`, `(n, bins)` -> `(b,)`.
        """
        parametrisation = self.backbone.parametrisation
        fraction, position = random_uniform(mix(keys, 1), 2).unbind(1)
        # Flows have no timestep 0.
        timesteps = ((bins + fraction) * (TIMESTEPS / self.bins)).long().clamp(1, TIMESTEPS - 1)
        chosen = (position * len(self.samples)).long()
        samples, condition = self.samples[chosen], self.conditions[chosen]
        noisy = parametrisation.add_noise(samples, trial_noise(keys, samples.shape[1:]), timesteps)
        inputs = noisy, timesteps, condition, parametrisation.default_target
        with torch.no_grad():
            full = self.backbone.predict_target(*inputs)
        self.gates = gates[:, bins]
        gated = self.backbone.predict_target(*inputs)
        self.gates = None
        return (gated - full).square().flatten(1).mean(1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        scores, parts = self.pruner(), self.hparams["parts"]
        # One row of each bin per step.
        bins = torch.arange(self.bins, device=self.device).tensor_split(parts)[batch_idx % parts]
        keys = mix(bins, self.hparams["seed"], self.global_step)
        # Lightning divides by `parts`.
        consistency = self.inconsistency(keys, bins, scores).sum() * (parts / self.bins)
        saved = (self.costs[:, None] * (1 - scores)).sum() / self.bins
        # Counts only until the budget is met; it is much larger than the other loss.
        sparsity = (self.ratio - saved).clamp_min(0)
        self.log_dict({"consistency": consistency, "saved": saved}, prog_bar=True)
        return consistency + sparsity

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.pruner.parameters(), self.hparams["learning_rate"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"pruner.{name}": value for name, value in self.pruner.state_dict().items()}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        if (begun_with := checkpoint["hyper_parameters"]) != dict(self.hparams):
            raise InputError(
                f"the fit was begun with {begun_with}, not {dict(self.hparams)}; delete its .ckpt, or use these"
            )


def costs_of(backbone: Backbone, pruner: DiPGO, shape: tuple[int, int, int], condition: Tensor) -> Tensor:
    """Return the FLOPs of each attention and MLP relative to those of the network, for latents of a shape. `(n,)`."""
    twin = without_weights(backbone)
    noisy, timesteps = torch.empty(1, *shape, device="meta"), torch.full((1,), 500, device="meta")
    with FlopCounterMode(display=False) as counter:
        twin.predict(noisy, timesteps, condition.to("meta"))
    names = [f"{type(twin.denoiser).__name__}.{name}" for name in prunable(pruner.sites_of(twin.denoiser))]
    counts = counter.get_flop_counts()
    return torch.tensor([sum(counts[name].values()) for name in names]) / counter.get_total_flops()


@torch.no_grad()
def sample_latents(
    backbone: Backbone, conditions: Tensor, shape: tuple[int, int, int], seed: int, parts: int = 1
) -> Tensor:
    """Return latents that a network samples, one for each condition, without guidance. `(m, ...)` -> `(m, c, h, w)`."""
    kind = FlowMatchEulerDiscreteScheduler if isinstance(backbone.parametrisation, Flow) else DDIMScheduler
    scheduler, options = make_scheduler(backbone, kind, {}, _SAMPLING_STEPS, shape)
    keys = item_keys(torch.arange(len(conditions), device=conditions.device), seed)

    def denoise(x: Tensor, timestep: Tensor, step: int) -> Tensor:
        chunks = zip(x.tensor_split(parts), conditions.tensor_split(parts), strict=True)
        return torch.cat([backbone.predict(rows, timestep.expand(len(rows)), condition) for rows, condition in chunks])

    return sample(denoise, keys, shape, scheduler, _SAMPLING_STEPS, options)


def fit_scores(fit: GateFit, steps: int, checkpoint: Path) -> Tensor:
    """Fit up to a number of steps, from the checkpoint if there is one, and return the scores. `(n, bins)`."""
    saver = ModelCheckpoint(
        checkpoint.parent, checkpoint.stem, every_n_train_steps=_CHECKPOINT_EVERY, enable_version_counter=False
    )
    parts = fit.hparams["parts"]
    options = {"logger": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="auto", devices=1, max_steps=steps, accumulate_grad_batches=parts, callbacks=[saver], **options
    )
    batches = DataLoader(range(steps * parts), batch_size=None)
    trainer.fit(fit, batches, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
    with torch.no_grad():
        return fit.pruner().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="gradient steps")
    parser.add_argument("--samples", type=int, default=32, help="latents that the network samples first")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--parts", type=int, default=1, help="forwards that the rows are cut into, if memory runs out")
    args, options = parser.parse_known_args()
    silence_libraries()
    cli = WithoutTrainer(checked(["predict", *options]))
    pruner = next((compressor for compressor in cli.compressors() if isinstance(compressor, DiPGO)), None)
    if pruner is None:
        raise InputError("the configuration has no DiPGO; name it with --compressor DiPGO, and its ratio and masks")
    path, seed = Path(str(pruner.masks)).expanduser(), cli.config.predict.seed
    backbone, space = cli.model.backbone, cli.datamodule.class_space
    backbone.load()
    digest = weights_digest(backbone.denoiser)
    backbone.float().to("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    shape = backbone.latents_of(cli.datamodule.image_size)
    classes = [i % len(space) for i in range(args.samples)]
    with torch.no_grad():
        conditions = backbone.conditions(*([x[i] for i in classes] for x in (space.prompts, space.model_labels)))
    samples = sample_latents(backbone, conditions, shape, seed, args.parts)
    costs = costs_of(backbone, pruner, shape, conditions[:1])
    settings = {**vars(args), "weights_sha256": digest, "ratio": pruner.ratio, "bins": pruner.bins, "seed": seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    fit = GateFit(backbone, pruner, settings, samples=samples, conditions=conditions, costs=costs)
    scores = fit_scores(fit, args.steps, path.with_suffix(".ckpt"))
    skipped = ~choose_kept(scores, costs, pruner.ratio)
    saved = float((costs[:, None] * skipped).sum() / pruner.bins)
    names = prunable(pruner.sites_of(backbone.denoiser))
    tensors = {f"{name}.score": score for name, score in zip(names, scores, strict=True)}
    tensors |= {f"{name}.cost": cost for name, cost in zip(names, costs, strict=True)}
    card = {"method": "DiPGO", "model": backbone.model, "weights_sha256": digest, "latents": shape, "saved": saved}
    calibration = {"samples": args.samples, "steps": args.steps, "learning_rate": args.learning_rate, "seed": seed}
    write_masks(path, tensors, card | {"calibration": calibration, "ratio": pruner.ratio, "bins": pruner.bins})
    print(f"{path}: {skipped.sum()} of {skipped.numel()} skipped, which saves {saved:.2%} of the FLOPs")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
