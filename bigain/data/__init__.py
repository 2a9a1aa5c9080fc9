"""DataModules: what is evaluated on."""

from bigain.data.base import EvalDataModule
from bigain.data.pets import OxfordPets
from bigain.data.shapes import ShapeTextures

__all__ = ["EvalDataModule", "OxfordPets", "ShapeTextures"]
