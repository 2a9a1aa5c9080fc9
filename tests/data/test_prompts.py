"""Prompts of every format, a run on them, and its images as GenEval and VQAScore read them."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from program import message_of, program_in

from bigain.commands.main import main
from bigain.data import Prompts
from bigain.errors import InputError

QUICK = ["--data.image_size", "32", "--model.steps", "1", "--model.guidance", "1", "--trainer.accelerator", "cpu"]
QUICK += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--inspect", "0"]
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two caf\u00e9 cats\u2028in one line"},
]
FILES = {
    "plain.txt": ("\ufeffa cat\n\n  a dog, \"sitting\"  \n", {"00000": "a cat", "00001": 'a dog, "sitting"'}),
    # As PartiPrompts: quotes belong to the prompt, the last column is often empty.
    "parti.tsv": (
        'Prompt\tCategory\tChallenge\tNote\n"START" on a sign\tSigns\tWriting\t\na tree\tPlants\tBasic\tone\n',
        {"00000": '"START" on a sign', "00001": "a tree"},
    ),
    # As DrawBench.
    "draw.csv": ('Prompts,Category\nA red car.,Colors\n"One cat, two dogs.",Counting\n',
                 {"00000": "A red car.", "00001": "One cat, two dogs."}),
    "ids.csv": ("id,text\nx/1,a cat\n7,a dog\n", {"x/1": "a cat", "7": "a dog"}),
    "some.csv": ("id,text\n,a cat\n7,a dog\n", {"00000": "a cat", "7": "a dog"}),
    "geneval.jsonl": (
        "\n".join(json.dumps(line, ensure_ascii=False) for line in GENEVAL),
        {"00000": GENEVAL[0]["prompt"], "00001": GENEVAL[1]["prompt"]},
    ),
    "genai.json": (json.dumps({"00007": {"prompt": "a cat", "tags": {}}}), {"00007": "a cat"}),
    # As COCO: the first caption of each image.
    "captions.json": (
        json.dumps({"annotations": [{"image_id": i, "id": j, "caption": c} for i, j, c in
                                    ((9, 1, "a cat "), (4, 2, "a dog"), (9, 3, "another cat"))], "images": []}),
        {"9": "a cat", "4": "a dog"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_prompts_and_ids_of_every_format(tmp_path, name):
    text, expected = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = Prompts(str(tmp_path / name))
    data.setup("predict")
    assert dict(zip([item.image_id for item in data.items], data.generation_prompts(), strict=True)) == expected
    assert (data.name, len(data.class_space)) == (f"Prompts[{Path(name).stem}]", 0)
    several = Prompts(str(tmp_path / name), per_prompt=2, limit=2)
    several.setup("predict")
    assert {item.image_id.rpartition("/")[0] for item in several.items} <= expected.keys()
    for item, prompt in zip(several.items, several.generation_prompts(), strict=True):
        assert prompt == expected[item.image_id[:-5]]
        assert item.image_id[-5:] in ("/0000", "/0001")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.csv", "Category\nSigns\n", r"row 0 has no prompt .*\{'Category': 'Signs'\}.*column prompt, prompts"),
        ("empty.txt", "\n", "has no prompts"),
        ("long.csv", "prompt\na,b\n", "too many columns"),
        ("twice.csv", "id,prompt\n1,a\n1,b\n", "has the id '1' twice"),
        ("torn.jsonl", '{"prompt": "a"}\n\n {"prompt', r"hold prompts \(line 3, column 2: Unterminated string"),
        ("torn.json", '[{"prompt": "a"},\n5', "line 2 column 2"),
        ("list.jsonl", '{"prompt": "a"}\n[1, 2]', r"row 1 has no prompt or too many columns: \[1, 2\]\)"),
        ("number.json", "5", r"row 0 has no prompt .*: 5\)"),
        ("ids.json", '{"7": ["a cat"]}', r"row 0 has no prompt .*: \['a cat'\]"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        Prompts(str(tmp_path / name)).setup("predict")
    with pytest.raises(InputError, match="cannot read"):
        Prompts(str(tmp_path / "nowhere.txt")).setup("predict")
    with pytest.raises(InputError, match="per_prompt must be at least 1"):
        Prompts("a.txt", per_prompt=0)


def predict(config, *args):
    return main(["predict", "--config", config, "--data", "Prompts", "--data.file", "geneval.jsonl", *QUICK, *args])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    with program_in(root):
        Path("geneval.jsonl").write_text(FILES["geneval.jsonl"][0], encoding="utf-8")
        assert predict("demo_unet_none_generation.yaml", "--data.per_prompt", "2", "--output", "run") == 0
    return root


def test_images_are_written_as_geneval_and_vqascore_read_them(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    before = Path("run/results.json").read_bytes()
    assert main(["score", "run", "--geneval", "geneval", "--vqascore", "vqa"]) == 0
    assert "geneval: 2 prompts for GenEval\nvqa: 2 prompts for VQAScore\n" in capsys.readouterr().out
    assert Path("run/results.json").read_bytes() == before
    for number, line in enumerate(GENEVAL):
        folder = Path("geneval", f"{number:05}")
        # As its evaluation reads them: one object per file, names of digits.
        with (folder / "metadata.jsonl").open() as file:
            assert json.load(file) == line
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
        sample, copy = (Image.open(of) for of in (f"run/samples/{number:05}/0001.png", folder / "samples/0001.png"))
        assert copy.tobytes() == sample.tobytes()
        with Image.open(folder / "samples/0000.png") as first:
            first.save("expected.jpeg", quality=100)
        assert Path(f"vqa/{number:05}.jpeg").read_bytes() == Path("expected.jpeg").read_bytes()
    assert sorted(path.name for path in Path("vqa").iterdir()) == ["00000.jpeg", "00001.jpeg", "prompts.json"]
    assert json.loads(Path("vqa/prompts.json").read_text())["00001"] == GENEVAL[1]["prompt"]
    assert "geneval is not an empty folder" in message_of(
        capsys, lambda: main(["score", "run", "--geneval", "geneval"])
    )
    Path("geneval.jsonl").write_text(json.dumps(GENEVAL[1]))
    message = message_of(capsys, lambda: main(["score", "run", "--geneval", "other"]))
    assert "geneval.jsonl has another prompt 00000 than run was generated from" in message
    # As a run from Python.
    Path("run/identity.json").unlink()
    assert main(["score", "run", "--vqascore", "python"]) == 0
    assert json.loads(Path("python/prompts.json").read_text())["00001/0000"] == GENEVAL[1]["prompt"]


def test_prompts_are_not_classified_and_not_labels(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    quick = ["--model.trials", "[1]", "--model.keep", "[1]", "--data", "Prompts", "--data.file", "geneval.jsonl"]
    command = ["predict", "--config", "demo_unet_none.yaml", *quick, "--output", "no"]
    assert "this dataset has prompts alone" in message_of(capsys, lambda: main(command))
    message = message_of(capsys, lambda: predict("demo_none_generation.yaml", "--output", "no"))
    assert "shapes_dit generates images of classes; 2 items without one" in message
    with pytest.raises(InputError, match="has prompts, no images"):
        Prompts("a.txt").read_bytes(None)
