"""The commands of bigain, one module or package each."""
