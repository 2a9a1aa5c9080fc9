"""Per-image records and the metrics computed from them."""
