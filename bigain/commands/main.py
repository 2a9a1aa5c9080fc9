"""The command line: `bigain predict --config pets_lgtm.yaml`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from bigain.errors import InputError, message_of

HELP = """usage: bigain COMMAND [options]

Evaluate training-free token compression for diffusion models.

commands:
  predict --config X   run one configuration, continuing what is there
  evaluate --config X  classify and generate with one compressor, and write one row
  sweep TABLE          all cells of a table, one run each; --dry-run says what they cost
  score RUN            distances of images that are already made
  report RUNS          tables and plots of finished runs, beside the paper's numbers
  compare A B          is B better than A? Paired statistics on the same images
  explain RUN          which frequencies did it destroy, and did that matter? Margins of Theorem 1
  doctor --config X    is everything here that the run needs?
  flops                count what a compressor costs, without weights
  bench                time it: how much of what the FLOPs promise is real

Shipped configurations go by their bare name: bigain predict --config demo_lgtm.yaml
All options of a command: bigain COMMAND --help
Exit status: 0 done; 1 done but for what was reported; 2 bad input; 70 an error of bigain itself, with its traceback
"""

EXIT_DONE = 0
EXIT_FAILED_ITEMS = 1
EXIT_BAD_INPUT = 2
# Not Python's 1, which says here that a run is done but for what it reported.
EXIT_BROKEN_DOWN = 70


def program() -> NoReturn:
    """Run the command of `sys.argv` and end the process, with status 70 and a traceback after an error of our own."""
    try:
        status = main()
    except Exception:  # noqa: BLE001 -- the traceback is shown
        traceback.print_exc()
        status = EXIT_BROKEN_DOWN
    sys.exit(status)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Command line without the program name; None reads `sys.argv`.

    Returns:
        The exit status: 0 done, 1 done except for what was reported (images that cannot be read, what
        `doctor` found missing), 2 bad input.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"bigain {version('bigain')}")
        return EXIT_DONE
    if args in ([], ["--help"], ["-h"]):
        print(HELP, end="")
        return EXIT_DONE
    try:
        command = _COMMANDS.get(args[0])
        # Anything else is for LightningCLI's parser, which knows its subcommands and says so.
        return _predict(args) if command is None else command(args[1:])
    except InputError as error:
        print(f"bigain: error: {message_of(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        # A full disk, a name too long, a folder where a file is to be written: the message names the file.
        told = " ".join(str(error).split())
        print(f"bigain: error: {told}; what is finished is kept, run the command again then", file=sys.stderr)
        return EXIT_BAD_INPUT


def _done(told: str, complete: bool = True) -> int:
    print(told, end="")
    return EXIT_DONE if complete else EXIT_FAILED_ITEMS


# Heavy imports come after the cheap answers, each when its command is asked for.


def _predict(args: Sequence[str]) -> int:
    from bigain.commands.predict import predict

    outcome = predict(args)
    return _done(outcome.summary, outcome.complete)


def _evaluate(args: Sequence[str]) -> int:
    from bigain.commands.evaluate import evaluate

    return _done(*evaluate(args))


def _sweep(args: Sequence[str]) -> int:
    if "--help" in args or "-h" in args:
        from bigain.commands.sweep import HELP

        return _done(HELP)
    from bigain.commands.sweep.command import sweep

    return EXIT_DONE if sweep(args, lambda line: print(line, flush=True)) else EXIT_FAILED_ITEMS


def _score(args: Sequence[str]) -> int:
    from bigain.commands.score import score

    return _done(score(args))


def _report(args: Sequence[str]) -> int:
    from bigain.commands.report import report

    return _done(*report(args))


def _compare(args: Sequence[str]) -> int:
    from bigain.commands.compare import compare_runs

    return _done(*compare_runs(args))


def _explain(args: Sequence[str]) -> int:
    from bigain.commands.explain import explain_runs

    return _done(*explain_runs(args))


def _flops(args: Sequence[str]) -> int:
    if "--help" in args or "-h" in args:
        from bigain.commands.flops import HELP

        return _done(HELP)
    from bigain.commands.flops.command import flops

    return _done(flops(args))


def _bench(args: Sequence[str]) -> int:
    if "--help" in args or "-h" in args:
        from bigain.commands.bench import HELP

        return _done(HELP)
    from bigain.commands.bench.command import bench

    return _done(*bench(args, lambda line: print(line, file=sys.stderr, flush=True)))


def _doctor(args: Sequence[str]) -> int:
    from bigain.commands.doctor import doctor

    return _done(*doctor(args))


_COMMANDS = {
    "evaluate": _evaluate,
    "sweep": _sweep,
    "score": _score,
    "report": _report,
    "compare": _compare,
    "explain": _explain,
    "flops": _flops,
    "bench": _bench,
    "doctor": _doctor,
}
