"""What a compressor does to a few fixed images, and what came of it in all: pictures, curves, TensorBoard."""

from bigain.inspector.callback import Inspector

__all__ = ["Inspector"]
