"""Tiny random diffusers models, arguments for their forward, and snapshots of their state."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import bigain
from bigain.backbones.base import Backbone
from bigain.backbones.flux import image_ids
from bigain.tokens.grid import Grid

TOKENIZER = Path(bigain.__file__).parent / "assets" / "shapes_unet" / "tokenizer"
NETWORKS = ("unet", "dit")
# With attention over text and image.
JOINT = ("sd3", "flux")
# Further networks whose blocks are those of a U-Net and a DiT.
TODAY = ("pixart", "sdxl")
# Maps are not square, to detect swapped height and width; a DiT's map is always square.
LATENTS = {"unet": (4, 8, 12), "dit": (4, 16, 16), "sd3": (4, 16, 24), "flux": (4, 16, 24)}
LATENTS |= {"pixart": (4, 12, 16), "sdxl": (4, 12, 16)}
TOKENS = {"unet": 96, "dit": 64, "sd3": 96, "flux": 96, "pixart": 48, "sdxl": 48}
WIDTH = 8  # of the text states
JOINT_WIDTH = 24  # of the text states of SD 3 and FLUX
PROMPT_TOKENS = 8
CPU = torch.device("cpu")

SD_2_0 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
DIT_XL_2_512 = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 64,
    "num_embeds_ada_norm": 1000,
}


_BLOCKS = (BasicTransformerBlock, JointTransformerBlock, FluxTransformerBlock, FluxSingleTransformerBlock)


class Call(NamedTuple):
    """Input and output of a module, after its hooks changed the input and before all hooks saw the output."""

    x: Any
    kwargs: dict[str, Any]
    output: Any


def _seeded(kind: Any, *, seed: int = 0, **config: Any) -> Any:
    """Build a model with random weights, without changing the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(**config)
        for module in model.modules():
            if isinstance(module, _BLOCKS):
                # New attention is nearly uniform; larger weights make wrong tokens visible.
                for weight in module.parameters():
                    weight.data *= 1.5 if weight.ndim == 2 else 1
    return model.eval().requires_grad_(False)


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    """Three levels with blocks at stride 1 (1 down, 2 up), 2 (1 down, 2 up) and 4 (mid)."""
    config = {
        "sample_size": LATENTS["unet"][1:],
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": (1, 2, 2),
        "norm_num_groups": 4,
        "use_linear_projection": True,
    }
    return _seeded(UNet2DConditionModel, **{**config, **changes})


def small_unet() -> UNet2DConditionModel:
    """Two levels with blocks at stride 1, for the meta device, on which every operator takes long."""
    return tiny_unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 2),
    )


def tiny_dit(**changes: Any) -> DiTTransformer2DModel:
    """Five blocks on an 8x8 token map, with learned sigma."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 5,
        "sample_size": 16,
        "num_embeds_ada_norm": 10,
    }
    return _seeded(DiTTransformer2DModel, **{**config, **changes})


def loaded(kind: type[Backbone], folder: Path, **options: Any) -> Any:
    """A backbone with its weights."""
    backbone = kind(str(folder), **options)
    backbone.load()
    return backbone


def tiny_sd3(**changes: Any) -> SD3Transformer2DModel:
    """Four blocks as in SD 3.5 medium: normalised queries and keys, two blocks with a second attention."""
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": JOINT_WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 2 * WIDTH,
        "out_channels": 4,
        "pos_embed_max_size": 12,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    }
    return _seeded(SD3Transformer2DModel, **{**config, **changes})


def tiny_flux(**changes: Any) -> FluxTransformer2DModel:
    """Two double and two single blocks, with distilled guidance as in FLUX.1-dev."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": JOINT_WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    }
    return _seeded(FluxTransformer2DModel, **{**config, **changes})


def tiny_pixart(**changes: Any) -> PixArtTransformer2DModel:
    """Three blocks on a 6x8 token map, with learned sigma."""
    config = {
        # The embeddings of a large model's image size are thirds of the width, those of positions fourths.
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": WIDTH,
        "num_layers": 3,
        "sample_size": 16,
    }
    return _seeded(PixArtTransformer2DModel, **{**config, **changes})


def tiny_sdxl(**changes: Any) -> UNet2DConditionModel:
    """As SDXL, no blocks at stride 1; at stride 2 (1 down, 2 up) and 4 (2 in the middle)."""
    config = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 4,
        "sample_size": 16,
    }
    return tiny_unet(**{**config, **changes})


BUILDERS = {"unet": tiny_unet, "dit": tiny_dit, "sd3": tiny_sd3, "flux": tiny_flux}
BUILDERS |= {"pixart": tiny_pixart, "sdxl": tiny_sdxl}


def fresh(network: str) -> nn.Module:
    return BUILDERS[network]()


@cache
def shared(network: str) -> nn.Module:
    """Return one model for all tests that do not change it; a fixture of tests/compressors checks that."""
    return fresh(network)


