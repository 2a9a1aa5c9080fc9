"""The command line: `bigain predict --config pets_lgtm.yaml`."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NoReturn

import bigain
from bigain.commands.termination import end_at_signals, end_with_launcher, launched_rank
from bigain.errors import InputError, message_of, out_of_memory

if TYPE_CHECKING:
    from bigain.commands.parsing import Outcome

# Usage, function, and what it does. Nothing is imported before its command is called.
COMMANDS = (
    ("predict --config X", "predict:predict", "run one configuration, or continue an interrupted run"),
    ("evaluate --config X", "evaluate:evaluate", "classify and generate with one compressor, and write one row"),
    ("sweep TABLE", "sweep.command:sweep", "run all cells of a table; --dry-run shows their cost"),
    ("score RUN", "score:score", "measure distances and fidelity of the images of a finished run"),
    ("reference IMAGES OUT", "reference:reference", "compute statistics of real images, for distances to them"),
    ("report RUNS", "report:report", "write tables and plots of finished runs, beside the paper's numbers"),
    ("compare A B", "compare:compare_runs", "is B better than A? Paired statistics on the same images"),
    ("explain RUN", "explain:explain_runs", "which frequencies were lost, and did it matter? Margins of Theorem 1"),
    ("maps --config X", "maps:maps", "draw salience and merged tokens at one site, averaged over noises"),
    ("doctor --config X", "doctor:doctor", "check that everything a run needs is available"),
    ("flops", "flops.command:flops", "count what a compressor costs, without weights"),
    ("bench", "bench.command:bench", "time it: how much of what the FLOPs promise is real"),
    ("list WHAT", "listing:list_available", "list compressors, datasets, models, configs, tables or scores"),
)
_HELP = """usage: bigain COMMAND [options]

Evaluate training-free token compression for diffusion models.

commands:
{}

Compressors, datasets, models, configurations, tables and scores: bigain list
Shipped configurations go by their bare name: bigain predict --config demo_lgtm.yaml
All options of a command: bigain COMMAND --help
Exit status: 0 done; 1 done except for what was reported; 2 bad input; 70 an internal error, with its traceback
"""

_BAD_INPUT = 2
# Not Python's 1, which means here that a run is done except for what it reported.
_INTERNAL_ERROR = 70
# As a shell reports a program that wrote to a closed pipe.
_CLOSED_PIPE = 141
# Errors of Lightning about settings, and of torch about connections. By name: importing them takes seconds.
_REFUSALS = {"MisconfigurationException", "DistNetworkError", "DistStoreError"}


def program() -> NoReturn:
    """Run the command of `sys.argv` and end the process, with status 70 and a traceback after an internal error."""
    end_at_signals()
    if launched_rank():
        end_with_launcher()
    # The backend of a notebook that started this program works in the notebook only.
    os.environ["MPLBACKEND"] = "agg"
    for stream in (sys.stdout, sys.stderr):
        # An ASCII terminal shows other characters as escapes.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes the remaining output when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _CLOSED_PIPE
    except Exception:  # noqa: BLE001 -- the traceback is shown
        traceback.print_exc()
        status = _INTERNAL_ERROR
    sys.exit(status)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command, of `sys.argv` without arguments, and return the exit status: see `_HELP`."""
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"bigain {bigain.__version__}")
        return 0
    if args in ([], ["--help"], ["-h"]):
        print(_HELP.format("\n".join(f"  {usage:<20} {description}" for usage, _, description in COMMANDS)), end="")
        return 0
    try:
        outcome = _run(args[0], args[1:])
        print(outcome.text, end="")
    except Exception as error:
        if (message := _refusal(error)) is None:
            raise
        print(f"bigain: error: {message}", file=sys.stderr)
        return _BAD_INPUT
    return 0 if outcome.complete else 1


def _refusal(error: Exception) -> str | None:
    """Return one line for bad input, failures of the system and refusals of libraries; None for any other error."""
    if isinstance(error, BrokenPipeError):
        return None
    message = " ".join(str(error).split())
    # Raised by torch's handler of a signal, so perhaps wrapped by whatever was going on.
    if ended := re.search(r"DataLoader worker \(pid.*", message):
        return f"a process that reads images was ended; use a smaller batch_size or num_workers ({ended[0]})"
    if isinstance(error, InputError):
        return message_of(error)
    if out_of_memory(error):
        return f"memory ran out: use a smaller image_size, batch_size or num_workers, or free memory ({message})"
    if isinstance(error, OSError):
        # A full disk, a name that is too long, a folder in the place of a file: the message names the file.
        return f"{message}; runs keep what is finished, run the command again then"
    if "gloo/transport" in message or type(error).__name__ == "DistBackendError":
        reason = message.partition(". ")[0]
        return f"a process of this run ended early; what is finished is kept, run the command again ({reason})"
    # ImportErrors of Python have a name and are bugs; libraries raise one without to ask for another library.
    needs_other_library = isinstance(error, ImportError) and error.name is None
    return message if needs_other_library or type(error).__name__ in _REFUSALS else None


def _run(name: str, args: Sequence[str]) -> Outcome:
    targets = {usage.split()[0]: target for usage, target, _ in COMMANDS}
    if name not in targets:
        raise InputError(f"{name!r} is no command; expected one of {', '.join(targets)}; see bigain --help")
    command = resolve_name(f"bigain.commands.{targets[name]}")
    if name == "predict":
        # LightningCLI parses it, help included.
        return command([name, *args])
    from bigain.commands.parsing import run

    return run(command, f"bigain {name}", args)
