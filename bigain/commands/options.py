"""The options of `bigain predict` beside those of classes and the trainer, checked without torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from bigain.commands.configs import find_config
from bigain.commands.parsing import input_errors, options_of
from bigain.errors import InputError

# Name, type, default and help.
OPTIONS = (
    ("seed", int, 0, "seed of noise, random choices and limits"),
    ("output", str | None, None, "run directory; default: runs/<config>-<hash>"),
    ("overwrite", bool, False, "delete the run in the directory first"),
    ("extend", bool, False, "continue a run with more images, keeping those it has"),
    ("baseline", bool, False, "also run without compression and compare"),
    ("inspect", int | None, 4, "number of images to follow in pictures; 0: none"),
)
# Options that only the classes can check.
_SECTIONS = ("--config", "-c", "--print_config", "--model", "--data", "--compressor", "--trainer")


def add_options(parser: ArgumentParser) -> None:
    """Declare `OPTIONS`."""
    for name, kind, default, text in OPTIONS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)


def checked(args: Sequence[str]) -> list[str]:
    """Return a command line with located files (see `find_config`), checked without torch.

    Raises:
        InputError: If a file is missing, an option unknown, or a value of `OPTIONS` wrong.
    """
    values, options = options_of(args)
    own_options = [words for words in options if re.split(r"[.=+]", words[0], maxsplit=1)[0] not in _SECTIONS]
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser)
    with input_errors("bigain predict", [*_SECTIONS, *(f"--{name}" for name, *_ in OPTIONS)]):
        check_seed(parser.parse_args([*values[1:], *itertools.chain.from_iterable(own_options)]).seed)
    return find_config(args)


def check_seed(seed: int) -> None:
    """Raise an InputError if a seed does not fit in 64 bits."""
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"--seed {seed} does not fit in 64 bits; choose one from {-(2**63)} to {2**63 - 1}")
