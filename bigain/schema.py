"""Versions of the files that runs write and reports read, and what they are called."""

from __future__ import annotations

# Of results.json.
RESULTS_VERSION = 1

RESPONSE_FILE = "frequency_response.json"
RESPONSE_VERSION = 1
