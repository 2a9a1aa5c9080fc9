"""The command line: `bigain predict --config pets_lgtm.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from bigain.errors import InputError

EXIT_DONE = 0
EXIT_FAILED_ITEMS = 1
EXIT_BAD_INPUT = 2


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Command line without the program name; None reads `sys.argv`.

    Returns:
        The exit status: 0 done, 1 done except for images that could not be read, 2 bad input.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"bigain {version('bigain')}")
        return EXIT_DONE
    # Heavy imports come after the cheap answers.
    from bigain.running import predict

    try:
        summary, skipped = predict(args)
        print(summary, end="")
    except InputError as error:
        print(f"bigain: error: {_innermost(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_FAILED_ITEMS if skipped else EXIT_DONE


def _innermost(error: InputError) -> str:
    """The message alone: an error from a data-loading process arrives with that process's traceback around it."""
    marker = f"{InputError.__module__}.{InputError.__qualname__}: "
    return str(error).rpartition(marker)[2].strip()
