"""`bigain predict`: one run, and its outcome."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

from bigain.commands.lightning_cli import BiGainCLI
from bigain.commands.parsing import Outcome
from bigain.commands.score import add_fidelity
from bigain.runs.results import read_results
from bigain.runs.schema import Results
from bigain.runs.summary import missing_metrics, summary


def predict(args: Sequence[str]) -> Outcome:
    """Run one configuration, and the same without compression if `--baseline true` is given.

    Args:
        args: Command line from `predict` on.

    Returns:
        The summary, empty on all but the first process; complete if nothing that was asked for is missing.

    Raises:
        InputError: If the command line, the configuration, the data or the model cannot be used.
    """
    silence_libraries()
    cli = BiGainCLI(args)
    folder, baseline = cli.output / "baseline", None
    if cli.config.predict.baseline:
        BiGainCLI(args, uncompressed_into=folder)
    if not cli.trainer.is_global_zero:
        return Outcome()
    if cli.config.predict.baseline:
        baseline = read_results(folder)
        if baseline["task"] == "generation" and baseline["protocol"]["images"] != "none":
            add_fidelity(cli.output, folder)
    results = read_results(cli.output)
    return Outcome(summary(results, cli.output, baseline), missing_parts(results) is None)


def missing_parts(results: Results) -> str | None:
    """Return why a run is incomplete: what it was asked for and lacks; None if it is complete."""
    dataset = results["dataset"]
    skipped = dataset["skipped"]
    if skipped:
        return f"{len(skipped)} images could not be evaluated, the first: {skipped[0]['reason']}"
    if dataset["images"] < dataset["asked"]:
        return f"{dataset['asked'] - dataset['images']} of {dataset['asked']} images are not done"
    for name, reason in missing_metrics(results).items():
        # Equal images have no PSNR, and without an extractor no distance was asked for.
        if name != "psnr" and (name != "distance" or results["protocol"]["extractor"]):
            return f"no {name}: {reason}"
    return None


def silence_libraries() -> None:
    """Silence messages of the libraries that require nothing of the user."""
    disable_progress_bar()  # of transformers, which shows one for every text encoder
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for library in ("diffusers.models", "transformers"):
        # Of surplus weights, which loading reports in its own words. A level would make transformers warn of more.
        logging.getLogger(f"{library}.modeling_utils").addFilter(_errors_only)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
