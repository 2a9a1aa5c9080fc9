"""FLUX.1: transformers over text and image with rotary embeddings, in the diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from bigain.backbones.loading import ModelFiles
from bigain.backbones.sites import Layout, Site, layout_of
from bigain.backbones.text import TextBackbone, pack, unpack
from bigain.diffusion.parametrisation import Flow
from bigain.errors import InputError
from bigain.tokens.grid import Grid

# Latent pixels per token and side; a token is a patch of the latent.
_PATCH = 2
# Default latent pixels per side of the pipeline; the network's configuration has no size.
_LATENT_SIDE = 128
# Tokens of a prompt that T5 reads in the pipelines of dev and schnell.
_T5_TOKENS = {True: 512, False: 256}
_DEFAULT_GUIDANCE = 3.5


class Flux(TextBackbone):
    """FLUX.1 dev and schnell (Black Forest Labs, 2024), conditioned on a prompt."""

    component = "transformer"
    pipelines = ("FluxPipeline",)
    kinds = (Flow,)
    packing = _PATCH**2
    patch = _PATCH
    widths: ClassVar[dict[str, Any]] = {
        "pooled_projection_dim": ["text_encoder.hidden_size"],
        "joint_attention_dim": ["text_encoder_2.d_model"],
    }
    parts: ClassVar[dict[str, Any]] = {
        "transformer": FluxTransformer2DModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5Tokenizer,
    }

    def __init__(self, model: str, distilled_guidance: float | None = None, **kwargs: Any) -> None:
        """Store what to load; nothing is read yet.

        Args:
            model: Local diffusers folder or hub id.
            distilled_guidance: The guidance that FLUX.1-dev is told to imitate, in one forward; null is 3.5, as in its
                pipeline. FLUX.1-schnell takes none.
            kwargs: See the base class.
        """
        super().__init__(model, **kwargs)
        self.distilled_guidance = distilled_guidance

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.denoiser.config["in_channels"] // self.packing, _LATENT_SIDE, _LATENT_SIDE

    def _check_config(self, config: Mapping[str, Any]) -> None:
        if self.distilled_guidance is not None and not config.get("guidance_embeds"):
            setting = f"distilled_guidance is {self.distilled_guidance}"
            raise InputError(f"{setting}, but {self.model} takes no guidance, as FLUX.1-schnell; leave it out")

    def prompt_tokens(self, files: ModelFiles, suffix: str, saved: Any) -> Any:
        if suffix != "_2" or not isinstance(saved, int):
            return saved
        return min(saved, _T5_TOKENS[bool(files.config("transformer").get("guidance_embeds"))])

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """The pooled state of CLIP and the states of T5: see `pack`."""
        pooled = self.encoded(prompts).pooler_output
        return pack(pooled, self.encoded(prompts, "_2").last_hidden_state.to(pooled))

    def check_guidance(self) -> None:
        raise InputError(
            f"{self.model} is guided in one forward, without an unconditional prompt; sample with guidance: 1 and set "
            "the backbone's distilled_guidance, which FLUX.1-dev takes"
        )

    def blank_condition(self) -> Tensor:
        config = self.denoiser.config
        states = self.saved_prompt_tokens("_2") * config["joint_attention_dim"]
        return torch.empty(1, config["pooled_projection_dim"] + states, device="meta")

    def timestep_options(self, scheduler: Any, steps: int, latents: tuple[int, int, int]) -> dict[str, Any]:
        options = super().timestep_options(scheduler, steps, latents)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            # By default, the last step would begin at the scheduler's lowest noise level.
            options["sigmas"] = [1 - step / steps for step in range(steps)]
        return options

    def _denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        config, device = self.denoiser.config, noisy.device
        sizes = config["pooled_projection_dim"], config["joint_attention_dim"]
        pooled, states = unpack(condition.to(noisy.dtype), *sizes)
        grid = Grid(noisy.shape[2] // _PATCH, noisy.shape[3] // _PATCH)
        guidance = None
        if config["guidance_embeds"]:
            scale = _DEFAULT_GUIDANCE if self.distilled_guidance is None else self.distilled_guidance
            guidance = torch.full((len(noisy),), scale, device=device, dtype=torch.float32)
        output: Tensor = self.denoiser(
            F.pixel_unshuffle(noisy, _PATCH).flatten(2).transpose(1, 2),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=timesteps / 1000,
            img_ids=image_ids(grid, device),
            txt_ids=torch.zeros(states.shape[1], 3, device=device, dtype=torch.float32),
            guidance=guidance,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, grid), _PATCH)


@layout_of.register
def _(denoiser: FluxTransformer2DModel) -> Layout:
    double, single = denoiser.transformer_blocks, denoiser.single_transformer_blocks
    common: dict[str, Any] = {"self_attn": ("attn",), "cross_attn": (), "processor": FluxAttnProcessor}
    sites = [Site(f"transformer_blocks.{i}", i, None, 1, block, _PATCH, **common) for i, block in enumerate(double)]
    sites += [
        Site(
            *(f"single_transformer_blocks.{i}", len(double) + i, None, 1, block, _PATCH),
            # The MLP runs beside the attention, before it in code. Its activation is by element, so tokens may be
            # restored before it.
            mlp=("proj_mlp",),
            attn_input="proj_mlp",
            text_first=True,
            **common,
        )
        for i, block in enumerate(single)
    ]
    return Layout(
        *(type(denoiser).__name__, tuple(sites), "hidden_states", "attn_input"),
        latent_of=_latent_of,
        steps=1000,
        rotary=lambda positions: denoiser.pos_embed(F.pad(positions, (1, 0))),
    )


def image_ids(grid: Grid, device: torch.device) -> Tensor:
    """Positions (0, y, x) of the tokens of a map. `(n, 3)`, float32."""
    token = torch.arange(grid.n, device=device)
    ids = torch.stack((torch.zeros_like(token), token // grid.w, token % grid.w), dim=1).float()
    # Kept here, as reading it from the device would synchronise in every forward.
    ids.bigain_grid = grid  # type: ignore[attr-defined]
    return ids


def _latent_of(arguments: Mapping[str, Any]) -> Grid:
    """Return the latent size of a forward, whose latents are a sequence, from the positions of its tokens."""
    ids = arguments["img_ids"]
    if not hasattr(ids, "bigain_grid"):
        positions = ids[0] if ids.ndim == 3 else ids
        w = int(positions[:, 2].max()) + 1
        grid = Grid(len(positions) // w, w)
        if not torch.equal(positions.float(), image_ids(grid, positions.device)):
            raise InputError(
                "img_ids are not those of one image, row by row; several, as in FLUX.1 Kontext, are not compressed"
            )
        ids.bigain_grid = grid
    return Grid(*(_PATCH * side for side in ids.bigain_grid))
