"""Metrics of generated images, during and after a run, and of features compared with those of another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from bigain.data.class_space import ClassSpace
from bigain.data.images import read_images
from bigain.errors import InputError
from bigain.metrics import ClipFeatures, DinoV2, Inception, ShapeFeatures
from bigain.metrics.base import Images, Metric, evaluate
from bigain.metrics.cmmd import Cmmd
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.fidelity import Lpips, Psnr, Ssim
from bigain.metrics.frechet import FrechetDistance
from bigain.metrics.inception_score import InceptionScore
from bigain.metrics.kernel import KernelDistance
from bigain.metrics.precision_recall import PrecisionRecall
from bigain.metrics.reference import ReferenceStatistics
from bigain.metrics.representation import Cka, Cosine
from bigain.runs.files import find_reference, sample_path
from bigain.runs.logs import read_records
from bigain.runs.records import FeatureRecord, SampleRecord
from bigain.runs.results import read_generation, read_ids, read_results, write_results
from bigain.runs.schema import LpipsNetwork, MetricEstimate, Protocol, Results
from bigain.tasks.contact_sheet import write_contact_sheet
from bigain.tasks.forwards import ROWS_ON_CPU, Forwards
from bigain.tokens.precision import without_autocast

_BATCH = 32
_NO_CLASSES = ClassSpace((), (), None)
_FIDELITY = ("psnr", "ssim", "lpips", "dino_similarity")
# What two runs must share for their images to start from the same noise.
_SAMPLING = ("scheduler", "scheduler_options", "steps", "guidance", "seed", "images")


@dataclass(frozen=True)
class Measuring:
    """The metrics of a generation and what they need.

    Attributes:
        metrics: Those that can be computed, in the order of the results.
        extractor: Of features, loaded; None if there is none or its weights are missing.
        reference: Statistics of real images; None if there are none.
        missing: Why metrics cannot be computed, by their `name`.
        forwards: Batches of extractor and metrics; on a CPU results do not depend on those of the run.
    """

    metrics: Sequence[Metric] = ()
    extractor: FeatureExtractor | None = None
    reference: ReferenceStatistics | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    forwards: Forwards = field(default_factory=lambda: Forwards(None, "images of a metric", ROWS_ON_CPU // 2))

    def measure(self, images: Images) -> tuple[Sequence[npt.NDArray[np.float32] | None], list[dict[str, float]]]:
        """Return the features of each image, `(d,)` or None; and the value of each metric by its `name`."""
        pixels, extractor = images.pixels, self.extractor
        features: Sequence[npt.NDArray[np.float32] | None] = [None] * len(pixels)
        if extractor is not None:
            with without_autocast(pixels):
                rows = self.forwards.run(lambda i, *_: extractor(pixels[i]).float(), len(pixels), pixels.device)
            features = list(rows.cpu().numpy())
        columns = {}
        for metric in self.metrics:
            if "images" in metric.needs:
                measure = metric.measure
                values = self.forwards.run(lambda i, *_: measure(images.at(i)), len(pixels), pixels.device)  # noqa: B023
                columns[metric.name] = [float(value) for value in values.tolist()]
        return features, [{name: column[i] for name, column in columns.items()} for i in range(len(pixels))]


def distances(reference: ReferenceStatistics) -> list[Metric]:
    """Return the metrics of all features against a reference."""
    cmmd = [Cmmd(reference)] if reference.protocol == ClipFeatures.protocol else []
    return [FrechetDistance(reference), KernelDistance(reference), PrecisionRecall(reference), *cmmd]


def update_metric(run: Path, results: Results, metric: Metric) -> None:
    """Replace a metric of single images, such as the similarity of images and prompts."""
    results["metrics"].update(_estimates([metric], measured_images(run, [metric])))
    results[f"{metric.name}_missing"] = None  # type: ignore[literal-required]


def has_baseline(results: Results) -> bool:
    """Whether `add_baseline` can compare such a run."""
    return results["task"] == "features" or results["protocol"].get("images", "none") != "none"


def add_baseline(run: Path, baseline: Path) -> None:
    """Add to the `results.json` of a run its fidelity, or the similarity of its features, to its own baseline.

    Images of a generation's baseline are added to its contact sheet.

    Raises:
        InputError: If images or records are missing.
    """
    results = read_results(run)
    if results["task"] == "features":
        _update_similarity(run, results, baseline)
    else:
        update_fidelity(run, results, baseline)
        log, shared = read_records(run / "predictions", SampleRecord), image_paths(run).keys() & image_paths(baseline)
        records = [log[image_id] for image_id in read_ids(run) if image_id in shared]
        write_contact_sheet(run, records, results["protocol"]["images"], baseline)
    write_results(run, results)


def update_distances(
    run: Path, results: Results, protocol: str | None, weights: str | None, reference: str | None
) -> None:
    """Replace the distances, and the reference that they are measured to; by default those that the run names."""
    settings = results["protocol"]
    protocol, reference = protocol or settings["extractor"], reference or settings.get("reference_file")
    if protocol is None or reference is None:
        raise InputError(
            f"{run} names no protocol or no reference; give --protocol and --reference, --against or --metric"
        )
    if protocol not in get_args(Protocol):
        raise InputError(f"{run} has features of {protocol}, which `bigain score` cannot load; give --protocol")
    extractor = extractor_of(protocol, weights)  # type: ignore[arg-type]
    extractor.load()
    statistics = ReferenceStatistics.load(find_reference(reference), protocol, extractor.dimension, extractor.digest())
    metrics = distances(statistics)
    records = measured_images(run, metrics, extractor)
    estimates = _estimates(metrics, records)
    if isinstance(extractor, Inception):
        score, missing = evaluate([InceptionScore(extractor)], records, _NO_CLASSES)
        estimates |= score
        results["inception_score_missing"] = missing.get(InceptionScore.name)
    results["metrics"].update(estimates)
    described = {"reference_file": reference, "reference": statistics.described()}
    if settings["extractor"] in (None, protocol) or results.get("distance_missing"):
        settings |= {"extractor": protocol, **described}
    else:
        # The log has features of the run's own extractor, which comparisons use.
        settings["further_references"] = {**settings.get("further_references", {}), protocol: described}
    results["distance_missing"] = None


def update_fidelity(
    run: Path, results: Results, other: Path, network: LpipsNetwork | None = None, further: Sequence[Metric] = ()
) -> None:
    """Replace the fidelity metrics, `further` ones included, and the name of the run that they compare with."""
    compared_to = _reference_to(run, results, other, _SAMPLING)
    lpips = Lpips(network or "alex")
    perceptual = [lpips] if network is not None or lpips.unavailable() is None else []
    metrics = [Psnr(), Ssim(), *perceptual, *further]
    estimates = _estimates(metrics, measured_images(run, metrics, other=other))
    kept = {name: value for name, value in results["metrics"].items() if not name.startswith(_FIDELITY)}
    results["metrics"] = {**kept, **estimates}
    # Equal images have no finite PSNR.
    results["psnr_missing"] = None if "psnr" in estimates else f"all images equal those of {other}"
    results["fidelity_to"] = compared_to


def _update_similarity(run: Path, results: Results, other: Path) -> None:
    """Replace the similarity of features to those of another run, and the name of that run."""
    compared_to = _reference_to(run, results, other, ("sites", "timesteps", "pool", "seed"))
    log, other_log = (read_records(folder / "predictions", FeatureRecord) for folder in (run, other))
    records = [log[image_id] for image_id in read_ids(run) if image_id in log.keys() & other_log]
    if len(records) < 2:
        raise InputError(f"{run} and {other} have {len(records)} images in common; compare runs over the same images")
    results["metrics"].update(_estimates([Cka(other_log), Cosine(other_log)], records))
    results["fidelity_to"] = compared_to


def _reference_to(run: Path, results: Results, other: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Return how results refer to another run; raise an InputError if task, model or one of the settings differ."""
    other_results = read_results(other)
    if other.samefile(run):
        raise InputError(f"{run} is compared with itself; give a run over the same items, usually without compression")
    if other_results["task"] != results["task"]:
        raise InputError(f"{other} is a run of {other_results['task']}; expected a {results['task']} run")
    pairs = {name: (results["protocol"][name], other_results["protocol"][name]) for name in settings}
    for name, (a, b) in {"model": (results["model"]["name"], other_results["model"]["name"]), **pairs}.items():
        if a != b:
            raise InputError(
                f"{run} and {other} differ in {name} ({a} and {b}); fidelity is between runs that differ in the "
                "compressor only"
            )
    compressors = [compressor["class"] for compressor in other_results["compressors"]]
    return {"run": str(other), "fingerprint": other_results["fingerprint"], "compressors": compressors}


