"""Text, tables and plots from result files."""
