"""bigain: evaluate training-free token compression for diffusion models on classification and generation."""

from importlib.metadata import version

__version__ = version("bigain")