def measured_images(
    run: Path, metrics: Sequence[Metric], extractor: FeatureExtractor | None = None, other: Path | None = None
) -> list[SampleRecord]:
    """Measure the images of a run on disk as `bigain predict` measures them while they are generated.

    Args:
        run: Directory of a generation.
        metrics: To measure.
        extractor: Of features, loaded.
        other: Run whose images of the same ids they are compared with.

    Raises:
        InputError: If images are missing, or the two runs have none in common.
    """
    paths, other_paths = image_paths(run), {} if other is None else image_paths(other)
    if other is not None:
        paths = {image_id: path for image_id, path in paths.items() if image_id in other_paths}
        if not paths:
            raise InputError(f"{run} and {other} have no image in common; compare runs over the same items")
    prompts = dict.fromkeys(paths, "")
    if any("prompts" in metric.needs for metric in metrics):
        prompts = {
            image_id: record.prompt for image_id, record in read_records(run / "predictions", SampleRecord).items()
        }
        if unknown := [image_id for image_id in paths if image_id not in prompts]:
            raise InputError(f"the log of {run} has no prompt of {unknown[0]}; run the command that made {run} again")
    # Two runs are compared on the CPU, in float64.
    device = torch.device("cuda" if torch.cuda.is_available() and other is None else "cpu")
    measuring = Measuring(metrics, None if extractor is None else extractor.to(device))
    ids, records = list(paths), []
    for start in tqdm(range(0, len(ids), _BATCH), desc="images", unit="batch", disable=None):
        batch = ids[start : start + _BATCH]
        texts, pixels = [prompts[image_id] for image_id in batch], read_images([paths[i] for i in batch]).to(device)
        images = Images(pixels, texts, read_images([other_paths[i] for i in batch]) if other_paths else None)
        for image_id, prompt, feature, values in zip(batch, texts, *measuring.measure(images), strict=True):
            records.append(SampleRecord(image_id, [], prompt, 0.0, feature, values))
    return records


