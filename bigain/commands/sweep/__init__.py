"""`bigain sweep`: all cells of a table, one run each."""

from bigain.commands.sweep.tables import Sweep, SweepRun, load_table

__all__ = ["Sweep", "SweepRun", "load_table"]
