"""The program in this process or in a copy of it: a new one would spend seconds on imports."""

import os
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from typing import NamedTuple

import pytest

from bigain.commands.main import main, program


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def bigain(*args):
    """`bigain ARGS`, with what it printed. `sys.argv` is the caller's to set."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = main(list(args))
    return Ended(status, out.getvalue(), err.getvalue())


@contextmanager
def program_in(folder):
    """Let `bigain` run in a folder, for fixtures of whole modules; yields the patch that is undone in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["bigain"])
        yield patch


class Forked:
    """`bigain ARGS` in a copy of this process, in a session of its own; processes that it starts are new ones."""

    def __init__(self, *args):
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed by `wait`
        self._status = None
        with warnings.catch_warnings():
            # Newer Python warns where there are threads.
            warnings.simplefilter("ignore")
            self.pid = os.fork()
            if not self.pid:
                self._run(args)

    def _run(self, args):
        status = 99
        try:
            os.setsid()
            for number in (1, 2):
                os.dup2(self._output.fileno(), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            sys.argv = ["bigain", *args]
            # What Lightning starts further processes with.
            sys.modules["__main__"].__spec__ = find_spec("bigain.__main__")
            program()
        except SystemExit as ended:
            status = ended.code
        finally:
            os._exit(status)

    def poll(self):
        """The exit status, of a signal below zero; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self):
        """The exit status and what it printed."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with self._output as output:
            output.seek(0)
            return self._status, output.read()


def message_of(capsys, command):
    """The one message of a command, called without arguments, that is refused."""
    capsys.readouterr()
    assert command() == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    (message,) = [line for line in lines if line.startswith("bigain: error: ")]
    return message
