"""Train the embedded models of `bigain/assets` on ShapeTextures and save them as diffusers folders.

    python scripts/train_shapes.py dit  --output runs/shapes_dit
    python scripts/train_shapes.py flow --output runs/shapes_flow
    python scripts/train_shapes.py unet --output runs/shapes_unet

`--coarsen` regularises self-attention, `--init FOLDER` begins with the weights of the model in a folder.
An interrupted run continues from `OUTPUT/last.ckpt` when started again with the same arguments. The exponential
moving average of the weights is what gets exported, to `OUTPUT/model`. `bigain/assets/README.md` records the
arguments, times and accuracies of the shipped models; the loss by images seen is drawn to `OUTPUT/curve.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import (
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from shape_batches import shape_batches
from shapes_networks import MAX_TOKENS, PROMPTS, build_dit, build_text_encoder, build_unet, coarsen_keys
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import CLIPTextModel, CLIPTokenizer

import bigain
from bigain.data.shapes import CLASS_NAMES

NULL_CLASS = len(CLASS_NAMES)
# Words of the prompts; any other text is encoded letter by letter. The longest prompt fills MAX_TOKENS.
TOKENIZER = Path(bigain.__file__).parent / "assets/shapes_unet/tokenizer"


class FromStep(Sampler[int]):
    """Batches in order, beginning where a resumed run stopped."""

    def __init__(self, module: ShapesTraining) -> None:
        self.module = module

    def __iter__(self):
        return iter(range(self.module.trainer.global_step, self.module.steps))

    def __len__(self) -> int:
        return self.module.steps


class ShapesTraining(LightningModule):
    """Denoising training on a cosine schedule, where uniformly spaced timesteps stay informative at 32 px."""

    def __init__(
        self,
        network: nn.Module,
        prediction: str,
        steps: int,
        learning_rate: float,
        batch_size: int,
        first_image: int,
        coarsen: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction, clip_sample=False)
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.first_image = first_image
        if coarsen:
            for name, module in network.named_modules():
                if name.endswith(".attn1"):
                    module.register_forward_pre_hook(coarsen_keys, with_kwargs=True)

    def on_train_start(self) -> None:
        # A checkpoint does not hold the random state: a resumed session must not draw the noise of the first again.
        if self.trainer.global_step:
            torch.manual_seed(torch.initial_seed() + self.trainer.global_step)

    def predict(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        x = images * 2 - 1
        # Stratified timesteps: one draw per 1/b of the range lowers the variance of the loss.
        t = (torch.randperm(len(x)) + torch.rand(len(x))) * (1000 / len(x))
        labels = torch.where(torch.rand(len(x), device=x.device) < 0.1, NULL_CLASS, labels)
        noise = torch.randn_like(x)
        noisy, t, target, weight = self.corrupt(x, noise, t.to(x.device))
        error = (self.predict(noisy, t, labels).float() - target).square().mean(dim=(1, 2, 3))
        loss = (weight * error).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def corrupt(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The noisy images, the timesteps for the network, the target and the weights of the rows."""
        t = t.long().clamp(0, 999)
        noisy = self.scheduler.add_noise(x, noise, t)
        alpha_bar = self.scheduler.alphas_cumprod.to(x.device)[t]
        if self.scheduler.config.prediction_type == "epsilon":
            target = noise
            # Min-SNR-5 (Hang et al., ICCV 2023): without it half the loss sits where x is all but visible.
            weight = (5 * (1 - alpha_bar) / alpha_bar).clamp(max=1)
        else:
            target = self.scheduler.get_velocity(x, noise, t)
            weight = torch.ones_like(alpha_bar)
        return noisy, t, target, weight

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        warmup = 300

        def factor(step: int) -> float:
            cooled = max(0.0, (step - warmup) / max(1, self.steps - warmup))
            return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, cooled))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return shape_batches(self.batch_size, self.steps, self.first_image, FromStep(self))


