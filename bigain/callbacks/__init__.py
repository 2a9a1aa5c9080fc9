"""Callbacks that write predictions, results and measurements."""

from bigain.callbacks.prediction_writer import PredictionWriter
from bigain.callbacks.results import ResultsWriter

__all__ = ["PredictionWriter", "ResultsWriter"]
