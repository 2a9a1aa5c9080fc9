"""LightningModules with a predict path."""

from bigain.modules.classifier import DiffusionClassifier

__all__ = ["DiffusionClassifier"]
