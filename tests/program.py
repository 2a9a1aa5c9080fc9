"""The program in this process: a new one would spend seconds on imports."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

from bigain.commands.main import main


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def bigain(*args):
    """`bigain ARGS`, with what it printed. `sys.argv` is the caller's to set."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = main(list(args))
    return Ended(status, out.getvalue(), err.getvalue())


def message_of(capsys, command):
    """The one message of a command, called without arguments, that is refused."""
    capsys.readouterr()
    assert command() == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    (message,) = [line for line in lines if line.startswith("bigain: error: ")]
    return message
