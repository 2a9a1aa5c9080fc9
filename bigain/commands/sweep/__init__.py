"""`bigain sweep`: all cells of a table, one run each. The help is here, apart from heavy imports."""

from bigain.commands.sweep.tables import Sweep, SweepRun, load_table

__all__ = ["HELP", "Sweep", "SweepRun", "load_table"]

HELP = """usage: bigain sweep TABLE [--output DIR] [--dry-run] [--shard I/N] [--only METHOD ...] [options]

Run every cell of a table (methods x settings x tasks), each as `bigain predict` would, in a directory of its own.
Finished cells are skipped, interrupted ones continued, and one that fails does not stop the others.

TABLE is a file, or the name of a shipped table: table4, demo, demo_unet, ...

options:
  --output DIR     where the cells' directories are; default: runs/<table>
  --dry-run        list the cells with what they cost; needs no weights and no dataset, and writes nothing
  --shard I/N      do the I-th of N shares, I from 1 to N: one job of an array
  --only METHOD ...
                   only these methods, as the table names them; `none` is the model without compression

All further options go to every cell: --trainer.devices 2, --data.limit 200. Marked with a task, a dataset of the table,
or both, they go to those cells alone: --classification.data.limit 100, --coco.data.root /data/coco,
--pets.generation.model.reference references/pets.npz
"""
