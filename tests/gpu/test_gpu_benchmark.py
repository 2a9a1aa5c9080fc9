"""`benchmarks/gpu.py` on a GPU: operators and networks run in graphs, by kernels.

Run them with `BIGAIN_GPU_TESTS=1 python -m pytest -n0 tests/gpu`.
"""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bigain.commands.bench.subject import Subject
from bigain.commands.flops.model import CountedModel
from bigain.compressors import CAM, IEKVD, LGTM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gpu")


def rows_of(page):
    lines = [line.strip("|").split("|") for line in page.file.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in lines]


def test_operators_run_by_kernels_and_in_graphs(gpu, tmp_path):
    page = gpu.Page("operators", "a title", tmp_path)
    gpu.operators(page, replace(gpu.QUICK, operators=[(2, 16, 64, torch.float16)]))
    rows = [row for row in rows_of(page) if row[1] == "auto"]
    assert {row[0] for row in rows} == set(gpu.OPERATORS)
    for row in rows:
        assert float(row[5]) > 0
        assert float(row[6]) > 0
    assert "`auto` was: triton\n" in page.file.read_text()


def test_networks_run_in_graphs(gpu, tmp_path):
    page = gpu.Page("sd2", "a title", tmp_path)
    subject = Subject.of(CountedModel.of("shapes_unet", None), 2, torch.float16, torch.device("cuda"), False)
    methods = {"LGTM": LGTM(ratio=0.7), "CAM": CAM(LGTM(ratio=0.5)), "IE-KVD": IEKVD(factor=2)}
    gpu.compare(page, subject, methods, False, 3, 5.0)
    rows = rows_of(page)[1:]
    assert len(rows) == 8
    assert all(float(row[1]) > 0 and float(row[4]) > 0 for row in rows)
    text = page.file.read_text()
    assert "no graph" not in text
    assert "not measured" not in text
