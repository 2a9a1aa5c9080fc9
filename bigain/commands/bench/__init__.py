"""`bigain bench`: the time that a compressor saves."""
