"""Diffusion models behind one interface, and the sites where they can be compressed."""

from bigain.backbones.base import Backbone
from bigain.backbones.dit import DiT
from bigain.backbones.flux import Flux
from bigain.backbones.forward import row_keys
from bigain.backbones.pixart import PixArt
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.backbones.stable_diffusion_3 import StableDiffusion3
from bigain.backbones.stable_diffusion_xl import StableDiffusionXL

__all__ = ["Backbone", "DiT", "Flux", "PixArt", "StableDiffusion", "StableDiffusion3", "StableDiffusionXL", "row_keys"]
