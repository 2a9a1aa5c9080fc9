"""Everything that the inspector shows: pictures in a folder, and pictures, numbers and settings in loggers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch.utils.tensorboard.summary import hparams

from bigain.inspector.curves import (
    class_figure,
    confusion_figure,
    error_figure,
    errors_by_time,
    survival,
    survival_figure,
    truth_of,
)
from bigain.inspector.maps import SiteMap
from bigain.inspector.sheets import Subject, salience_sheet, score_sheet, token_sheet
from bigain.report.figures import plain_style
from bigain.runs.columns import column_blocks, read_columns
from bigain.runs.files import replacing
from bigain.runs.names import method, strength
from bigain.runs.results import read_results
from bigain.runs.schema import Protocol, Results
from bigain.runs.summary import compressor_text
from bigain.tasks.contact_sheet import log_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Folder in the run directory.
PICTURES = "pictures"
# TensorBoard sorts pictures by tag, so each starts with a number: 1 for samples, then in order of interest.
_TAG_NUMBERS = {"tokens": 2, "curves": 3, "salience": 4, "scores": 5, "curves/confusion_matrix": 7}
# Columns of the HParams table, the same for all runs: TensorBoard uses those of the first run it finds.
_TEXTS = ("compressor", "dataset", "method", "model", "precision", "protocol", "task")
_NUMBERS = ("factor", "images", "ratio", "seed", "tau")
_METRICS = (
    *("top1", "top1_precision", "map_macro", "map_sample", "map_released"),
    *(f"{name}[{protocol}]" for protocol in get_args(Protocol) for name in ("frechet", "kid", "agreement")),
    *("clip_score", "psnr"),
)
_COSTS = ("flops/gflops_per_evaluation", "flops/reduction_percent", "timing/seconds_per_image")
_PROTOCOL = ("stages", "keep", "budget", "race", "timesteps", "loss", "scheduler", "steps", "guidance", "images")


class Board(NamedTuple):
    """Shows a run in loggers: pictures and numbers.

    Attributes:
        folder: Of the figures as PNG files.
        loggers: Of any kind; settings are for TensorBoard.
        step: Of pictures: the number of finished images.
    """

    folder: Path
    loggers: Sequence[Logger]
    step: int

    def figure(self, tag: str, figure: Figure) -> None:
        """Show a figure under `group/name`, and write it to `group_name.png`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        # Draws once; `savefig` draws twice.
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        _write(self.folder / f"{tag.replace('/', '_')}.png", picture)
        self.picture(tag, picture)

    def picture(self, tag: str, picture: Image.Image) -> None:
        """Show a picture under `group/name`, after the number of its group."""
        number = _TAG_NUMBERS.get(tag) or _TAG_NUMBERS[tag.partition("/")[0]]
        for logger in self.loggers:
            log_picture(logger, f"{number} {tag}", picture, self.step)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Show a number; several with different steps, e.g. timesteps, stages or sites, are a curve."""
        for logger in self.loggers:
            logger.log_metrics({tag: value}, step)

    def settings(self, results: Results) -> None:
        """Add the run to TensorBoard's table of settings and metrics."""
        # The metrics are the scalars with these tags; those that a run lacks stay empty.
        tags = [*(f"metrics/{name}" for name in {**dict.fromkeys(_METRICS), **results["metrics"]}), *_COSTS]
        # Unlike those of `add_hparams`, all runs have the same columns.
        columns, _, _ = hparams(dict.fromkeys(_TEXTS, "") | dict.fromkeys(_NUMBERS, 0.0), dict.fromkeys(tags, 0.0))
        _, start, end = hparams(settings_of(results), {})
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                for event in (columns, start, end):
                    logger.experiment._get_file_writer().add_summary(event)


