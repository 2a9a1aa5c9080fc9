"""The real command line on real files: runs, what they write, and the messages for bad input."""

import inspect
import json
import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from program import message_of, program_in
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bigain
from bigain.commands.lightning_cli import Prepared
from bigain.commands.main import COMMANDS, main
from bigain.commands.parsing import Outcome, readable, run, shipped_classes
from bigain.metrics.extractors import FeatureExtractor
from bigain.runs.summary import summary

QUICK = ["--model.trials", "[1,2]", "--model.keep", "[2,1]", "--data.images", "4", "--data.batch_size", "2"]
QUICK += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
ASSETS = Path(bigain.__file__).parent / "assets"
pytestmark = pytest.mark.usefixtures("elsewhere")


def predict(*args, config="demo_lgtm.yaml"):
    return main(["predict", "--config", config, *QUICK, *args])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run in `here`."""
    folder = tmp_path_factory.mktemp("finished")
    with program_in(folder):
        assert predict("--output", "here", "--inspect", "0") == 0
    return folder


@pytest.fixture
def here(finished, tmp_path):
    """The finished run, in `here`, to be continued or changed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Path("here")


def run_directory():
    (folder,) = Path("runs").iterdir()
    return folder


def results(folder=None):
    return json.loads(((folder or run_directory()) / "results.json").read_text())


def refused(capsys, *args, config="demo_lgtm.yaml"):
    return message_of(capsys, lambda: predict(*args, config=config))


