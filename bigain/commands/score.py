"""`bigain score RUN`: metrics of the images of a finished generation run."""

from __future__ import annotations

from pathlib import Path

from bigain.commands.parsing import Outcome, create
from bigain.errors import InputError
from bigain.runs.files import find_reference
from bigain.runs.lock import lock
from bigain.runs.results import read_generation, write_results
from bigain.runs.schema import LpipsNetwork, Protocol
from bigain.runs.summary import summary


def score(
    run: Path,
    *options: str,
    protocol: Protocol | None = None,
    weights: str | None = None,
    reference: str | None = None,
    against: Path | None = None,
    lpips: LpipsNetwork | None = None,
    geneval: Path | None = None,
    vqascore: Path | None = None,
) -> Outcome:
    """Measure distances and fidelity of the images of a finished run, and add them to its `results.json`.

    Args:
        run: Run directory of a generation.
        *options: A metric of single images: --metric PickScore --metric.folder FOLDER, or with --against, --metric
            DinoSimilarity --metric.weights FOLDER. All metrics: bigain list metrics
        protocol: How features are extracted; by default as the run's results say.
        weights: Inception weights, by default from the environment and torch's cache; for dinov2 and clip, the folder
            of the model.
        reference: Statistics of real images (.npz); by default as the run's results say.
        against: Another run, usually uncompressed: measures the fidelity to its images.
        lpips: Network of LPIPS; by default alex, where its weights are available.
        geneval: New folder to write the images to, as GenEval reads them.
        vqascore: New folder to write the images to, one per prompt, as VQAScore's benchmark reads them.

    Returns:
        The new summary.

    Raises:
        InputError: If the run, its images or the reference are missing or do not fit.
    """
    # Checked before torch is imported.
    if lpips and against is None:
        raise InputError("--lpips compares the images of two runs; add --against OTHER")
    for folder in filter(None, (run, against)):
        read_generation(folder)
    if reference is not None and not find_reference(reference).exists():
        raise InputError(f"{reference} does not exist; `bigain reference IMAGES {reference}` computes it")
    from bigain.metrics import ImageMetric
    from bigain.tasks.exporting import export_geneval, export_vqascore
    from bigain.tasks.scoring import update_distances, update_fidelity, update_metric

    metric = create(ImageMetric, "metric", options, "bigain score")  # type: ignore[type-abstract]
    is_paired = metric is not None and "other images" in metric.needs
    if metric is not None and is_paired and against is None:
        raise InputError(f"{metric.title or metric.name} compares the images of two runs; add --against OTHER")
    run_lock = lock(run, 0)
    try:
        results = read_generation(run)
        if protocol or reference or weights or not (against or metric or geneval or vqascore):
            update_distances(run, results, protocol, weights, reference)
        if against is not None:
            update_fidelity(run, results, against, lpips, [metric] if metric and is_paired else [])
        if metric is not None and not is_paired:
            update_metric(run, results, metric)
        write_results(run, results)
        exported = export_geneval(run, geneval) if geneval else ""
        exported += export_vqascore(run, vqascore) if vqascore else ""
    finally:
        run_lock.release()
    return Outcome(summary(results, run) + exported)
