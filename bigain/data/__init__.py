"""DataModules: the datasets to evaluate on."""

from bigain.data.base import EvalDataModule
from bigain.data.coco import Coco2017
from bigain.data.image_folder import ImageFolder
from bigain.data.imagenet import ImageNet1K, ImageNet100
from bigain.data.pets import OxfordPets
from bigain.data.prompts import Prompts
from bigain.data.shapes import ShapeTextures

__all__ = [
    "Coco2017",
    "EvalDataModule",
    "ImageFolder",
    "ImageNet100",
    "ImageNet1K",
    "OxfordPets",
    "Prompts",
    "ShapeTextures",
]
