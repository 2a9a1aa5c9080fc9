"""`bigain sweep`: all cells of a table, one run each."""
