"""Callbacks that write predictions, images, results and measurements."""

from bigain.inspector.frequency_response import FrequencyResponse
from bigain.tasks.prediction_writer import PredictionWriter, SampleWriter
from bigain.tasks.results_writer import FeatureResults, GenerationResults, ResultsWriter

__all__ = [
    "FeatureResults",
    "FrequencyResponse",
    "GenerationResults",
    "PredictionWriter",
    "ResultsWriter",
    "SampleWriter",
]
