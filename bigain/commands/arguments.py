"""Command lines of `bigain report`, `bigain compare` and `bigain explain`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bigain.errors import InputError
from bigain.runs import files


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are an InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parse(parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.Namespace:
    """Options may stand between directories."""
    return parser.parse_intermixed_args(list(args))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file that `--json` names.

    Raises:
        InputError: If it cannot be written there.
    """
    try:
        files.write_json(path, content)
    except (InputError, OSError) as error:
        reason = error.__cause__ or error
        told = getattr(reason, "strerror", reason)
        raise InputError(f"cannot write {path}: {told}; give --json another file") from error
