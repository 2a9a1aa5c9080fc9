"""Networks and text encoder of the embedded models, and what regularises their self-attention."""

from __future__ import annotations

import math

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bigain.data.shapes import CLASS_NAMES, IMAGE_SIZE

PROMPTS = [f"a photo of a {name}" for name in CLASS_NAMES] + [""]
MAX_TOKENS = 16


def coarsened(x: Tensor) -> Tensor:
    """Fewer and smeared tokens, for keys and values. `(b, n, c)` -> `(b, m, c)`.

    In the manner of DropKey (Li et al., CVPR 2023): real models find the same evidence in many tokens, one of 1.4 M
    parameters trained for an hour has to be made to look for it. Half of the time neighbours are mixed as well, so
    that neither picking tokens nor averaging them is favoured. The whole batch keeps the same tokens, as whole rows
    are cheaper to leave out than to mask.
    """
    if torch.rand(()) < 0.3:
        return x
    b, n, c = x.shape
    side = math.isqrt(n)
    if torch.rand(()) < 0.5:
        grid = x.view(b, side, side, c)
        for dim in (1, 2):
            distance = int(torch.randint(1, 3, ())) * (1 if torch.rand(()) < 0.5 else -1)
            grid = (grid + grid.roll(distance, dim)) / 2
        x = grid.view(b, n, c)
    # Log-uniform between 1/20 and all: the share that a stride of 4 keeps is as likely as one of 2.
    share = 20 ** -float(torch.rand(()))
    return x[:, torch.randperm(n)[: max(1, round(share * n))]]


def coarsen_keys(attention: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor | None]):
    """Pre-hook of a self-attention: its keys and values come from fewer tokens."""
    return args, kwargs | {"encoder_hidden_states": coarsened(args[0])}


def build_dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=3,
        out_channels=3,
        num_layers=4,
        sample_size=IMAGE_SIZE,
        patch_size=2,
        num_embeds_ada_norm=len(CLASS_NAMES),
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=(1, 2, 4),  # diffusers reads these as head counts: heads of 32 channels
        use_linear_projection=True,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