class DiTTraining(ShapesTraining):
    def predict(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        # eval(): in train mode diffusers drops labels per block; training_step has dropped them once for all blocks.
        self.network.eval()
        return self.network(x, timestep=t, class_labels=labels, return_dict=False)[0]

    def export(self, folder: Path) -> None:
        self.network.save_pretrained(folder / "transformer")
        self.scheduler.save_pretrained(folder / "scheduler")
        names = {str(i): name for i, name in enumerate(CLASS_NAMES)}
        index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
        index |= {"scheduler": ["diffusers", type(self.scheduler).__name__], "vae": [None, None], "id2label": names}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class FlowTraining(DiTTraining):
    """Rectified flow with uniform noise levels and unit weights (Ma et al., SiT, ECCV 2024)."""

    def __init__(self, network: nn.Module, prediction: str, **common: int | float | bool) -> None:
        super().__init__(network, prediction, **common)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        for block in network.transformer_blocks:
            # A fifth faster on CPUs, where the backward pass of the fused attention is slow.
            block.attn1.set_processor(AttnProcessor())

    def corrupt(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sigma = (t / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * x + sigma * noise, t, noise - x, torch.ones_like(t)


class UNetTraining(ShapesTraining):
    def set_text(self, text_encoder: CLIPTextModel) -> None:
        self.text_encoder = text_encoder
        tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
        ids = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        self.register_buffer("input_ids", ids.input_ids, persistent=False)

    def predict(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        states = self.text_encoder(self.input_ids).last_hidden_state[labels]
        return self.network(x, t, encoder_hidden_states=states, return_dict=False)[0]

    def export(self, folder: Path) -> None:
        self.network.save_pretrained(folder / "unet")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        shutil.copytree(TOKENIZER, folder / "tokenizer", dirs_exist_ok=True)
        self.scheduler.save_pretrained(folder / "scheduler")
        index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
        index |= {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
        index |= {"vae": [None, None], "safety_checker": [None, None], "feature_extractor": [None, None]}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def read_losses(folder: Path) -> dict[int, float]:
    """Loss by step over all sessions that a CSVLogger wrote to `FOLDER/sessions`."""
    logged: dict[int, float] = {}
    # In the order of creation: a session repeats the steps after the last checkpoint of the previous one.
    for session in sorted(folder.glob("sessions/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with session.open(encoding="utf-8") as file:
            logged |= {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}
    return dict(sorted(logged.items()))


def draw_curve(folder: Path, batch_size: int) -> None:
    """The loss by images seen as `FOLDER/curve.png`: single batches, and means of ten; nothing without any loss."""
    losses = read_losses(folder)
    # Losses are logged every 50 steps, so shorter runs have none.
    if not losses:
        return
    seen, loss = (torch.tensor([*losses]) + 1) * batch_size, torch.tensor([*losses.values()])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="images seen", ylabel="loss", yscale="log")
    axes.plot(seen, loss, alpha=0.3)
    if len(losses) >= 10:
        axes.plot(seen.unfold(0, 10, 1).float().mean(1), loss.unfold(0, 10, 1).mean(1), color="C0")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(folder / "curve.png", dpi=110)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["dit", "flow", "unet"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200_000, help="training images in total, each drawn afresh")
    parser.add_argument("--first-image", type=int, default=0, help="number of the first training image")
    parser.add_argument("--init", type=Path, help="diffusers folder whose weights training begins with")
    parser.add_argument("--coarsen", action="store_true", help="let self-attention see random parts of its keys")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--stop-after", type=int, default=-1, help="stop at this step, to be resumed later")
    return parser.parse_args()


def build_module(args: argparse.Namespace, common: dict[str, int | float | bool]) -> ShapesTraining:
    """The model to be trained, fresh or with the weights of `--init`."""
    if args.model != "unet":
        dit = build_dit()
        if args.init:
            # Copied into a new network: a loaded one would write the path that it was read from into its configuration.
            dit.load_state_dict(DiTTransformer2DModel.from_pretrained(args.init / "transformer").state_dict())
        return FlowTraining(dit, "epsilon", **common) if args.model == "flow" else DiTTraining(dit, "epsilon", **common)
    unet = build_unet()
    text_encoder = build_text_encoder(CLIPTokenizer.from_pretrained(TOKENIZER))
    if args.init:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(args.init / "unet").state_dict())
        text_encoder.load_state_dict(CLIPTextModel.from_pretrained(args.init / "text_encoder").state_dict())
    module = UNetTraining(unet, "v_prediction", **common)
    module.set_text(text_encoder)
    return module


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    steps = args.images // args.batch_size
    common = {"steps": steps, "learning_rate": args.learning_rate, "batch_size": args.batch_size}
    common |= {"first_image": args.first_image, "coarsen": args.coarsen}
    module = build_module(args, common)
    trainer = Trainer(
        accelerator=args.accelerator,
        # Batches are numbered by step, so several processes would see the same ones.
        devices=1,
        precision="bf16-mixed",
        max_steps=steps if args.stop_after < 0 else args.stop_after,
        gradient_clip_val=1.0,
        callbacks=[
            EMAWeightAveraging(decay=args.ema),
            ModelCheckpoint(args.output, filename="step-{step}", save_last=True, every_n_train_steps=250, save_top_k=0),
            TQDMProgressBar(refresh_rate=50),
        ],
        logger=CSVLogger(args.output, name="sessions", flush_logs_every_n_steps=50),
        log_every_n_steps=50,
    )
    last = args.output / "last.ckpt"
    trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
    # Half precision halves the files; the loader widens them again.
    module.half().export(args.output / "model")
    draw_curve(args.output, args.batch_size)


if __name__ == "__main__":
    main()
