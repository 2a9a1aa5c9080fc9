"""bigain: evaluate training-free token compression for diffusion models on classification and generation."""
