"""Per-image records, the metrics computed from them, and distances between sets of images."""

from bigain.metrics.inception import Inception
from bigain.metrics.shape_features import ShapeFeatures

__all__ = ["Inception", "ShapeFeatures"]
