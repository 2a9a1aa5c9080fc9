"""Parsers of `sweep`, `flops` and `bench`, until these use `bigain.commands.parsing.run` and `create`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from bigain.commands.parsing import input_errors, readable
from bigain.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are an InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


class ClassParser(LightningArgumentParser):
    """A parser of classes and their arguments whose errors are an InputError."""

    command = "bigain predict"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an InputError with the essence of the message."""
        raise InputError(f"{readable(message)}. Accepted arguments: {self.command} --help") from ex


@contextmanager
def refusals() -> Iterator[None]:
    """Let out an InputError that jsonargparse wrapped."""
    with input_errors("bigain predict"):
        yield
