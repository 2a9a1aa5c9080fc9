"""What a run costs: FLOPs, seconds, memory, and where it was measured."""
