"""Everything that the inspector shows at the end of a run: pictures in a folder and an event file of TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bigain.data.base import EvalDataModule
from bigain.data.images import read_images
from bigain.data.selection import Item
from bigain.errors import InputError
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
from bigain.inspector.sheets import Picture, Subject, image_sheet, salience_sheet, score_sheet, token_sheet
from bigain.report.figures import plain_style
from bigain.report.tables import Table
from bigain.runs.columns import column_blocks, read_columns
from bigain.runs.files import RUN_FILES, replacing, sample_path
from bigain.runs.names import label, method, strength
from bigain.runs.results import read_results
from bigain.runs.schema import Protocol, Results
from bigain.runs.summary import compressor_text, summary
from bigain.tasks.contact_sheet import log_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Folder in the run directory.
PICTURES = "pictures"
# Suffix of the event file, which distinguishes it from the logger's own.
SUFFIX = ".inspector"
# TensorBoard sorts pictures by tag, so each starts with a number: 1 for samples, then in order of interest.
_TAG_NUMBERS = {"tokens": 2, "curves": 3, "salience": 4, "scores": 5, "images": 6, "curves/confusion_matrix": 7}
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


class Board:
    """Writes pictures to a folder, pictures and numbers to all loggers, and text to TensorBoard."""

    def __init__(self, folder: Path, loggers: Sequence[Logger], step: int) -> None:
        """Delete the pictures and event files of an earlier end of the run, and open new ones.

        `step`, of pictures and text, is the number of finished images.
        """
        logs = [Path(logger.log_dir) for logger in loggers if isinstance(logger, TensorBoardLogger)]
        self._other_loggers = [logger for logger in loggers if not isinstance(logger, TensorBoardLogger)]
        folder.mkdir(parents=True, exist_ok=True)
        patterns = [name for name in RUN_FILES if name.startswith(f"{PICTURES}/") and name.endswith(".png")]
        old_pictures = [path for name in patterns for path in folder.parent.glob(name)]
        for path in [*old_pictures, *(path for log in logs for path in log.glob(f"events.out.*{SUFFIX}"))]:
            path.unlink(missing_ok=True)
        self._folder = folder
        self._step = step
        self._writers = [SummaryWriter(str(log), filename_suffix=SUFFIX) for log in logs]

    def picture(self, tag: str, picture: Figure | Image.Image) -> None:
        """Show a picture under `group/name`, after the number of its group; its file is `group_name.png`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        if not isinstance(picture, Image.Image):
            # Draws once; `savefig` draws twice.
            canvas: Any = FigureCanvasAgg(picture)
            canvas.draw()
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        with replacing(self._folder / f"{tag.replace('/', '_')}.png") as file:
            picture.save(file, "PNG", compress_level=1)
        number = _TAG_NUMBERS.get(tag) or _TAG_NUMBERS[tag.partition("/")[0]]
        for writer in self._writers:
            writer.add_image(f"{number} {tag}", np.asarray(picture), self._step, dataformats="HWC")
        for logger in self._other_loggers:
            log_picture(logger, f"{number} {tag}", picture, self._step)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Show a number; several with different steps, e.g. timesteps, stages or sites, are a curve."""
        for writer in self._writers:
            writer.add_scalar(tag, value, step)
        for logger in self._other_loggers:
            logger.log_metrics({tag: value}, step)

    def text(self, tag: str, markdown: str) -> None:
        """Show Markdown."""
        for writer in self._writers:
            writer.add_text(tag, markdown, self._step)

    def settings(self, results: Results) -> None:
        """Add the run to TensorBoard's table of settings and metrics."""
        # The metrics are the scalars with these tags; those that a run lacks stay empty.
        tags = [*(f"metrics/{name}" for name in {**dict.fromkeys(_METRICS), **results["metrics"]}), *_COSTS]
        # Unlike those of `add_hparams`, all runs have the same columns.
        columns, _, _ = hparams(dict.fromkeys(_TEXTS, "") | dict.fromkeys(_NUMBERS, 0.0), dict.fromkeys(tags, 0.0))
        _, start, end = hparams(settings_of(results), {})
        for writer in self._writers:
            for event in (columns, start, end):
                writer._get_file_writer().add_summary(event)

    def close(self) -> None:
        """Flush and close the event files."""
        for writer in self._writers:
            writer.close()


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


def draw_run(
    folder: Path, loggers: Sequence[Logger], data: EvalDataModule, maps: Mapping[Item, Sequence[SiteMap]]
) -> None:
    """Draw a finished run.

    Args:
        folder: Run directory.
        loggers: The trainer's; the TensorBoard loggers among them get an event file of their own.
        data: The dataset, set up.
        maps: Token maps of each followed image, by site; may be empty.
    """
    results = read_results(folder)
    import matplotlib

    board = Board(folder / PICTURES, loggers, results["dataset"]["images"])
    style = matplotlib.rc_context({"axes.titlelocation": "left", "axes.titlesize": "medium"})
    with closing(board), plain_style(), style:
        _draw_numbers(board, results, folder)
        predictions = _draw_curves(board, results, folder, data) if results["task"] == "classification" else {}
        subjects = {item: _subject(item, results, folder, data, predictions) for item in maps}
        _draw_images(board, {item: subject for item, subject in subjects.items() if subject is not None}, maps)


