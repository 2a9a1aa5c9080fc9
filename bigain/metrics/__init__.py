"""Metrics, one file each, and the extractors of features for distances between sets of images."""

from bigain.metrics.base import ImageMetric, Images, Metric, mean_estimate, proportion
from bigain.metrics.inception import Inception
from bigain.metrics.shape_features import ShapeFeatures
from bigain.runs.schema import Estimate

__all__ = ["Estimate", "ImageMetric", "Images", "Inception", "Metric", "ShapeFeatures", "mean_estimate", "proportion"]
