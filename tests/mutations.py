"""Malformed inputs for the fuzz tests: damaged bytes, trees and files, and commands that must fail cleanly."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from bigain.commands.main import main
from bigain.errors import InputError

# Seconds; an example that takes longer hangs, even on a busy machine.
LONGEST = 30
DEEP = 3000

ODD_VALUES: list[Any] = [
    *(None, True, -1, 0, 10**30, -(10**400), 0.5, float("nan"), float("inf")),
    *("", "x", "nan", "../../../outside", "/outside", "nul\0", "line\nline", "\ud800", "ü" * 3000),
    *([], [None], [[]], {}, {"": None}, {"class_path": "os.system", "init_args": {}}),
]


def fuzzed(examples: int) -> settings:
    """Settings of a fuzz test: the same examples every time, or `BIGAIN_FUZZ` times as many to look for more."""
    return settings(
        max_examples=examples * int(os.environ.get("BIGAIN_FUZZ", "1")),
        derandomize=True,
        database=None,
        deadline=None,
        # No shrinking: it takes far longer than finding an example, and these are small.
        phases=[Phase.explicit, Phase.generate],
        report_multiple_bugs=False,
        # Examples do not change the files of fixtures, and some run slow commands.
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Truncate the content, flip bits, insert, delete or overwrite bytes, or replace it."""
    data = bytearray(content)
    at = draw(st.integers(0, len(data)))
    # Most formats have their structure at the beginning or the end.
    at = draw(st.sampled_from([at, at % 64, max(0, len(data) - at % 64)]))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "delete", "overwrite", "other"]))
    if kind == "cut":
        del data[at:]
    elif kind == "flip" and data:
        for position in draw(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=8)):
            data[position // 8] ^= 1 << position % 8
    elif kind == "insert":
        data[at:at] = draw(st.sampled_from([b"\0", b"\xff\xfe", b"\n", b'"', b"9" * 5000, b"\xc3"]) | st.binary())
    elif kind == "delete":
        del data[at : at + draw(st.integers(1, 64))]
    elif kind == "overwrite":
        new = draw(st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 8]) | st.binary(min_size=1))
        data[at : at + len(new)] = new
    elif kind == "other":
        data[:] = draw(st.sampled_from([b"", b"\n", b"\xef\xbb\xbf", b"\xff\xfe\0\0", b"[" * 100_000, b"{}", b"[]"]))
    return bytes(data)


@st.composite
def damaged_tree(draw: Any, tree: Any) -> Any:
    """Copy a JSON tree with a value of a different type, or with missing or additional keys or elements."""
    root = [copy.deepcopy(tree)]
    places = list(_places(root))
    for holder, key in draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
        kind = draw(st.sampled_from(["replace", "replace", "delete", "add", "deep", "twice"]))
        if (isinstance(holder, dict) and key not in holder) or (isinstance(holder, list) and key >= len(holder)):
            continue
        if kind == "delete" and holder is not root:
            del holder[key]
        elif kind == "add" and isinstance(holder[key], dict):
            holder[key][draw(st.sampled_from(["unknown", "", "a.b", "\0"]))] = copy.deepcopy(
                draw(st.sampled_from(ODD_VALUES))
            )
        elif kind == "deep":
            holder[key] = _nested()
        elif kind == "twice" and isinstance(holder[key], list):
            holder[key] += holder[key]
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return root[0]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def _nested() -> Any:
    tree: Any = []
    for _ in range(DEEP):
        tree = [tree]
    return tree


def damaged_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Invalid JSON, or valid JSON with different content."""
    return damaged(content) | damaged_tree(json.loads(content)).map(_dumped)


def _dumped(tree: Any) -> bytes:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 4 * DEEP)
    try:
        return json.dumps(tree).encode()
    finally:
        sys.setrecursionlimit(limit)


class Form:
    """Something in place of a file that is not a regular file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


forms = st.sampled_from([Form(name) for name in ("absent", "directory", "loop", "dangling")])


def put(path: Path, what: bytes | Form) -> None:
    """Replace a path by content or by something that is not a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif what.name == "directory":
        path.mkdir()
    elif what.name in ("loop", "dangling"):
        path.symlink_to(path.name if what.name == "loop" else "nowhere")


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Fail instead of hanging."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"no answer within {LONGEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def naming(*names: Any) -> Iterator[None]:
    """Accept an InputError that names one of these, within the time limit."""
    try:
        with in_time():
            yield
    except InputError as error:
        if not any(str(name) in str(error) for name in names):
            raise AssertionError(f"names none of {names}: {error}") from error


def answer(*args: Any) -> tuple[int, str]:
    """Run a command in this process and return its status and its output, or its error line if it fails."""
    out, err = io.StringIO(), io.StringIO()
    with in_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(map(str, args)))
    refusals = [line for line in err.getvalue().splitlines() if line.startswith("bigain: error: ")]
    assert status in (0, 1, 2)
    assert "Traceback" not in err.getvalue()
    assert len(refusals) == (status == 2), err.getvalue()
    if status == 2:
        assert not out.getvalue()
        # The message is one line.
        assert err.getvalue().rstrip("\n").endswith(refusals[0]), err.getvalue()
    return status, refusals[0] if refusals else out.getvalue()
