"""Why a compressor changes accuracy: margins, Theorem 1, frequency response."""
