"""Times of a run: how spans add up, what `results.json` gets of them, and what is left on nothing."""

import json
import mmap
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from graphs import on_cpu  # noqa: F401 -- a fixture
from models import forward, inputs, save_dit, tiny_dit

from bigain.backbones import DiT
from bigain.backbones.compilation import compile_denoiser
from bigain.backbones.cuda_graphs import use_graphs
from bigain.backbones.marks import mark, marks_reported_to
from bigain.commands.main import main
from bigain.compressors import IEKVD, LGTM, Where
from bigain.compressors.onlookers import Onlooker
from bigain.cost import spans
from bigain.cost import timing as timing_module
from bigain.cost.memory import peak_memory, restart_peak
from bigain.cost.spans import Spans
from bigain.cost.timing import Measured, timing_section
from bigain.tokens.dispatch import needs_torch

QUICK = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
QUICK += ["--model.trials", "[1,2]", "--model.keep", "[2,1]", "--data.num_workers", "0"]
ONE_SITE = Where(blocks=[0])
CPU = torch.device("cpu")


def timing(*args, config="demo_lgtm.yaml", output="out"):
    assert main(["predict", "--config", config, *QUICK, "--output", output, *args]) == 0
    return json.loads(Path(output, "results.json").read_text())["timing"]


@pytest.fixture
def clock(monkeypatch):
    """A wall clock that returns the given times in order."""

    def set_times(*times):
        monkeypatch.setattr(spans.time, "perf_counter", iter(times).__next__)

    return set_times


def test_a_span_counts_without_those_inside_it(clock):
    clock(0, 1, 3, 8, 10, 11, 16)
    measured = Spans(CPU)
    with measured.span("denoiser"), measured.span("matching"), measured.span("scoring"):
        pass
    # 0 denoiser 1 matching 3 scoring 8 - 10 - 11
    assert measured.settle() == {"scoring": 5, "matching": 9 - 5, "denoiser": 11 - 9}
    assert measured.settle() == {}


def test_numbers_of_several_processes():
    one = Measured("wall clock", forwards=Counter(denoiser=2, observed=1), rows=Counter(denoiser=10), largest=5)
    one.seconds.update({"denoiser": 5.0, "observed": 3.5, "matching": 0.5})
    two = Measured("wall clock", forwards=Counter(denoiser=1, observed=1), rows=Counter(denoiser=2), largest=2)
    two.seconds.update({"denoiser": 2.0, "observed": 0.75, "merging": 0.25})
    one.peak_memory, two.peak_memory, idle = 100, 300, Measured("wall clock")
    section = timing_section([one, two, idle])
    assert section["denoiser"] == {
        "forwards": 3,
        "rows": 12,
        "seconds": 7.0,
        "seconds_per_row": 7 / 12,
        "rows_per_second": 10 / 5 + 2 / 2,
        "rows_per_forward": 5,
        "observed_forwards": 2,
        "matching_share": 0.75 / 5,
        "shares": {"matching": 0.1, "scoring": 0.0, "merging": 0.05},
    }
    assert section["peak_memory_bytes"] == 300
    nothing = timing_section([Measured()])
    assert nothing["clock"] is None
    assert nothing["denoiser"]["seconds_per_row"] is None
    assert nothing["denoiser"]["matching_share"] is None


