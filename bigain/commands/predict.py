"""`bigain predict`: one run, and its outcome. What imports torch is imported when it runs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

import bigain
from bigain.commands.options import OPTIONS, checked
from bigain.commands.parsing import Outcome
from bigain.commands.termination import launched_rank
from bigain.runs.numbers import counted
from bigain.runs.results import read_results
from bigain.runs.schema import Results
from bigain.runs.summary import missing_metrics, summary

_HELP = """usage: bigain predict --config FILE [options]

Run one configuration, or continue an interrupted run: classify images, generate them or probe their features with a
diffusion model whose tokens are compressed.

  --config FILE         configuration: a file, or the name of a shipped one (bigain list configs); may be repeated
  --print_config        show the merged configuration and end
{}

Classes and their arguments:
  --model FILE          model and task; --model.NAME VALUE sets an argument; --model.help CLASS lists them, such as
                        --model.help DiffusionClassifier
  --data CLASS          dataset (bigain list datasets); --data.NAME VALUE; --data.help CLASS
  --compressor CLASS    compressor (bigain list compressors), null for none; --compressor.NAME VALUE;
                        --compressor.help CLASS
  --trainer.NAME VALUE  setting of Lightning's Trainer, such as --trainer.devices 4; --trainer.help lists them

Examples:
  bigain predict --config demo_lgtm.yaml
  bigain predict --config demo_lgtm.yaml --compressor SiTo --compressor.ratio 0.5
  bigain predict --config pets_lgtm.yaml --data.root data --data.limit 200 --trainer.precision 16-true
"""


def predict(args: Sequence[str]) -> Outcome:
    """Run the command line from `predict` on, and the same without compression if `--baseline true` is given.

    Returns:
        The summary, empty on all but the first process; complete if nothing that was asked for is missing.

    Raises:
        InputError: If the command line, the configuration, the data or the model cannot be used.
    """
    if {"--help", "-h"} & set(args):
        lines = [f"  --{f'{name} {name.upper()}':<20}{text}" for name, _, _, text in OPTIONS]
        return Outcome(_HELP.format("\n".join(lines)))
    args = ["predict", "--help"] if "--trainer.help" in args else checked(args)
    if not launched_rank() and not any(arg.startswith("--print_config") or ".help" in arg for arg in args):
        # Imports take seconds.
        sys.stderr.write(f"bigain {bigain.__version__}\n")
    from bigain.commands.lightning_cli import BiGainCLI
    from bigain.tasks.scoring import add_baseline, has_baseline

    silence_libraries()
    cli = BiGainCLI(args)
    folder, baseline = cli.output / "baseline", None
    if cli.config.predict.baseline:
        BiGainCLI(args, uncompressed_into=folder)
    if not cli.trainer.is_global_zero:
        return Outcome()
    if cli.config.predict.baseline:
        baseline = read_results(folder)
        if has_baseline(baseline):
            add_baseline(cli.output, folder)
    results = read_results(cli.output)
    return Outcome(summary(results, cli.output, baseline), missing_parts(results) is None)


def missing_parts(results: Results) -> str | None:
    """Return why a run is incomplete: what it was asked for and lacks; None if it is complete."""
    dataset = results["dataset"]
    if skipped := dataset["skipped"]:
        return f"{counted(len(skipped), 'image')} could not be evaluated, the first: {skipped[0]['reason']}"
    if dataset["images"] < dataset["asked"]:
        return f"{dataset['asked'] - dataset['images']:,} of {counted(dataset['asked'], 'image')} not done"
    for name, reason in missing_metrics(results).items():
        # Equal images have no PSNR; an Inception score, or a distance without an extractor, was not asked for.
        if name not in ("psnr", "inception score") and (name != "distance" or results["protocol"]["extractor"]):
            return f"no {name}: {reason}"
    return None


def silence_libraries() -> None:
    """Silence library messages that the user need not act on."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers, which shows one for every text encoder
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for library in ("diffusers.models", "transformers"):
        # They warn of surplus weights, which loading reports. Setting a level would make transformers warn of more.
        logging.getLogger(f"{library}.modeling_utils").addFilter(_errors_only)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
