"""Command lines of `bigain report`, `bigain compare` and `bigain explain`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from bigain.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are an InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parse(parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.Namespace:
    """Options may stand between directories."""
    return parser.parse_intermixed_args(list(args))
