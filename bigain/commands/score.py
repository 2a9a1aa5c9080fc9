"""`bigain score RUN`: distances and fidelity of images that are already made."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import torch
from tqdm import tqdm

from bigain.data.images import read_images, sample_path
from bigain.errors import InputError
from bigain.metrics import Inception, ShapeFeatures
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.fidelity import ClipScore, Lpips, LpipsNetwork
from bigain.metrics.generation import clip_metrics, distance_metrics, fidelity_metrics
from bigain.metrics.reference import ReferenceStatistics
from bigain.runs.lock import lock
from bigain.runs.logs import read_records
from bigain.runs.records import SampleRecord
from bigain.runs.results import read_ids, read_results, write_results
from bigain.runs.schema import Results
from bigain.runs.summary import summary
from bigain.tasks.forwards import ROWS_ON_CPU, Forwards
from bigain.tasks.measuring import features_of, find_reference
from bigain.tasks.sample_writer import FOLDER

_AT_ONCE = 32
_FIDELITY = ("psnr", "ssim", "lpips")
_PROTOCOLS = ("pytorch-fid", "torch-fidelity", "torchmetrics", "shapes-features")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see bigain score --help")


def score(args: Sequence[str]) -> str:
    """Compute what a generation run lacks, add it to its `results.json`, and return the new summary.

    Args:
        args: Command line after `score`.

    Raises:
        InputError: If the run, its images or the reference are not there or do not fit.
    """
    parser = _Parser(prog="bigain score", description="Distances and fidelity of images that are already made.")
    parser.add_argument("run", type=Path, help="run directory of a generation")
    parser.add_argument("--protocol", choices=_PROTOCOLS, help="how features are taken; default: as the run says")
    parser.add_argument("--weights", help="Inception weights; default: the environment and torch's cache")
    parser.add_argument("--reference", help="statistics of real images (.npz); default: as the run says")
    parser.add_argument("--against", type=Path, help="another run, usually uncompressed: fidelity to its images")
    parser.add_argument(
        "--lpips", choices=get_args(LpipsNetwork), help="LPIPS with this network; default: alex, if here"
    )
    parser.add_argument("--clip-model", help="folder of a CLIP model: similarity of images and prompts")
    given = parser.parse_args(args)
    read_generation(given.run)
    held = lock(given.run, 0)
    try:
        return _score(given)
    finally:
        held.release()


def _score(given: argparse.Namespace) -> str:
    results = read_generation(given.run)
    asked_distance = given.protocol or given.reference or given.weights
    if asked_distance or (given.against is None and given.clip_model is None):
        _add_distances(results, given)
    if given.against is not None:
        _replace_fidelity(results, given.run, given.against, given.lpips)
    if given.clip_model is not None:
        results["metrics"].update(_clip_scores(given.run, given.clip_model))
        results["clip_score_missing"] = None
        results["protocol"]["clip_model"] = given.clip_model
    write_results(given.run, results)
    return summary(results, given.run)


def _add_distances(results: Results, given: argparse.Namespace) -> None:
    protocol = results["protocol"]
    name, reference = given.protocol or protocol["extractor"], given.reference or protocol.get("reference_file")
    if name is None or reference is None:
        raise InputError(
            f"{given.run} names no protocol or no reference; give --protocol and --reference, --against or --clip-model"
        )
    extractor = ShapeFeatures() if name == "shapes-features" else Inception(name, given.weights)
    metrics, statistics = _distances(given.run, results, extractor, reference)
    results["metrics"].update(metrics)
    results["distance_missing"] = None
    protocol |= {"extractor": extractor.protocol, "reference_file": reference, "reference": statistics.described()}


def read_generation(run: Path) -> Results:
    """Results of a generation run.

    Raises:
        InputError: If there are none.
    """
    results = read_results(run)
    if results["task"] != "generation":
        raise InputError(f"{run} is a run of {results['task']}; expected a generation run")
    return results


def add_fidelity(run: Path, other: Path) -> None:
    """Add the fidelity to another run's images to a run's `results.json`."""
    results = read_generation(run)
    _replace_fidelity(results, run, other)
    write_results(run, results)


def _replace_fidelity(results: Results, run: Path, other: Path, network: LpipsNetwork | None = None) -> None:
    """Fidelity to one run, and its name, instead of what there was to another."""
    theirs = read_generation(other)
    for name, mine, its in _sampling(results, theirs):
        if mine != its:
            raise InputError(
                f"{run} and {other} were sampled with another {name} ({mine} and {its}), so their images are not of "
                "the same noise; compare runs that differ in the compressor"
            )
    found = fidelity(run, other, network)
    kept = {name: value for name, value in results["metrics"].items() if not name.startswith(_FIDELITY)}
    results["metrics"] = {**kept, **found}
    compressors = [compressor["class"] for compressor in theirs["compressors"]]
    results["fidelity_to"] = {"run": str(other), "fingerprint": theirs["fingerprint"], "compressors": compressors}


def _sampling(mine: Results, theirs: Results) -> Iterator[tuple[str, Any, Any]]:
    """What has to be equal for images to be of the same noise: name, and both values."""
    yield "model", mine["model"]["name"], theirs["model"]["name"]
    for name in ("scheduler", "scheduler_options", "steps", "guidance", "seed", "images"):
        yield name, mine["protocol"][name], theirs["protocol"][name]


def fidelity(run: Path, other: Path, network: LpipsNetwork | None = None) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS between two runs' images of the same items.

    Args:
        run: Directory of the run.
        other: Directory of the run whose images they should be like.
        network: Of LPIPS; None takes alex if its weights are there, and leaves LPIPS out otherwise.

    Raises:
        InputError: If they share no image, one of them lacks some of its own, or the network was asked for and its
            weights are not there.
    """
    mine, theirs = _all_images_of(run), _all_images_of(other)
    shared = [image_id for image_id in mine if image_id in theirs]
    if not shared:
        raise InputError(f"{run} and {other} have no image in common; compare runs over the same items")
    lpips = Lpips(network or "alex")
    wanted = network is not None or lpips.available() is None
    return fidelity_metrics([(mine[image_id], theirs[image_id]) for image_id in shared], lpips if wanted else None)


