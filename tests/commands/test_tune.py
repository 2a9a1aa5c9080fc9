"""`bigain bench --tune`: each option alone, on real forwards with made-up times; its output is a configuration."""

import pytest
import torch
import yaml
from graphs import on_cpu  # noqa: F401 -- a fixture
from models import tiny_dit
from program import message_of
from torch import nn

import bigain.commands.bench.tune
from bigain.backbones import DiT
from bigain.backbones.compilation import compiled
from bigain.backbones.cuda_graphs import graphs_note
from bigain.backbones.geometry import with_denoiser
from bigain.commands.bench.subject import Subject
from bigain.commands.bench.tune import Settings, rows_per_second, tune
from bigain.commands.main import main
from bigain.compressors import LGTM
from bigain.cost.spans import Spans
from bigain.errors import InputError

pytestmark = pytest.mark.usefixtures("elsewhere", "on_cpu")


@pytest.fixture
def subject():
    rows = torch.arange(2)
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return Subject(with_denoiser(DiT("tiny"), tiny_dit(num_layers=1)), "random", noisy, rows, rows)


@pytest.fixture
def timed(monkeypatch):
    """Let forwards run, but decide their rows/s by their settings; the tracer is torch's, without code generation."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    rows_per_second, forward, seen = bigain.commands.bench.tune.rows_per_second, Subject.forward, []

    def use(speed):
        def timed_by_settings(subject, settings, compressor, repetitions):
            def watched(self):
                output, denoiser = forward(self), self.backbone.denoiser
                assert len(output) == settings.rows
                assert self.noisy.is_contiguous() != settings.channels_last
                assert compiled(denoiser) == settings.compile
                assert (graphs_note(denoiser) == "1 recorded") == settings.cuda_graph
                seen.append((settings, output))
                # A forward that cannot run raises an error here.
                speed(settings)
                return output

            monkeypatch.setattr(Subject, "forward", watched)
            measured = rows_per_second(subject, settings, compressor, repetitions)
            monkeypatch.setattr(Subject, "forward", forward)
            return measured if isinstance(measured, str) else speed(settings)

        monkeypatch.setattr(bigain.commands.bench.tune, "rows_per_second", timed_by_settings)
        return seen

    return use


def test_rows_are_doubled_and_each_option_is_tried_alone(subject, timed):
    def speed(settings):
        of_compile = {"none": 1, "regional": 1.01, "whole": 1.25}[settings.compile]
        of_graph = 1.1 if settings.cuda_graph else 1
        return 10 * min(settings.rows, 8) * (0.85 if settings.channels_last else 1) * of_graph * of_compile

    seen = timed(speed)
    before = torch.get_rng_state()
    results = tune(subject, LGTM(ratio=0.7), 3)
    assert torch.equal(torch.get_rng_state(), before)
    options = ["channels_last", "cuda_graph", "compile regional", "compile whole"]
    tried = [*(f"{rows} rows" for rows in (2, 4, 8, 16)), *(f"8 rows, {option}" for option in options)]
    assert [str(settings) for settings in results] == tried
    assert [*results.values()] == pytest.approx([20, 40, 80, 80, 68, 88, 80.8, 100])
    # Every forward computed the same, with the compressor.
    with torch.inference_mode():
        plain = subject.forward()
        with LGTM(ratio=0.7).applied_to(subject.backbone.denoiser):
            merged = subject.forward()
    assert not torch.equal(plain, merged)
    assert len(seen) == 4 * len(results)
    for settings, output in seen:
        torch.testing.assert_close(output, merged.repeat(settings.rows // 2, 1, 1, 1))
    assert not subject.backbone.denoiser.transformer_blocks[0]._forward_pre_hooks


def test_rows_per_second_are_of_the_median_forward(subject, monkeypatch):
    seconds = iter([3, 1, 2])
    monkeypatch.setattr(Spans, "settle", lambda self: {"forward": next(seconds)})
    assert rows_per_second(subject, Settings(4), None, 3) == 2


def test_what_does_not_fit_or_compile_has_no_speed(subject, timed):
    def speed(settings):
        if settings.rows > 2:
            raise torch.OutOfMemoryError("tried to allocate 10 GiB")
        if settings.compile != "none":
            raise RuntimeError("no compiler")
        return 10

    timed(speed)
    assert [*tune(subject, None, 1).values()] == [
        10,
        "OutOfMemoryError: tried to allocate 10 GiB",
        10,
        10,
        "RuntimeError: no compiler",
        "RuntimeError: no compiler",
    ]

    def never(settings):
        raise RuntimeError("no memory")

    timed(never)
    with pytest.raises(InputError, match="cannot run: RuntimeError: no memory"):
        tune(subject, None, 1)


def test_the_output_is_a_configuration(capsys, timed, tmp_path):
    def speed(settings):
        if settings.compile != "none":
            raise RuntimeError("no compiler")
        return 20 if settings == Settings(1, True) else 10

    timed(speed)
    args = ["--model", "shapes_dit", "--device", "cpu", "--dtype", "float32", "--batch", "1", "--repetitions", "1"]
    assert main(["bench", *args, "--tune", "--compressor", "LGTM", "--compressor.ratio", "0.7"]) == 0
    output = capsys.readouterr()
    assert "1 rows: 10 rows/s\n" in output.err
    assert "# The fastest settings found for shapes_dit on " in output.out
    assert "LGTM(ratio=0.7" in output.out
    assert "#     10  2 rows\n" in output.out
    assert "compile: none  # changes last digits" in output.out
    fastest = {"backbone": {"channels_last": True, "cuda_graph": False, "compile": "none"}, "rows_per_forward": 1}
    assert yaml.safe_load(output.out) == {"model": fastest}
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text(output.out)
    with pytest.raises(SystemExit, match="0"):
        main(["predict", "--config", "demo_lgtm.yaml", "--config", str(tuned), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert printed["rows_per_forward"] == 1
    assert fastest["backbone"].items() <= printed["backbone"]["init_args"].items()


@pytest.mark.parametrize(
    "further", [["--json"], ["--compile", "whole"], ["--compressor=ABM", "--compressor.ratio=0.5"]]
)
def test_refusals(capsys, further):
    args = ["--model", "shapes_dit", "--tune", "--compressor", "ToDo", "--compressor.factor", "2", *further]
    assert "--tune takes one --compressor" in message_of(capsys, lambda: main(["bench", *args]))
