"""`bigain flops`: the cost of a compressor, counted without weights."""
