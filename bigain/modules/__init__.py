"""The LightningModules, under the name that configurations use."""

from bigain.tasks.classifier import DiffusionClassifier
from bigain.tasks.probe import FeatureProbe
from bigain.tasks.sampler import DiffusionSampler

__all__ = ["DiffusionClassifier", "DiffusionSampler", "FeatureProbe"]
