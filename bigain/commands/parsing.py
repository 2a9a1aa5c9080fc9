"""The argument parser: LightningArgumentParser with errors a person can read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

import bigain.compressors
import bigain.data
import bigain.modules
from bigain.errors import InputError

# jsonargparse reports every branch of a union; these lines say nothing about what the user gave.
_NOISE = re.compile(
    r"Does not validate against any of the Union|Subtypes: |Errors:$|Expected a <class 'NoneType'>|Given value|"
    r"Expected a path but|^$"
)
_HINT = re.compile(r"\. Accepted arguments: bigain \w+ --help")
_SECTIONS = {
    "compressor": list(bigain.compressors.methods()),
    "model": bigain.modules.__all__,
    "data": [name for name in bigain.data.__all__ if name != "EvalDataModule"],
}


class Parser(LightningArgumentParser):
    """Raises an InputError with the essence of a parsing error instead of printing usage and exiting.

    Attributes:
        command: Whose help tells the arguments.
    """

    command = "bigain predict"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report bad arguments.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{readable(message)}. Accepted arguments: {self.command} --help") from ex


def readable(message: str) -> str:
    """The essence of a jsonargparse message on one line, with the known class names where one was not known."""
    # A nested parser's message has been through here already.
    lines = [line.strip().lstrip("-").strip() for line in _HINT.sub("", message).splitlines()]
    essence = " ".join(dict.fromkeys(line for line in lines if not _NOISE.search(line)))
    section = re.search(r'Parser key "(\w+)', message)
    unknown = "dot import path" in message or "Import error" in message or "not resolve" in message
    if section and unknown and section[1] in _SECTIONS:
        essence += f"; known here: {', '.join(_SECTIONS[section[1]])}, or the import path of a class"
    return essence.rstrip(".")


@contextmanager
def refusals() -> Iterator[None]:
    """Let an InputError out that jsonargparse wrapped into an error of its own."""
    try:
        yield
    except ValueError as error:
        refusal = refusal_behind(error)
        if refusal is None:
            raise
        raise refusal from error


def refusal_behind(error: BaseException | None) -> InputError | None:
    """The InputError that jsonargparse wrapped into an error of its own, if there is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
