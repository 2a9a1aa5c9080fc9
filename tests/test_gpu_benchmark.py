"""`benchmarks/gpu.py` on a CPU: what fails is noted, the rest goes on, and graphs stand beside eager forwards."""

import importlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import tiny_dit

import bigain.commands.bench.measure
from bigain.backbones import DiT
from bigain.backbones.geometry import with_denoiser
from bigain.commands.bench.subject import Subject
from bigain.compressors import LGTM, ToDo


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(bigain.commands.bench.measure, "_MIN_SECONDS", 1e-9)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("gpu")


@pytest.fixture
def page(gpu, tmp_path):
    return gpu.Page("sd2", "a title", tmp_path)


@pytest.fixture
def subject():
    rows = torch.arange(3)
    noisy = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return Subject(with_denoiser(DiT("tiny"), tiny_dit(num_layers=1)), "random", noisy, rows, rows)


def table(page):
    """Cells of every row by its first cell."""
    rows = [line.strip("|").split("|") for line in page.file.read_text().splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


class Broken(LGTM):
    def plan(self, x, site, context):
        if x.device.type == "meta":
            return super().plan(x, site, context)
        raise RuntimeError("no such kernel")


class Idle(ToDo):
    def hook_site(self, layout, site, context, undo):
        pass


def test_operators_by_stage(gpu, page, monkeypatch):
    monkeypatch.setattr(
        gpu, "OPERATORS", {"LGTM": LGTM(ratio=0.7), "broken": Broken(ratio=0.7), "ToDo": ToDo(factor=2)}
    )
    monkeypatch.setenv("BIGAIN_KERNELS", "torch")
    gpu.operators(page, replace(gpu.QUICK, operators=[(1, 8, 64, torch.float32)]))
    assert os.environ["BIGAIN_KERNELS"] == "torch"
    rows = table(page)
    assert all(float(cell) > 0 for cell in rows["LGTM"][1:5])
    assert rows["broken"][4] == "RuntimeError: no such kernel"
    assert rows["ToDo"][1:4] == ["", "", ""]
    assert float(rows["ToDo"][4]) > 0
    text = page.file.read_text()
    assert " us in " in text
    assert "`aten::" in text
    assert text.index("- LGTM: ") < text.index("- ToDo: ")
    assert "- broken" not in text


def test_networks_eager_and_in_graphs(gpu, page, subject, monkeypatch):
    """With graphs that do not capture: the bookkeeping around them."""
    monkeypatch.setattr(gpu, "DEVICE", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    replays = []

    def captured(run, pool):
        if len(replays) == 2:
            replays.append(None)
            raise RuntimeError("not in a graph")
        replays.append(pool)
        return run

    monkeypatch.setattr(gpu, "captured", captured)
    methods = {"LGTM": LGTM(ratio=0.7), "broken": Broken(ratio=0.5), "idle": Idle(factor=2), "ToDo": ToDo(factor=2)}
    gpu.compare(page, subject, methods, False, 3, 60.0)
    text, rows = page.file.read_text(), table(page)
    assert "- broken: not measured: RuntimeError: no such kernel" in text
    assert "- idle: not measured: ValueError: its output is that of the network without compression" in text
    assert "- ToDo: no graph: RuntimeError: not in a graph" in text
    assert "3 rows, 3 rounds" in text
    assert rows["none"][1] == rows["none"][4] == "1.000 (1.000 to 1.000)"
    assert {"none", "none again", "LGTM", "ToDo", "limit of LGTM", "limit of broken"} < set(rows)
    assert float(rows["LGTM"][0]) > 0
    assert float(rows["LGTM"][3]) > 0
    assert float(rows["ToDo"][0]) > 0
    assert rows["ToDo"][3:] == ["", "", ""]


def test_a_section_that_fails_or_takes_too_long_keeps_what_it_has(gpu, tmp_path, monkeypatch, capsys):
    def slow(page, sizes):
        page.add("half")
        time.sleep(10)

    def failing(page, sizes):
        raise ZeroDivisionError("by zero")

    sections = {"slow": ("a", slow), "failing": ("b", failing), "good": ("c", lambda page, sizes: page.add("all"))}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    monkeypatch.setattr(gpu, "SECONDS", {"slow": 0.05, "failing": 5, "good": 5})
    monkeypatch.setattr(gpu, "warm_up", lambda quick: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--output", str(tmp_path), "--only", "slow,failing,good"])
    assert gpu.main() == 1
    slow, failing, good = (tmp_path.joinpath(f"gpu_{name}.md").read_text() for name in sections)
    assert "\nhalf\n\nOut of time after 0.05 s" in slow
    assert "\nFailed: ZeroDivisionError: by zero\n" in failing
    assert "\nall\n" in good
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "nothing"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no section nothing; known: slow, failing, good" in capsys.readouterr().err


def fail_in_a_capture():
    try:
        raise ValueError("a copy from the host")
    finally:
        # As leaving `torch.cuda.graph` does.
        raise RuntimeError("the capture is invalid")


def test_the_reason_of_a_failed_capture_is_what_invalidated_it(gpu):
    with pytest.raises(RuntimeError) as error:
        fail_in_a_capture()
    assert gpu.reason(error.value) == "ValueError: a copy from the host"
