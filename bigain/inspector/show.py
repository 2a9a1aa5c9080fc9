"""What is shown when a run is over, read from its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from bigain.data.base import EvalDataModule
from bigain.data.images import read_images, sample_path
from bigain.data.selection import Item
from bigain.errors import InputError
from bigain.inspector.board import Board, sites_table
from bigain.inspector.errors_by_time import errors_by_time, survival, truth_of
from bigain.inspector.figures import class_figure, confusion_figure, error_figure, rendered, survival_figure
from bigain.inspector.maps import SiteMap
from bigain.inspector.sheets import Subject, picture_sheet, salience_sheet, score_sheet, token_sheet
from bigain.inspector.tiles import Picture
from bigain.report.figures import plain_style
from bigain.runs.columns import read_columns
from bigain.runs.names import label
from bigain.runs.results import has_results, read_results
from bigain.runs.schema import Results
from bigain.runs.summary import summary
from bigain.tasks.sample_writer import FOLDER as SAMPLES

# Side of a grey picture where there is none.
_NO_PICTURE = 64


@dataclass(frozen=True)
class Shown:
    """What there is to show.

    Attributes:
        folder: Run directory.
        pictures: Where pictures go.
        data: The dataset, set up.
        items: Images that are followed.
        maps: Of each of them, by site; empty where there are none.
    """

    folder: Path
    pictures: Path
    data: EvalDataModule
    items: Sequence[Item]
    maps: Sequence[Sequence[SiteMap]]


def show(trainer: Trainer, shown: Shown) -> None:
    """Draw everything into the pictures' folder and into the event files of the trainer's TensorBoard loggers."""
    if not has_results(shown.folder):
        raise InputError(f"the inspector needs the results of {shown.folder}; put a ResultsWriter behind it")
    results = read_results(shown.folder)
    logs = [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    board = Board(shown.pictures, logs, results["dataset"]["images"])
    try:
        _numbers(board, results, shown.folder)
        predictions = _curves(board, results, shown) if results["task"] == "classification" else {}
        _pictures(board, results, shown, predictions)
    finally:
        board.close()


def _numbers(board: Board, results: Results, folder: Path) -> None:
    board.settings(results)
    board.scalar("flops/reduction_percent", results["flops"]["reduction_percent"], results["dataset"]["images"])
    for site in results["sites"]:
        board.scalar("sites/tokens_in", site["tokens_in"], site["index"])
        board.scalar("sites/tokens_out", site["tokens_out"], site["index"])
    board.text("run/summary", "".join(f"    {line}\n" for line in summary(results, folder).splitlines()))
    if results["sites"]:
        board.text("run/sites", sites_table(results["sites"]))


def _curves(board: Board, results: Results, shown: Shown) -> dict[str, int]:
    """Everything over all images of a classification; the prediction of every image by id."""
    errors, timesteps, stage = read_columns(shown.folder, "errors", "timesteps", "stage")
    label, image_id, prediction = read_columns(shown.folder, "label", "image_id", "prediction")
    truth = truth_of(label, errors.shape[1])
    predictions = dict(zip(image_id.tolist(), prediction.tolist(), strict=True))
    names = shown.data.class_space.names
    found = errors_by_time(errors, timesteps, truth)
    stages, keep = results["protocol"]["stages"], results["protocol"]["keep"]
    # A race has no stages: every image ends at another look.
    shares = survival(stage, truth, len(stages)) if stages and truth.any() else np.empty(0)
    with plain_style():
        if found is not None:
            board.picture("curves/error_by_timestep", rendered(error_figure(found)))
            board.picture("curves/margin_by_class", rendered(class_figure(found, names)))
        if len(shares):
            left = [1.0, *(min(1.0, most / len(names)) for most in keep)]
            board.picture("curves/stage_survival", rendered(survival_figure(shares, left)))
        if results["confusion_matrix"] is not None:
            board.picture("curves/confusion_matrix", rendered(confusion_figure(results["confusion_matrix"], names)))
    for step, share in enumerate(shares):
        board.scalar("survival/true_class", float(share), step)
    if found is not None:
        curves = zip(("true_class", "rival_1", "rival_2", "rival_3"), (found.true, *found.rivals), strict=False)
        series = [*curves, ("margin", found.rivals[0] - found.true)]
        for name, values in series:
            for timestep, value in zip(found.timesteps, values, strict=True):
                board.scalar(f"error_by_timestep/{name}", float(value), int(timestep))
    return predictions


def _pictures(board: Board, results: Results, shown: Shown, predictions: dict[str, int]) -> None:
    title = f"{label(results['compressors'])}, {results['model']['name']}, {results['dataset']['name']}"
    subjects = [_subject(title, item, shown, results, predictions) for item in shown.items]
    done = [subject for subject in subjects if subject is not None]
    if done:
        board.picture("images/followed", picture_sheet(done))
    with_maps = [(one, of_one) for one, of_one in zip(subjects, shown.maps, strict=True) if one is not None and of_one]
    for number, (subject, maps) in enumerate(zip(subjects, shown.maps, strict=True)):
        if subject is None or not maps:
            continue
        board.picture(f"tokens/image_{number}", token_sheet(subject, maps))
        scores = score_sheet(subject, maps)
        if scores is not None:
            board.picture(f"scores/image_{number}", scores)
    if with_maps:
        board.picture("salience/images", salience_sheet([one for one, _ in with_maps], [maps for _, maps in with_maps]))


def _subject(title: str, item: Item, shown: Shown, results: Results, predictions: dict[str, int]) -> Subject | None:
    """An image and what is known of it; None if it was not done."""
    names = shown.data.class_space.names
    told = f"{item.image_id}: " + (", ".join(names[one] for one in item.labels[:3]) or "no class")
    if results["task"] == "generation":
        picture = _generated(item, shown.folder, results["protocol"]["images"])
        return None if picture is None else Subject(picture, [told, title])
    if item.image_id not in predictions:
        return None
    prediction = predictions[item.image_id]
    right = "right" if prediction in item.labels else "wrong"
    try:
        picture = _pixels(shown.data.read_image(item))
    except InputError:
        # Its latent was cached, and the image is gone since: its maps are of use without it.
        picture = np.full((_NO_PICTURE, _NO_PICTURE, 3), 160, np.uint8)
        told += ", which cannot be read any more"
    return Subject(picture, [f"{told}; predicted {names[prediction]} ({right})", title])


def _generated(item: Item, folder: Path, image_format: Any) -> Picture | None:
    if image_format == "none":
        return np.full((_NO_PICTURE, _NO_PICTURE, 3), 160, np.uint8)
    path = sample_path(folder / SAMPLES, item.image_id, image_format)
    return _pixels(read_images([path])[0]) if path.is_file() else None


def _pixels(image: torch.Tensor) -> Picture:
    return image.permute(1, 2, 0).contiguous().numpy()
