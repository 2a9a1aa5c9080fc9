"""LightningModules with a predict path."""

from bigain.modules.classifier import DiffusionClassifier
from bigain.modules.sampler import DiffusionSampler

__all__ = ["DiffusionClassifier", "DiffusionSampler"]
