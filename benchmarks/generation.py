"""Images per second of the sampler and of a plain diffusers pipeline: same random weights, no compression, in turns.

`python benchmarks/generation.py` prints a ratio; above 1 the sampler is faster.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from rounds import rounds, spread_text
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import bigain
from bigain.backbones import StableDiffusion
from bigain.data.images import encode_images, quantise
from bigain.modules import DiffusionSampler
from bigain.tasks.scheduling import make_scheduler

EMBEDDED = Path(bigain.__file__).parent / "assets/shapes_unet"


def random_pipeline() -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline small enough for a processor, with the embedded model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    size = len(tokenizer)
    text = CLIPTextConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=(4, 8),
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
    )
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    modules = {"vae": vae, "unet": unet, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer}
    pipeline = StableDiffusionPipeline(
        **modules, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    pipeline = random_pipeline()
    prompts = ["a photo of a plain disk"] * args.images
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        backbone = StableDiffusion(folder)
        backbone.load()
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    options = {"timestep_spacing": "linspace"}
    sampler = DiffusionSampler(backbone, EulerDiscreteScheduler, options, steps=args.steps, guidance=7.5)
    sampler.shape = shape = backbone.latents_of(64)
    sampler.scheduler, sampler.timestep_options = make_scheduler(
        backbone, EulerDiscreteScheduler, options, args.steps, shape
    )

    def run_sampler() -> None:
        sampler.null = backbone.null_condition()
        latents = sampler.generate([str(i) for i in range(args.images)], backbone.conditions(prompts, [0]))
        encode_images(quantise(backbone.decode(latents), "png"), "png")

    def run_pipeline() -> None:
        images = pipeline(prompts, num_inference_steps=args.steps, guidance_scale=7.5, height=64, width=64).images
        for image in images:
            image.tobytes()

    with torch.inference_mode():
        seconds = rounds({"sampler": run_sampler, "pipeline": run_pipeline}, args.repeats)
    ratios = [b / a for a, b in zip(seconds["sampler"], seconds["pipeline"], strict=True)]
    for name, times in seconds.items():
        print(f"- {name}: {args.images / statistics.median(times):.2f} images/s")
    print(f"- ratio: {spread_text(ratios, 3)}, of {args.repeats} rounds")


if __name__ == "__main__":
    main()