@pytest.mark.usefixtures("elsewhere")
def test_a_run_tells_its_times_and_a_resumed_one_its_own():
    needs_torch("a run before in this process")
    section = timing("--data.images", "4")
    denoiser = section["denoiser"]
    # 18 rows of each image, in forwards of 8; three forwards warm up.
    assert denoiser["forwards"] >= 6
    assert denoiser["rows"] == 8 * denoiser["forwards"]
    assert denoiser["rows_per_forward"] == 8
    assert 0 < denoiser["seconds"] < section["seconds"]
    assert denoiser["observed_forwards"] == -(-denoiser["forwards"] // 8)
    shares = denoiser["shares"]
    assert all(shares[phase] > 0 for phase in ("matching", "scoring", "merging"))
    assert sum(shares.values()) == pytest.approx(denoiser["matching_share"])
    assert denoiser["matching_share"] < 1
    assert section["vae"]["encoder"]["forwards"] == section["vae"]["decoder"]["forwards"] == 0
    assert section["peak_memory_bytes"] > 2**26
    environment = json.loads(Path("out/results.json").read_text())["environment"]
    assert environment["compile"] == "none"
    assert environment["attention_backend"] == "AttnProcessor2_0"
    assert environment["kernels"] == "torch"

    # Nothing is left to do: what was measured stays.
    again = timing("--data.images", "4")
    assert again["resumed_images"] == 4
    assert again["denoiser"] == denoiser
    kept = json.loads(Path("out/results.json").read_text())["environment"]
    assert kept["kernels"] == environment["kernels"]

    # One image is: the times are of this session's forwards, and it says how many those were.
    log = Path("out/predictions/rank-0.jsonl")
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    # A setting of speed, which does not change the identity of the run; there is no GPU.
    less = timing("--data.images", "4", "--model.backbone.cuda_graph", "true")
    assert less["resumed_images"] == 2
    assert 0 < less["denoiser"]["forwards"] < denoiser["forwards"]
    assert less["denoiser"]["matching_share"] > 0
    kept = json.loads(Path("out/results.json").read_text())["environment"]
    assert (environment["cuda_graph"], kept["cuda_graph"]) == ("none", "none: the network is on cpu")


class Sleepy(Onlooker):
    def decided(self, shown):
        time.sleep(0.5)

    compressed = decided


@pytest.fixture
def measure():
    """Time a call per batch of two forwards, `(rows, onlookers)`; return what was measured, and forwards by batch."""

    def run(network, compressor, batches):
        owner = SimpleNamespace(device=CPU, backbone=SimpleNamespace(denoiser=network))
        timing, given, counts = timing_module.Timing(warmup=0), inputs("dit"), []
        timing.on_predict_start(None, owner)
        for rows, onlookers in batches:
            compressor.onlookers = onlookers
            timing.on_predict_batch_start(None, owner)
            for _ in range(2):
                with mark("denoiser", rows), torch.inference_mode():
                    network(**{name: value[:rows] for name, value in given.items()}, return_dict=False)
            timing.on_predict_batch_end()
            counts.append(timing.measured.forwards["denoiser"])
        compressor.onlookers = []
        return timing.measured, counts

    yield run
    torch.compiler.reset()


@pytest.mark.parametrize("compressor", [LGTM(ratio=0.5, where=ONE_SITE), IEKVD(factor=2, where=ONE_SITE)])
def test_onlookers_are_no_work_of_the_network(compressor, measure):
    network = tiny_dit()
    with compressor.applied_to(network):
        forward(network, inputs("dit"))  # first times are of torch's own
        measured, _ = measure(network, compressor, [(3, [Sleepy()])])
    assert measured.forwards["observed"] == 1
    assert 0 < measured.seconds["matching"] < measured.seconds["denoiser"] < 0.5


def test_a_forward_that_compiles_does_not_count(measure):
    network, compressor = tiny_dit(num_layers=1), LGTM(ratio=0.5)
    with compressor.applied_to(network):
        compile_denoiser(network, "regional", backend="eager")
        # With and without an onlooker: each compiles its own code.
        measured, counts = measure(network, compressor, [(3, [Onlooker()]), (3, [])])
    assert counts == [1, 2]
    assert measured.rows["denoiser"] == 6


@pytest.mark.usefixtures("on_cpu")
def test_replays_count_and_have_no_phases(measure):
    network, compressor = tiny_dit(num_layers=1), LGTM(ratio=0.5)
    use_graphs(network)
    with compressor.applied_to(network):
        # A recording and forwards that run Python for an onlooker take longer.
        batches = [(3, []), (3, [Onlooker()]), (3, []), (2, [])]
        measured, counts = measure(network, compressor, batches)
    assert counts == [1, 1, 3, 4]
    assert measured.rows["denoiser"] == 3 * 3 + 2
    assert measured.seconds["denoiser"] > 0
    denoiser = timing_section([measured])["denoiser"]
    assert (denoiser["observed_forwards"], denoiser["matching_share"]) == (0, None)


def test_networks_are_marked_with_their_rows(tmp_path):
    backbone, seen = DiT(str(save_dit(tmp_path / "dit"))), []
    backbone.load()

    def listener(name, rows):
        seen.append((name, rows))
        return nullcontext()

    with torch.no_grad(), marks_reported_to(listener):
        latents = backbone.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        backbone.predict(latents, torch.tensor([5, 900]), backbone.conditions(["", ""], [0, 1]))
        backbone.decode(latents[:1])
    assert seen == [("encoder", 2), ("denoiser", 2), ("decoder", 1)]


def test_peak_memory_starts_again():
    if not restart_peak(CPU):
        pytest.skip("the peak of a process starts again on Linux alone")
    before = peak_memory(CPU)
    # Not by torch: its allocator may have room left by other tests.
    with mmap.mmap(-1, 2**28) as pages:
        pages[:: mmap.PAGESIZE] = bytes(2**28 // mmap.PAGESIZE)
    risen = peak_memory(CPU)
    assert risen - before > 2**27
    restart_peak(CPU)
    assert peak_memory(CPU) < risen - 2**27