def on_meta(kind: Any, config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return kind(**config).eval()


def inputs(network: str, b: int = 3, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Keyword arguments of a forward in the order of its signature, with a different timestep per row."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)

    timestep = torch.tensor([10, 400, 990])[torch.arange(b) % 3]
    c, h, w = LATENTS[network]
    texts = {"sd3": 2 * WIDTH, "flux": WIDTH}
    if network in texts:
        shape = (c, h, w) if network == "sd3" else (h * w // 4, 4 * c)
        tokens = {"hidden_states": noise(b, *shape), "encoder_hidden_states": noise(b, PROMPT_TOKENS, JOINT_WIDTH)}
        given = {**tokens, "pooled_projections": noise(b, texts[network]), "timestep": timestep}
        if network == "sd3":
            return given
        ids = {
            "img_ids": image_ids(Grid(h // 2, w // 2), CPU),
            "txt_ids": torch.zeros(PROMPT_TOKENS, 3, dtype=torch.float32),
        }
        return {
            **given,
            "timestep": (timestep.float() / 1000).to(dtype),
            **ids,
            "guidance": torch.full((b,), 3.5, dtype=dtype),
        }
    if network == "unet":
        states = noise(b, PROMPT_TOKENS, WIDTH)
        return {"sample": noise(b, *LATENTS[network]), "timestep": timestep, "encoder_hidden_states": states}
    if network == "pixart":
        mask = (torch.arange(PROMPT_TOKENS) < 3 + torch.arange(b)[:, None]).to(dtype)
        return {
            "hidden_states": noise(b, *LATENTS[network]),
            "encoder_hidden_states": noise(b, PROMPT_TOKENS, WIDTH),
            "timestep": timestep,
            **dict.fromkeys(("added_cond_kwargs", "cross_attention_kwargs", "attention_mask")),
            "encoder_attention_mask": mask,
        }
    if network == "sdxl":
        added = {"text_embeds": noise(b, WIDTH), "time_ids": torch.tensor([[24, 32, 0, 0, 24, 32]]).expand(b, 6)}
        return {
            "sample": noise(b, *LATENTS[network]),
            "timestep": timestep,
            "encoder_hidden_states": noise(b, PROMPT_TOKENS, 2 * WIDTH),
            **dict.fromkeys(("class_labels", "timestep_cond", "attention_mask", "cross_attention_kwargs")),
            "added_cond_kwargs": added,
        }
    return {"hidden_states": noise(b, *LATENTS[network]), "timestep": timestep, "class_labels": torch.arange(b) % 10}


def attention(block: nn.Module) -> Any:
    """The self-attention of a block of any network."""
    return block.attn if hasattr(block, "attn") else block.attn1


def mlp(block: nn.Module) -> Any:
    """The MLP of a block of any network, or its first layer."""
    return block.ff if hasattr(block, "ff") else block.proj_mlp


def rows(given: dict[str, Any], index: slice) -> dict[str, Any]:
    def select(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return rows(value, index)
        return value if name in ("txt_ids", "img_ids") or value is None else value[index]

    return {name: select(name, value) for name, value in given.items()}


def forward(model: nn.Module, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**given).sample
    return output


def watch(model: nn.Module, given: dict[str, Any], **modules: nn.Module) -> dict[str, Call]:
    """Run a forward and keep one call of each named module."""
    seen: dict[str, Call] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen[name] = Call(args[0] if args else kwargs.get("hidden_states"), kwargs, output)

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(module.register_forward_hook(record(name), with_kwargs=True))
        forward(model, given)
    return seen


def snapshot(model: nn.Module) -> dict[Any, Any]:
    """Everything that can be attached to a model, its classes or torch, by identity."""
    record: dict[Any, Any] = {"sdpa": F.scaled_dot_product_attention, "global": _contents(vars(nn.modules.module))}
    for name, module in model.named_modules():
        record[name] = (type(module), _contents(vars(module)))
        for kind in type(module).__mro__[:-1]:
            if kind not in record:
                record[kind] = _contents(vars(kind))
    return record


def _contents(namespace: Any) -> dict[str, Any]:
    kept = {}
    for name, value in dict(namespace).items():
        # Dictionaries hold the hooks, parameters, buffers and children.
        is_dict = isinstance(value, dict)
        kept[name] = {key: id(item) for key, item in value.items()} if is_dict else id(value)
    return kept


def tiny_vae() -> AutoencoderKL:
    return _seeded(
        AutoencoderKL,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


def tiny_text_encoder(kind: Any = CLIPTextModel, tokenizer: CLIPTokenizer | None = None) -> Any:
    """A text encoder for the tokens of a tokenizer, by default the tiny one."""
    tokenizer = tokenizer or tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=WIDTH,
    )
    return _seeded(kind, config=config)


def tiny_tokenizer() -> CLIPTokenizer:
    """Letters, with and without the end of a word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=PROMPT_TOKENS)


def tiny_t5(width: int = WIDTH) -> T5EncoderModel:
    config = T5Config(vocab_size=32, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return _seeded(T5EncoderModel, config=config)


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Letters and spaces, without the file of SentencePiece."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=PROMPT_TOKENS)


def sdxl_parts() -> dict[str, Any]:
    """All components of an SDXL pipeline but its VAE and scheduler."""
    second = tiny_text_encoder(CLIPTextModelWithProjection)
    texts = {"text_encoder": tiny_text_encoder(), "tokenizer": tiny_tokenizer()}
    return {"unet": tiny_sdxl(), **texts, "text_encoder_2": second, "tokenizer_2": tiny_tokenizer()}


def pixart_parts(**changes: Any) -> dict[str, Any]:
    """All components of a PixArt pipeline but its VAE and scheduler."""
    return {"transformer": tiny_pixart(**changes), "text_encoder": tiny_t5(), "tokenizer": tiny_t5_tokenizer()}


def save_sdxl(folder: Path) -> Path:
    """A diffusers folder with an SDXL on 16x16 latents."""
    return _save(folder, "StableDiffusionXLPipeline", sdxl_parts(), "epsilon", True)


def save_pixart(folder: Path, pipeline: str = "PixArtAlphaPipeline", **changes: Any) -> Path:
    """A diffusers folder with a PixArt on 16x16 latents."""
    return _save(folder, pipeline, pixart_parts(**changes), "epsilon", True)


def save_sd3(folder: Path, *, t5: bool = True, **changes: Any) -> Path:
    """A diffusers folder with an SD 3.5 on 16x16 latents, with or without T5."""
    clip = CLIPTextModelWithProjection
    parts = {"transformer": tiny_sd3(**changes)}
    parts |= {"text_encoder": tiny_text_encoder(clip), "text_encoder_2": tiny_text_encoder(clip)}
    parts |= {"tokenizer": tiny_tokenizer(), "tokenizer_2": tiny_tokenizer()}
    if t5:
        parts |= {"text_encoder_3": tiny_t5(JOINT_WIDTH), "tokenizer_3": tiny_t5_tokenizer()}
    return _save(folder, "StableDiffusion3Pipeline", parts, "flow", True)


def save_flux(folder: Path, **changes: Any) -> Path:
    """A diffusers folder with a FLUX.1-dev, or with other settings a schnell."""
    parts = {"transformer": tiny_flux(**changes), "text_encoder": tiny_text_encoder(), "tokenizer": tiny_tokenizer()}
    parts |= {"text_encoder_2": tiny_t5(JOINT_WIDTH), "tokenizer_2": tiny_t5_tokenizer()}
    return _save(folder, "FluxPipeline", parts, "flow", True)


def save_stable_diffusion(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    vae: bool = True,
    sample_size: int = 8,
    tokenizer: CLIPTokenizer | None = None,
) -> Path:
    """A diffusers folder with a U-Net, a text encoder and a tokenizer, by default the tiny one."""
    channels, tokenizer = 4 if vae else 3, tokenizer or tiny_tokenizer()
    unet = tiny_unet(sample_size=sample_size, in_channels=channels, out_channels=channels)
    parts = {"unet": unet, "text_encoder": tiny_text_encoder(tokenizer=tokenizer), "tokenizer": tokenizer}
    return _save(folder, "StableDiffusionPipeline", parts, prediction_type, vae)


def save_dit(folder: Path, *, prediction_type: str = "epsilon", vae: bool = True, learned_sigma: bool = True) -> Path:
    """A diffusers folder with a DiT on 16x16 latents."""
    channels = 4 if vae else 3
    parts = {"transformer": tiny_dit(in_channels=channels, out_channels=channels * (2 if learned_sigma else 1))}
    return _save(folder, "DiTPipeline", parts, prediction_type, vae)


def _save(folder: Path, pipeline: str, parts: dict[str, Any], prediction_type: str, vae: bool) -> Path:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    if prediction_type != "flow":
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    parts = {**parts, "scheduler": scheduler}
    parts = {**parts, "vae": tiny_vae()} if vae else parts
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    library = {name: "transformers" for name in parts if name.startswith(("text_encoder", "tokenizer"))}
    index = {name: [library.get(name, "diffusers"), type(part).__name__] for name, part in parts.items()}
    missing = {} if vae else {"vae": [None, None]}
    text = json.dumps({"_class_name": pipeline, "_diffusers_version": "0.35.0", **index, **missing})
    (folder / "model_index.json").write_text(text)
    return folder


def save_dino(folder):
    """A tiny random DINOv2, as transformers saves it."""
    torch.manual_seed(0)
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**size, image_size=70, patch_size=14, initializer_range=0.4)).save_pretrained(folder)
    return folder


def save_clip(folder):
    """A tiny random CLIP model with the embedded model's tokenizer, as transformers saves it."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = {**size, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    return folder