def _all_images_of(run: Path) -> dict[str, Path]:
    paths, made = images_of(run), read_generation(run)["dataset"]["images"]
    if len(paths) < made:
        raise InputError(f"{run} has {len(paths)} of its {made} images; generate them again")
    return paths


def images_of(run: Path) -> dict[str, Path]:
    """Files of a run's images by id, those that are there."""
    image_format = read_generation(run)["protocol"]["images"]
    if image_format == "none":
        raise InputError(f"{run} kept no images; generate with images: png")
    paths = {image_id: sample_path(run / FOLDER, image_id, image_format) for image_id in read_ids(run)}
    return {image_id: path for image_id, path in paths.items() if path.is_file()}


def _distances(
    run: Path, results: Results, extractor: FeatureExtractor, reference: str
) -> tuple[dict[str, Any], ReferenceStatistics]:
    extractor.load()
    statistics = ReferenceStatistics.load(
        find_reference(reference), extractor.protocol, extractor.dimension, extractor.digest()
    )
    device = _device()
    extractor.to(device)
    paths = list(_all_images_of(run).values())
    forwards = Forwards(None, "images", ROWS_ON_CPU // 2)
    features = [
        features_of(extractor, images.to(device), forwards).cpu().numpy() for images in _batches(paths, "features")
    ]
    return distance_metrics(np.concatenate(features), statistics), statistics


def _clip_scores(run: Path, model: str) -> dict[str, Any]:
    """CLIP score of a run's images with the prompts that its log holds."""
    clip, device = ClipScore(model), _device()
    paths, records = _all_images_of(run), read_records(run / "predictions", SampleRecord)
    unknown = next((image_id for image_id in paths if image_id not in records), None)
    if unknown is not None:
        raise InputError(f"the log of {run} has no prompt of {unknown}; run the command that made {run} again")
    prompts = iter([records[image_id].prompt for image_id in paths])
    scores: list[float] = []
    for images in _batches(list(paths.values()), "CLIP scores"):
        scores += clip(images.to(device), [next(prompts) for _ in images]).tolist()
    return clip_metrics(scores, model)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _batches(paths: Sequence[Path], what: str) -> Iterator[torch.Tensor]:
    for start in tqdm(range(0, len(paths), _AT_ONCE), desc=what, unit="batch", disable=None):
        yield read_images(paths[start : start + _AT_ONCE])
