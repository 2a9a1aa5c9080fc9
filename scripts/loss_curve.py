"""The loss of a training that may have been interrupted, as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure


def read_losses(folder: Path) -> dict[int, float]:
    """Loss by step over all sessions that a CSVLogger wrote to `FOLDER/sessions`."""
    logged: dict[int, float] = {}
    # In the order they were made: a session repeats what came after the last checkpoint of the one before.
    for session in sorted(folder.glob("sessions/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with session.open(encoding="utf-8") as file:
            logged |= {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}
    return dict(sorted(logged.items()))


def draw_curve(folder: Path, batch_size: int) -> None:
    """The loss by images seen as `FOLDER/curve.png`: single batches, and means of ten; nothing without any loss."""
    rows = [*read_losses(folder).items()]
    # It is written every 50 steps, so a trial of fewer has none.
    if not rows:
        return
    seen = torch.tensor([(step + 1) * batch_size for step, _ in rows])
    loss = torch.tensor([one for _, one in rows])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="images seen", ylabel="loss", yscale="log")
    axes.plot(seen, loss, alpha=0.3)
    if len(rows) >= 10:
        axes.plot(seen.unfold(0, 10, 1).float().mean(1), loss.unfold(0, 10, 1).mean(1), color="C0")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(folder / "curve.png", dpi=110)
