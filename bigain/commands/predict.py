"""One run of `bigain predict`, and what became of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from bigain.commands.configs import find_config
from bigain.commands.lightning_cli import BiGainCLI
from bigain.commands.parsing import Outcome, input_errors
from bigain.commands.score import add_fidelity
from bigain.runs.results import read_results
from bigain.runs.schema import Results
from bigain.runs.summary import missing_metrics, summary


def predict(args: Sequence[str]) -> Outcome:
    """Run `bigain predict`.

    Raises:
        InputError: If anything given cannot work.
    """
    quieten()
    args = find_config(args)
    cli = _run(args)
    baseline = None
    if cli.config.predict.baseline:
        _run(args, uncompressed_into=cli.output / "baseline")
    if not cli.trainer.is_global_zero:
        return Outcome()
    if cli.config.predict.baseline:
        baseline = read_results(cli.output / "baseline")
        if baseline["task"] == "generation" and baseline["protocol"]["images"] != "none":
            add_fidelity(cli.output, cli.output / "baseline")
    results = read_results(cli.output)
    return Outcome(summary(results, cli.output, baseline), lacking(results) is None)


def lacking(results: Results) -> str | None:
    """What a run was asked for and does not have; None if that is nothing.

    Args:
        results: Content of `results.json`.
    """
    skipped = results["dataset"]["skipped"]
    if skipped:
        return f"{len(skipped)} images could not be evaluated, the first: {skipped[0]['reason']}"
    dataset = results["dataset"]
    if dataset["images"] < dataset["asked"]:
        return f"{dataset['asked'] - dataset['images']} of {dataset['asked']} images are not done"
    for name, reason in missing_metrics(results).items():
        if name != "distance" or results["protocol"]["extractor"]:
            return f"no {name}: {reason}"
    return None


def _run(args: Sequence[str], uncompressed_into: Path | None = None) -> BiGainCLI:
    with input_errors("bigain predict"):
        return BiGainCLI(args, uncompressed_into)


def quieten() -> None:
    """Silence messages that ask nothing of the user."""
    disable_progress_bar()  # of transformers, which shows one for every text encoder
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