def _draw_numbers(board: Board, results: Results, folder: Path) -> None:
    board.settings(results)
    board.scalar("flops/reduction_percent", results["flops"]["reduction_percent"], results["dataset"]["images"])
    rows = []
    for site in results["sites"]:
        index, before, after = site["index"], site["tokens_in"], site["tokens_out"]
        board.scalar("sites/tokens_in", before, index)
        board.scalar("sites/tokens_out", after, index)
        share = f"{100 * after / before:.0f} %"
        rows.append([str(index), site["name"], str(before), str(after), share, site["compressor"]])
    board.text("run/summary", "".join(f"    {line}\n" for line in summary(results, folder).splitlines()))
    if rows:
        headers = ("site", "name", "tokens in", "tokens out", "left", "compressor")
        board.text("run/sites", Table(headers, rows, "rlrrr").markdown())


def _draw_curves(board: Board, results: Results, folder: Path, data: EvalDataModule) -> dict[str, int]:
    """Draw the curves over all images of a classification; return the prediction of every image."""
    timesteps, stage = read_columns(folder, "timesteps", "stage")
    labels, ids, predicted = read_columns(folder, "label", "image_id", "prediction")
    truth = truth_of(labels, stage.shape[1])
    predictions = dict(zip(ids.tolist(), predicted.tolist(), strict=True))
    names = data.class_space.names
    curves = errors_by_time(lambda: column_blocks(folder, "errors"), timesteps, truth)
    if curves is not None:
        board.picture("curves/error_by_timestep", error_figure(curves))
        board.picture("curves/margin_by_class", class_figure(curves, names))
        series = dict(zip(("true_class", "rival_1", "rival_2", "rival_3"), (curves.true, *curves.rivals), strict=False))
        for name, values in {**series, "margin": curves.rivals[0] - curves.true}.items():
            for timestep, value in zip(curves.timesteps, values, strict=True):
                board.scalar(f"error_by_timestep/{name}", float(value), int(timestep))
    stages, keep = results["protocol"]["stages"], results["protocol"]["keep"]
    # A race has no stages.
    if stages and truth.any():
        shares = survival(stage, truth, len(stages))
        chance = [1.0, *(min(1.0, survivors / len(names)) for survivors in keep)]
        board.picture("curves/stage_survival", survival_figure(shares, chance))
        for step, share in enumerate(shares):
            board.scalar("survival/true_class", float(share), step)
    if results["confusion_matrix"] is not None:
        board.picture("curves/confusion_matrix", confusion_figure(results["confusion_matrix"], names))
    return predictions


def _draw_images(board: Board, subjects: Mapping[Item, Subject], maps: Mapping[Item, Sequence[SiteMap]]) -> None:
    if subjects:
        board.picture("images/followed", image_sheet(list(subjects.values())))
    for number, (item, sites) in enumerate(maps.items()):
        if item in subjects and sites:
            board.picture(f"tokens/image_{number}", token_sheet(subjects[item], sites))
            if (scores := score_sheet(subjects[item], sites)) is not None:
                board.picture(f"scores/image_{number}", scores)
    if mapped := [item for item in subjects if maps[item]]:
        sheet = salience_sheet([subjects[item] for item in mapped], [maps[item] for item in mapped])
        board.picture("salience/images", sheet)


def _subject(
    item: Item, results: Results, folder: Path, data: EvalDataModule, predictions: Mapping[str, int]
) -> Subject | None:
    """Return an image with its title; None if the run has not evaluated or generated it."""
    run = f"{label(results['compressors'])}, {results['model']['name']}, {results['dataset']['name']}"
    names = data.class_space.names
    title = f"{item.image_id}: " + (", ".join(names[index] for index in item.labels[:3]) or "no class")
    grey = np.full((64, 64, 3), 160, np.uint8)
    if results["task"] == "generation":
        image_format = results["protocol"]["images"]
        if image_format == "none":
            return Subject(grey, [title, run])
        path = sample_path(folder, item.image_id, image_format)
        return Subject(_pixels(read_images([path])[0]), [title, run]) if path.is_file() else None
    prediction = predictions.get(item.image_id)
    if results["task"] == "classification" and prediction is None:
        return None
    try:
        picture = _pixels(data.read_image(item))
    except InputError:
        # Its latent was cached and the image is gone; the maps are still useful.
        picture, title = grey, f"{title}, which can no longer be read"
    if prediction is not None:
        title += f"; predicted {names[prediction]} ({'right' if prediction in item.labels else 'wrong'})"
    return Subject(picture, [title, run])


def _pixels(image: torch.Tensor) -> Picture:
    return image.permute(1, 2, 0).contiguous().numpy()
