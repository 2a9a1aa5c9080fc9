"""`bigain bench --tune`: one option at a time, on real forwards with made-up times; its output is a configuration."""

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
from bigain.commands.bench.tune import Settings, tune
from bigain.commands.main import main
from bigain.compressors import LGTM
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
    seen = []

    def use(rows_per_second):
        def race(runners, repetitions):
            seconds = [[r.settings.rows / rows_per_second(r.settings)] * repetitions for r in runners]
            for runner in runners:
                settings = runner.settings
                output = runner.subject.forward()
                assert len(output) == len(runner.subject.noisy) == settings.rows
                assert runner.subject.noisy.is_contiguous() != settings.channels_last
                denoiser = runner.subject.backbone.denoiser
                assert compiled(denoiser) == settings.compile
                assert (graphs_note(denoiser) == "1 recorded") == settings.cuda_graph
                seen.append((settings, output))
            return seconds

        monkeypatch.setattr(bigain.commands.bench.tune, "_race", race)
        return seen

    return use


def test_each_option_is_kept_if_it_is_faster(subject, timed):
    def speed(settings):
        of_compile = {"none": 1, "regional": 1.01, "whole": 1.25}[settings.compile]
        of_graph = 1.1 if settings.cuda_graph else 1
        return 10 * min(settings.rows, 8) * (0.85 if settings.channels_last else 1) * of_graph * of_compile

    seen = timed(speed)
    before = torch.get_rng_state()
    trials = tune(subject, LGTM(ratio=0.7), 3)
    assert torch.equal(torch.get_rng_state(), before)
    options = ["channels_last", "cuda_graph", "compile regional", "compile whole"]
    tried = [*(f"{rows} rows" for rows in (2, 4, 8, 16)), *(f"8 rows, {option}" for option in options)]
    assert [str(trial.settings) for trial in trials] == tried
    assert [trial.rows_per_second for trial in trials] == pytest.approx([20, 40, 80, 80, 68, 88, 80.8, 100])
    assert [trial.note.partition(" ")[0] for trial in trials] == ["", "", "", "1.000", "0.850", "", "0.918", ""]
    # Every forward computed the same, with the compressor.
    with torch.inference_mode():
        plain = subject.forward()
        with LGTM(ratio=0.7).applied_to(subject.backbone.denoiser):
            merged = subject.forward()
    assert not torch.equal(plain, merged)
    for settings, output in seen:
        torch.testing.assert_close(output, merged.repeat(settings.rows // 2, 1, 1, 1))
    assert not subject.backbone.denoiser.transformer_blocks[0]._forward_pre_hooks


def test_what_does_not_fit_or_compile_is_left_out(subject, timed):
    def speed(settings):
        if settings.rows > 2:
            raise torch.OutOfMemoryError("tried to allocate 10 GiB")
        if settings.compile != "none":
            raise RuntimeError("no compiler")
        return 10

    timed(speed)
    trials = tune(subject, None, 1)
    assert [trial.note for trial in trials] == [
        "",
        "OutOfMemoryError: tried to allocate 10 GiB",
        "1.000 of the rows/s of 2 rows: not taken",
        "1.000 of the rows/s of 2 rows: not taken",
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
    assert "#     10  2 rows " in output.out
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
