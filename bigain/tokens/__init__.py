"""Pure operators on token tensors: grids, scores, destinations, merge plans, downsampling, randomness."""