def test_predict_writes_a_run_directory_and_a_summary_and_its_config_reproduces_it(capsys):
    assert predict() == 0
    text, progress = capsys.readouterr()
    for word in ("ShapeTextures, 4 images", "shapes_dit", "LGTM(ratio=0.5", "256 -> 128", "top1", "shape", "fill"):
        assert word in text
    for words in (
        f"bigain {bigain.__version__}",
        "4 images, 16 classes",
        "18 per image, 72 in all",
        "2 of 4 images, top1",
    ):
        assert words in progress
    assert str(run_directory()) in text
    found = results()
    assert found["schema_version"] == 1
    assert set(found) >= {"metrics", "sites", "flops", "timing", "environment", "fingerprint", "compressors"}
    assert found["metrics"]["top1"]["n"] == 4
    assert found["evaluations"].pop("per_second") > 0
    assert found["evaluations"] == {"per_image": 18.0, "planned_per_image": 18}
    assert [site["tokens_out"] for site in found["sites"]] == [128] * 4
    settings = found["compressors"][0]["settings"]
    assert {"ratio", "destination", "mode", "seed", "cell", "where", "modules", "metric"} < set(settings)
    assert settings["score"] == "laplacian_l1"
    lines = (run_directory() / "predictions/rank-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [f"test/{i:06d}" for i in range(4)]
    columns = np.load(run_directory() / "predictions/predictions.npz", allow_pickle=False)
    assert columns["errors"].shape == (4, 16, 2)
    saved = run_directory() / "config.yaml"
    assert yaml.safe_load(saved.read_text())["compressor"]["init_args"]["ratio"] == 0.5
    events = EventAccumulator(str(run_directory() / "tensorboard"))
    events.Reload()
    assert events.Scalars("metrics/top1")[0].value == pytest.approx(found["metrics"]["top1"]["value"])
    assert events.Scalars("flops/gflops_per_evaluation")[0].value > 0
    assert main(["predict", "--config", str(saved), "--output", "again"]) == 0
    again = np.load("again/predictions/predictions.npz")["errors"]
    assert np.array_equal(columns["errors"], again, equal_nan=True)
    assert Prepared(["predict", "--config", str(saved), "--seed", "5"]).datamodule.seed == 5


def test_a_run_extends_to_more_images_as_if_it_had_begun_with_them(here, capsys):
    predict("--output", "grown", "--data.images", "2")
    message = refused(capsys, "--output", "grown")
    assert "data.init_args.images: 2 -> 4" in message
    assert "--extend true" in message
    assert predict("--output", "grown", "--extend", "true") == 0
    assert "2 images already done" in capsys.readouterr().out
    assert results(Path("grown"))["metrics"] == results(here)["metrics"]
    for name in ("images.txt", "identity.json"):
        assert Path("grown", name).read_bytes() == (here / name).read_bytes()
    grown, whole = (np.load(Path(run, "predictions/predictions.npz")) for run in ("grown", "here"))
    for name in set(whole.files) - {"seconds"}:
        np.testing.assert_array_equal(grown[name], whole[name])


def test_a_refused_extension_leaves_the_run_as_it_was(here, capsys):
    before = Path("here/identity.json").read_bytes()
    assert "limit asks for 100 images" in refused(capsys, "--output", "here", "--data.limit", "100", "--extend", "true")
    assert Path("here/identity.json").read_bytes() == before
    text = refused(capsys, "--output", "here", "--extend", "true", "--overwrite", "true")
    assert "give one of them" in text
    assert "name its directory with --output" in refused(capsys, "--extend", "true")
    message = refused(capsys, "--output", "here", "--extend", "true", "--data.images", "8", "--seed", "1")
    assert "seed: 0 -> 1" in message
    assert "--extend true" not in message


def test_results_come_last(monkeypatch, capsys):
    """A run without its columns must not count as finished."""

    def broken(*args):
        raise MemoryError("columns")

    with monkeypatch.context() as patch:
        patch.setattr("bigain.tasks.results_writer.write_columns", broken)
        assert "memory ran out" in refused(capsys, "--output", "here", "--data.images", "1")
    assert not Path("here/results.json").exists()
    assert predict("--output", "here", "--data.images", "1") == 0
    assert Path("here/results.json").is_file()
    assert Path("here/predictions/predictions.npz").is_file()


def test_baseline_runs_the_same_without_compression_as_does_compressor_null(capsys):
    few = ("--data.images", "2")
    assert predict("--baseline", "true", *few) == 0
    text = capsys.readouterr().out
    assert "top1 without" in text
    assert "% less" in text
    compressed = results(run_directory())
    compressed["flops"]["baseline_gflops"] = compressed["flops"]["gflops_per_evaluation"] / 1.25
    assert "25.0 % more)" in summary(compressed, run_directory())
    plain = results(run_directory() / "baseline")
    assert plain["compressors"] == []
    assert plain["flops"]["gflops_per_evaluation"] > results()["flops"]["gflops_per_evaluation"]
    assert predict("--compressor", "null", "--output", "plain", *few) == 0
    paths = [folder / "predictions/predictions.npz" for folder in (run_directory() / "baseline", Path("plain"))]
    assert np.array_equal(*(np.load(path)["errors"] for path in paths), equal_nan=True)


def test_one_seed_reaches_module_and_the_inner_compressor():
    inner = ["--compressor.inner", "ToMe", "--compressor.inner.ratio", "0.5"]
    predict("--compressor", "CAM", *inner, "--seed", "7", "--data.images", "1")
    assert results()["protocol"]["seed"] == 7
    assert results()["scheduler"]["class"] == "DDPMScheduler"
    assert results()["scheduler"]["beta_schedule"] == "squaredcos_cap_v2"
    assert results()["compressors"][0]["settings"]["inner"]["settings"]["seed"] == 7


def test_two_compressors_on_disjoint_sites():
    second = "--trainer.callbacks=[{class_path: bigain.compressors.ToDo, init_args: {factor: 2, where: {blocks: [2]}}}]"
    assert predict("--compressor.where.blocks", "[0, 1]", second, "--data.images", "1") == 0
    assert [(s["index"], s["compressor"]) for s in results()["sites"]] == [(2, "ToDo"), (0, "LGTM"), (1, "LGTM")]


def test_processes_that_the_trainer_does_not_know_of_are_refused(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refused(capsys)
    assert "2 processes were launched, but the trainer has 1; set the processes of one machine with" in message


def test_trainer_options_keep_working():
    # Two of four images are left.
    assert predict("--trainer.limit_predict_batches", "1", "--trainer.logger", "false") == 1
    assert results()["dataset"]["images"] == 2
    assert not (run_directory() / "tensorboard").exists()


@pytest.mark.parametrize("prompt", ["{}", "photo: {}", "[{}]", "a {} here"])
def test_values_that_look_like_yaml_and_a_home_directory(prompt):
    args = ["--config", "demo_unet_lgtm.yaml", "--data", "ImageFolder", "--data.root", ".", "--data.prompt", prompt]
    prepared = Prepared(["predict", *args, "--compressor.where.blocks", "null", "--output=~/out", "--seed", "4"])
    config = prepared.config["predict"]
    assert config.data.init_args.prompt == prompt
    assert config.compressor.init_args.where.blocks is None
    assert prepared.output == Path.home() / "out"
    assert (config.model.init_args.seed, config.compressor.init_args.seed, prepared.model.seed) == (4, 4, 4)


def test_a_home_directory_behind_an_equals_sign_in_every_command():
    def command(*, output: Path, model: str, runs: list[Path]) -> Outcome:
        """Return the paths.

        Args:
            output: A path.
            model: A path or a name.
            runs: Paths.
        """
        return Outcome(f"{output} {model} {runs[0]}")

    expected = " ".join(str(Path.home() / name) for name in "abc")
    assert run(command, "bigain", ["--output=~/a", "--model=~/b", "--runs=~/c"]).text == expected


def test_version_help_and_unknown_commands(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bigain 0.")
    assert main(["--help"]) == main([]) == 0
    text = capsys.readouterr().out
    for usage, _, description in COMMANDS:
        assert f"{usage:<20} {description}\n" in text
    assert main(["predit"]) == 2
    assert "expected one of predict, evaluate" in capsys.readouterr().err


LIGHT = [
    ("", ["--help"], "usage: bigain COMMAND"),
    *(("", [command, "--help"], "usage: bigain") for command in ("list", "report", "compare", "predict", "score")),
    *(("", ["list", what], "") for what in ("compressors", "datasets", "scores", "tables")),
    ("no option confg; did you mean --config", ["predict", "--confg", "x"], ""),
    ("seed: expected an int, not x", ["predict", "--config", "demo_lgtm.yaml", "--seed", "x"], ""),
    ("does not fit in 64 bits", ["doctor", "--seed", str(10**30)], ""),
    ("no option confg", ["sweep", "demo", "--dry-run", "--classification.confg", "x"], ""),
    ("no option sede", ["evaluate", "--config", "demo_lgtm_joint.yaml", "--generation.sede", "3"], ""),
    ("did you mean demo_lgtm.yaml", ["predict", "--config", "demo_lgtm"], ""),
    *(
        ("no configuration demo_lgmt.yaml here or among the shipped", [command, "--config", "demo_lgmt.yaml"], "")
        for command in ("predict", "doctor", "evaluate")
    ),
    ("use bigain evaluate", ["predict", "--config", "demo_lgtm_joint.yaml"], ""),
    ("torn.yaml is not valid YAML", ["predict", "--config", "torn.yaml"], ""),
    ("data/shapes.yaml describes one class; pass it with --model", ["doctor", "--config", "data/shapes.yaml"], ""),
    ("no option nonsense", ["predict", "--nonsense", "1"], ""),
]


def test_help_lists_and_wrong_options_need_no_torch():
    code = (
        "import contextlib, io, json, sys\nfrom bigain.commands.main import main\n"
        "for error, args, text in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:\n"
        "        status = main(args)\n"
        "    assert status == (2 if error else 0), args\n"
        "    assert error in err.getvalue() and out.getvalue().startswith(text), (args, err.getvalue())\n"
        "    assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules), args\n"
    )
    Path("torn.yaml").write_text("seed: 0\nmodel: [unclosed\n")
    ended = subprocess.run([sys.executable, "-c", code, json.dumps(LIGHT)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("models", r"models/sd2.yaml +Stable Diffusion 2.0"),
        ("configs", r"pets_lgtm.yaml +SD 2.0 on .*'\[self_attn, cross_attn\]'\.$"),
        ("tables", r"table4.yaml +Table 4: token merging"),
        ("scores", r"bigain.tokens.scores.laplacian_l1 +Score tokens by"),
        ("", r"compressors +--compressor NAME"),
    ],
)
def test_list(capsys, what, line):
    assert main(["list", *filter(None, [what])]) == 0
    assert re.search(f"^{line}", capsys.readouterr().out, re.M)


def test_lists_from_the_source_are_the_classes_that_can_be_imported():
    for section, package, base in (
        ("compressor", bigain.compressors, bigain.compressors.Compressor),
        ("data", bigain.data, bigain.data.EvalDataModule),
        ("backbone", bigain.backbones, bigain.backbones.Backbone),
        ("model", bigain.modules, LightningModule),
        ("metric", bigain.metrics, bigain.metrics.Metric),
        ("extractor", bigain.metrics, FeatureExtractor),
    ):
        classes = [kind for kind in vars(package).values() if inspect.isclass(kind) and issubclass(kind, base)]
        concrete = {kind.__name__: kind.__doc__.partition("\n")[0] for kind in classes if not inspect.isabstract(kind)}
        assert shipped_classes(section) == concrete
        assert list(shipped_classes(section)) == sorted(concrete)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.accelerator", "tpu"], "cannot create a Trainer with these settings"),
        (["--compressor", "LGTN"], ["no class LGTN; did you mean LGTM; known: ABM"]),
        (["--compressor", "CAM", "--compressor.inner", "ToDo"], ["compressor.inner: ToDo does not fit here"]),
        (["--compressor", "ToDo", "--compressor.factor", "2.5"], ["compressor.factor: expected an int, not 2.5; see"]),
        (["--compressor.rati", "0.5"], ["LGTM has no argument 'rati'; did you mean ratio", "--compressor.help LGTM"]),
        (["--model.foo", "{}"], ["DiffusionClassifier has no argument 'foo'", "--model.help DiffusionClassifier"]),
        (["--model.seed", "4"], ["use --seed 4"]),
        (["--seed", "4", "--data.seed", "0"], ["one seed"]),
        (["--seed", "4", "--config", "seeded.yaml"], ["model.seed is 0 and seed is 4, but a run has one seed"]),
        (["--data.images", "0"], ["images must be 1 to 10,000,000, not 0"]),
        (["--data.prompt", "null"], ["data.prompt is null; expected str"]),
        (["--data.limit", "x"], ["data.limit: expected an int, not x; see bigain predict --data.help ShapeTextures"]),
        (["--compressor.where.foo", "1"], ["LGTM has no argument 'where.foo'; see bigain predict --compressor.help"]),
        (["--trainer.device_count", "1"], ["--trainer.help"]),
        (["--config", "null.yaml"], ["seed is null"]),
        (["--config", "foo.yaml"], ["DiT has no argument 'foo'"]),
        (["--config", "beside.yaml"], ["compressor: name its class (class_path), and put its arguments under"]),
        (["--compressor.ratio", "0.9"], ["0.9", "0.75"]),
        (["--compressor.destination", "cel"], ["one of cell, released", "cel"]),
        (["--compressor.score", "dft_centroid"], ["no class dft_centroid; expected the import path of a function"]),
        (["--compressor.score", "bigain.tokens.scores.x"], ["compressor.score: module 'bigain.tokens.scores' has no"]),
        (["--compressor.where.blocks", "[9]"], ["site 9", "0 to 3"]),
        (["--compressor.ratio", "0.001"], ["0.001", "removes nothing"]),
        (["--trainer.callbacks", "{class_path: bigain.compressors.ToDo, init_args: {factor: 2}}"], ["LGTM", "ToDo"]),
        (["--data.limit", "99"], ["99", "4"]),
        (["--model.backbone.model", "no_such_folder"], ["no_such_folder", "shapes_dit"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_ends_with_one_message(capsys, args, words):
    Path("foo.yaml").write_text("model: {init_args: {backbone: {init_args: {foo: {}}}}}\n")
    Path("seeded.yaml").write_text("model: {init_args: {seed: 0}}\n")
    Path("null.yaml").write_text("seed: null\n")
    Path("beside.yaml").write_text("compressor: {class_path: LGTM, ratio: 0.5}\n")
    message = refused(capsys, *args)
    for word in words:
        assert word in message


def test_a_slurm_allocation_that_does_not_fit(capsys, monkeypatch):
    for name in ("NTASKS", "JOB_ID", "PROCID", "LOCALID", "NODEID", "NNODES"):
        monkeypatch.setenv(f"SLURM_{name}", "1" if name in ("NTASKS", "JOB_ID", "NNODES") else "0")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert "Set `devices=4`" in refused(capsys, "--trainer.devices", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setenv("SLURM_NNODES", "3")
    assert "Set `num_nodes=3`" in refused(capsys, "--trainer.devices", "2")
    assert not Path("runs").exists()


@pytest.fixture
def model(tmp_path):
    """A private copy of the embedded DiT folder."""
    return Path(shutil.copytree(ASSETS / "shapes_dit", tmp_path / "model"))


def test_a_config_is_needed(capsys):
    assert "no --config" in message_of(capsys, lambda: main(["predict"]))
    Path("ids.txt").write_text("cats/1.jpg\n" * 1000)
    message = message_of(capsys, lambda: main(["predict", "--config", "ids.txt"]))
    assert message.endswith("ids.txt is no configuration; expected sections such as model: and data:")


def test_a_directory_in_use_is_refused_before_anything_is_deleted(here, capsys, monkeypatch):
    monkeypatch.setattr("bigain.runs.lock._TIMEOUT_S", 0.1)
    before = Path("here/results.json").read_bytes()
    hold = "import pathlib, bigain.runs.lock as l; held = l.lock(pathlib.Path('here'), 0); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as other:
        other.stdout.readline()
        assert predict("--output", "here", "--overwrite", "true") == 2
        other.communicate(b"\n")
    assert "is in use: another process holds here/.lock-0" in capsys.readouterr().err
    assert Path("here/results.json").read_bytes() == before


def test_a_mistyped_model_deletes_no_run(here, capsys):
    before = Path("here/results.json").read_bytes()
    assert predict("--output", "here", "--overwrite", "true", "--model.backbone.model", "nowhere") == 2
    assert "model 'nowhere' is not a folder here" in capsys.readouterr().err
    assert Path("here/results.json").read_bytes() == before


def test_a_label_that_changed_since_is_refused(here, capsys):
    log = Path("here/predictions/rank-0.jsonl")
    record, *others = log.read_text().splitlines()
    label = json.loads(record)["label"]
    log.write_text("\n".join([record.replace(f'"label": {label}', f'"label": {label + 1}'), *others, ""]))
    assert predict("--output", "here") == 2
    assert (
        f"the label or the prompt of {json.loads(record)['image_id']} changed since it was evaluated (1 such"
        in capsys.readouterr().err
    )


def test_weights_that_changed_since_are_refused(capsys, model):
    options = ["--model.backbone.model", str(model), "--output", "out", "--data.images", "1"]
    assert predict(*options) == 0
    capsys.readouterr()
    weights = model / "transformer/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state[min(state)][0] += 1
    save_file(state, weights, {"format": "pt"})
    assert predict(*options) == 2
    assert "are not those that out/predictions/model.json names, with which this run began" in capsys.readouterr().err
    assert predict(*options, "--overwrite", "true") == 0


def test_a_log_that_cannot_grow_ends_the_run_with_what_is_finished(capsys):
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Pictures would be the first to reach the limit.
    options = ["--data.images", "8", "--data.batch_size", "1", "--trainer.logger", "false", "--inspect", "0"]
    options += ["--output", "out"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        assert predict(*options) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = capsys.readouterr().err
    assert "cannot write out/predictions/rank-0.jsonl: " in text
    assert "what is finished is kept, run the command again" in text
    log = Path("out/predictions/rank-0.jsonl")
    done = log.read_text().count("\n")
    assert 0 < done < 8
    assert predict(*options) == 0
    assert json.loads(Path("out/results.json").read_text())["timing"]["resumed_images"] == done
    assert len(log.read_text().splitlines()) == 8


def test_global_generators_are_neither_read_nor_moved():
    logs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
        options = ["--data.num_workers", "1", "--data.images", "1", "--output", f"out{seed}"]
        assert predict(*options, config="demo_tome.yaml") == 0
        after = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
        assert after == before
        lines = Path(f"out{seed}/predictions/rank-0.jsonl").read_text().splitlines()
        logs.append([{**json.loads(line), "seconds": None} for line in lines])
    assert logs[0] == logs[1]


def test_a_library_that_a_logger_needs_is_named():
    message = (
        "Does not validate against any of the Union subtypes\nErrors:\n  - Subclass types expect one of:\n"
        "  - Problem with given class_path 'lightning.pytorch.loggers.WandbLogger':\n"
        "      Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb>=0.12.10'`\n"
    )
    assert readable(message).startswith("WandbLogger: Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip")