def _estimates(metrics: Sequence[Metric], records: Sequence[SampleRecord | FeatureRecord]) -> dict[str, MetricEstimate]:
    """Return the estimates; raise an InputError if a metric cannot be computed."""
    estimates, missing = evaluate(metrics, records, _NO_CLASSES)
    for reason in missing.values():
        raise InputError(reason)
    return estimates


def image_paths(run: Path) -> dict[str, Path]:
    """Return the files of all images of a run by id."""
    results = read_generation(run)
    image_format, images = results["protocol"]["images"], results["dataset"]["images"]
    if image_format == "none":
        raise InputError(f"{run} kept no images; generate with images: png")
    paths = {image_id: sample_path(run, image_id, image_format) for image_id in read_ids(run)}
    existing = {image_id: path for image_id, path in paths.items() if path.is_file()}
    if len(existing) < images:
        raise InputError(f"{run} has {len(existing)} of its {images} images; generate them again")
    return existing


def extractor_of(protocol: Protocol, weights: str | None) -> FeatureExtractor:
    """Return the extractor of a protocol, not loaded; `weights` are a file of Inception's or a folder of the others."""
    match protocol:
        case "shapes-features":
            return ShapeFeatures()
        case "dinov2":
            return DinoV2(weights)
        case "clip":
            return ClipFeatures(weights)
    return Inception(protocol, weights)
