"""The cost of a run: FLOPs, seconds, memory, and the environment they were measured in."""
