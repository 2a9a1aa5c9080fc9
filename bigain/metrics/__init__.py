"""Metrics, one file each, and the extractors of features for distances between sets of images."""

from bigain.metrics.base import ImageMetric, Images, Metric, mean_estimate, proportion
from bigain.metrics.clip_score import ClipScore
from bigain.metrics.dino_similarity import DinoSimilarity
from bigain.metrics.inception import Inception
from bigain.metrics.pick_score import PickScore
from bigain.metrics.pretrained import ClipFeatures, DinoV2
from bigain.metrics.shape_features import ShapeFeatures
from bigain.runs.schema import Estimate

__all__ = [
    "ClipFeatures",
    "ClipScore",
    "DinoSimilarity",
    "DinoV2",
    "Estimate",
    "ImageMetric",
    "Images",
    "Inception",
    "Metric",
    "PickScore",
    "ShapeFeatures",
    "mean_estimate",
    "proportion",
]