def settings_of(results: Results) -> dict[str, Any]:
    """Return the settings of a run by column, without those that do not apply."""
    compressors, protocol = results["compressors"], results["protocol"]
    settings: dict[str, Any] = {
        "task": results["task"],
        "dataset": results["dataset"]["name"],
        "model": results["model"]["name"],
        "method": method(compressors),
        "compressor": " + ".join(map(compressor_text, compressors)) or "none",
        "images": float(results["dataset"]["images"]),
        "seed": float(protocol["seed"]),
        "precision": str(results["environment"]["precision"]),
        "protocol": ", ".join(f"{name} {protocol[name]}" for name in _PROTOCOL if protocol.get(name) is not None),
    }
    return settings | dict([amount] if (amount := strength(compressors)) else [])


def draw_image(folder: Path, number: int, subject: Subject, maps: Sequence[SiteMap]) -> None:
    """Write the pictures of a followed image, with a number in their names; `maps` has at least one site.

    Raises:
        InputError: If a file cannot be written.
    """
    sheets = {"tokens": token_sheet(subject, maps), "scores": score_sheet(subject, maps)}
    for group, sheet in {**sheets, "salience": salience_sheet(subject, maps)}.items():
        if sheet is not None:
            _write(folder / f"{group}_image_{number}.png", sheet)


def _write(path: Path, picture: Image.Image) -> None:
    with replacing(path) as file:
        picture.save(file, "PNG", compress_level=1)


def draw_run(folder: Path, loggers: Sequence[Logger], names: Sequence[str]) -> None:
    """Draw a finished run, and show it and the pictures of its images.

    Args:
        folder: Run directory.
        loggers: The trainer's.
        names: Of the classes.
    """
    results = read_results(folder)
    import matplotlib

    board = Board(folder / PICTURES, loggers, results["dataset"]["images"])
    style = matplotlib.rc_context({"axes.titlelocation": "left", "axes.titlesize": "medium"})
    with plain_style(), style:
        board.settings(results)
        board.scalar("flops/reduction_percent", results["flops"]["reduction_percent"], board.step)
        for site in results["sites"]:
            board.scalar("sites/tokens_in", site["tokens_in"], site["index"])
            board.scalar("sites/tokens_out", site["tokens_out"], site["index"])
        if results["task"] == "classification":
            _draw_curves(board, results, folder, names)
        for group in ("tokens", "salience", "scores"):
            for path in sorted((folder / PICTURES).glob(f"{group}_image_[0-9]*.png")):
                with Image.open(path) as image:
                    board.picture(path.stem.replace("_", "/", 1), image)


def _draw_curves(board: Board, results: Results, folder: Path, names: Sequence[str]) -> None:
    """Draw the curves over all images of a classification."""
    labels, timesteps, stage = read_columns(folder, "label", "timesteps", "stage")
    truth = truth_of(labels, stage.shape[1])
    curves = errors_by_time(lambda: column_blocks(folder, "errors"), timesteps, truth)
    if curves is not None:
        board.figure("curves/error_by_timestep", error_figure(curves))
        board.figure("curves/margin_by_class", class_figure(curves, names))
        series = dict(zip(("true_class", "rival_1", "rival_2", "rival_3"), (curves.true, *curves.rivals), strict=False))
        for name, values in {**series, "margin": curves.rivals[0] - curves.true}.items():
            for timestep, value in zip(curves.timesteps, values, strict=True):
                board.scalar(f"error_by_timestep/{name}", float(value), int(timestep))
    stages, keep = results["protocol"]["stages"], results["protocol"]["keep"]
    # A race has no stages.
    if stages and truth.any():
        shares = survival(stage, truth, len(stages))
        chance = [1.0, *(min(1.0, survivors / len(names)) for survivors in keep)]
        board.figure("curves/stage_survival", survival_figure(shares, chance))
        for step, share in enumerate(shares):
            board.scalar("survival/true_class", float(share), step)
    if results["confusion_matrix"] is not None:
        board.figure("curves/confusion_matrix", confusion_figure(results["confusion_matrix"], names))
