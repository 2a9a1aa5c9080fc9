"""`bigain explain`: which frequencies a compressor destroyed, and whether that mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.report.explain.explanation import Explanation, explain, explanation_lines
from bigain.report.explain.figure import draw_explanations
from bigain.report.explain.margins import TIME
from bigain.report.explain.weights import try_weights
from bigain.runs.files import write_json
from bigain.runs.results import Run, classification_in, find_runs, load_run


def explain_runs(
    runs: list[Path],
    *,
    baseline: Path | None = None,
    bands: int = 5,
    json: Path | None = None,
    output: Path | None = None,
    allow_differences: bool = False,
    weights: list[str] | None = None,
) -> Outcome:
    """Explain from their stored errors why classification runs differ from a baseline.

    By timestep: the margin between the true class and its best rival, its deviation, their ratio r, Cantelli's bound
    and the bound of Theorem 1 of BiGain, beside the change of accuracy; and the frequency response of the compressor,
    where the run stored it. Runs whose images, seed, protocol or versions differ are refused, with the differences.

    Args:
        runs: Run directories, or folders of run directories.
        baseline: Run directory to compare with; by default RUN/baseline, from `bigain predict --baseline true`.
        bands: Number of bands of timesteps, of equal width.
        json: File to write the numbers to.
        output: Folder to draw the figure into, as PNG, SVG and PDF.
        allow_differences: Explain runs whose images, seed, protocol or versions differ, on the images that both have.
        weights: Instead, try weights over timesteps on the errors of runs with `keep: null`: uniform, snr, fitted (to
            other images), JSON files with one weight per timestep; epsilon, velocity, x0: as errors of that target.

    Returns:
        The explanations; complete if every directory that is named was read and every run in it explained.

    Raises:
        InputError: If nothing could be explained, or a file cannot be written.
    """
    if not 1 <= bands <= TIME:
        raise InputError(f"--bands must be in 1..{TIME}, not {bands}")
    if weights and (baseline or output):
        raise InputError(
            "--weights compares with uniform weights and draws nothing; give no --baseline and no --output"
        )
    members, unread = find_runs(runs)
    # Of `bigain evaluate`, only the classification is explained; a folder of all runs contains the baseline, too.
    members = [run for run in members if run.task == "classification" or run.path in runs]
    missing: list[str] = []
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    by_base: dict[Path, list[Run]] = {}
    unpaired = []
    for run in members:
        base = classification_in(baseline) if baseline else run.path / "baseline"
        if weights:
            try:
                row, text = try_weights(run, weights, _schedule_weights)
            except InputError as error:
                missing.append(str(error))
            else:
                rows.append(row)
                lines += text
        elif baseline or base.is_dir():
            by_base.setdefault(base, []).append(run)
        # A folder of runs contains their baselines, too.
        elif run.path.name != "baseline" or run.path in runs:
            unpaired.append(str(run.path))
    if unpaired:
        missing.append(
            f"{', '.join(unpaired)}: no baseline in {'it' if len(unpaired) == 1 else 'them'}; name the run without "
            "compression with --baseline RUN0, or run `bigain predict` with --baseline true"
        )
    explanations: list[Explanation] = []
    for path, compared in by_base.items():
        compared = [run for run in compared if run.path.resolve() != path.resolve() or run.path in runs]
        try:
            explained, refused = explain(load_run(path), compared, bands, allow_differences)
        except InputError as error:
            # The other baselines may be usable.
            explained, refused = [], [error]
        explanations += explained
        missing += map(str, refused)
    if explanations:
        rows, lines = [explanation.row() for explanation in explanations], explanation_lines(explanations)
    left_out = [*unread.values(), *missing]
    if not rows:
        raise InputError("; ".join(left_out) or "there is no run to explain")
    if json is not None:
        write_json(json, {"explanations": rows, "left_out": left_out}, "give --json another file")
    lines += [f"left out: {reason}" for reason in left_out]
    if output is not None:
        lines += map(str, draw_explanations(explanations, output))
    return Outcome("\n".join(lines) + "\n", not (missing or any(path in runs for path in unread)))


def _schedule_weights(run: Run, name: str, timesteps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the signal-to-noise ratios of a run, or the factors that turn its errors into those of a target.

    With noisy latents `a x0 + b eps`, squared errors of noise, velocity and clean image are as `a^2 : 1 : b^2`. `(t,)`.
    """
    import diffusers
    import torch

    from bigain.backbones.noise_schedule import parametrisation_of

    if "scheduler" not in run.results:
        raise InputError(f"{run.path}: results.json does not name the noise schedule; run its command again")
    settings = dict(run.results["scheduler"])
    scheduler = getattr(diffusers, settings.pop("class")).from_config(settings)
    parametrisation, times = parametrisation_of(scheduler), torch.from_numpy(timesteps)
    if name == "snr":
        return parametrisation.snr(times).double().numpy()
    loss = run.results["protocol"]["loss"]
    a, b = (scale.double().square().numpy() for scale in parametrisation.scales(times))
    errors = {"epsilon": a, "velocity": np.ones_like(a), "x0": b}
    stored = parametrisation.default_target if loss == "l2" else loss
    if stored not in errors:
        raise InputError(f"{run.path}: weights of {name} need squared errors, not loss: {loss}")
    return errors[name] / errors[stored]
