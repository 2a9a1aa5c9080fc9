"""What libraries, launchers, signals, pipes and encodings do to the program is one line."""

import os
import subprocess
import sys

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from program import message_of
from torch.distributed import DistBackendError

from bigain.commands.main import main
from bigain.errors import InputError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MisconfigurationException("limit_predict_batches\nis too small"), "limit_predict_batches is too small"),
        (ImportError("install torchsde"), "install torchsde"),
        (MemoryError(), "memory ran out: use a smaller image_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (OSError(28, "No space left"), "No space left; runs keep what is finished"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:5] Connection closed by peer [x]:1. GLHF!"), "by peer [x]:1)"),
        (RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"), "error: a process that reads images"),
        # Raised by the handler of a signal, wherever the program is.
        (
            InputError("config.json is invalid: DataLoader worker (pid 5) is killed"),
            "num_workers (DataLoader worker (p",
        ),
        (DistBackendError("NCCL error in: x.cpp:3\nremote process exited"), "a process of this run ended early; what"),
        (ValueError("a mistake of bigain"), None),
        (ImportError("cannot import name 'x' from 'bigain'", name="bigain"), None),
        (ModuleNotFoundError("No module named 'bigian'", name="bigian"), None),
        (BrokenPipeError(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_of_libraries_and_of_the_system_are_one_line(monkeypatch, capsys, error, line):
    def command():
        """Fail."""
        raise error

    monkeypatch.setattr("bigain.commands.doctor.doctor", command)
    if line is None:
        with pytest.raises(type(error)):
            main(["doctor"])
    else:
        assert line in message_of(capsys, lambda: main(["doctor"]))


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "bigain: stopped by SIGINT; runs keep what is finished"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "bigain: stopped by SIGTERM; runs keep what is finished"),
        (r"print('\u2192', os.environ['MPLBACKEND'])", 0, r"\u2192 agg"),
        ("undefined", 70, "Traceback"),
        ("reading, writing = os.pipe(); os.close(reading); os.dup2(writing, 1); print(1)", 141, ""),
        ("os.kill(os.getppid(), 9); time.sleep(20)", -9, "bigain: the process that launched this one has ended"),
    ],
)
def test_the_program_ends_in_one_line_from_its_first_moment(code, status, message):
    run = f"def run():\n    {code}\n    return 0\n"
    program = f"import os, signal, time\nfrom bigain.commands import main\n{run}main.main = run\nmain.program()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LOCAL_RANK": "1", "MPLBACKEND": "module://absent"}
    # The shell is the launcher.
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, program]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    output = (ended.stdout + ended.stderr).strip()
    assert output.startswith(message) if message else not output
    assert "Traceback" not in output or status == 70
