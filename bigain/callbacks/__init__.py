"""Callbacks that write predictions, images, results and measurements."""

from bigain.callbacks.frequency_response import FrequencyResponse
from bigain.callbacks.generation_results import GenerationResults
from bigain.callbacks.prediction_writer import PredictionWriter
from bigain.callbacks.results import ResultsWriter
from bigain.callbacks.sample_writer import SampleWriter

__all__ = ["FrequencyResponse", "GenerationResults", "PredictionWriter", "ResultsWriter", "SampleWriter"]
