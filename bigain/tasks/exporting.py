"""Images of a run in the layouts that other evaluations of text-to-image models read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from bigain.data.prompts import prompt_of, read_prompts
from bigain.errors import InputError
from bigain.runs.files import replacing, write_json
from bigain.runs.logs import read_records
from bigain.runs.numbers import counted
from bigain.runs.records import SampleRecord
from bigain.runs.results import read_settings
from bigain.tasks.scoring import image_paths


def export_geneval(run: Path, folder: Path) -> str:
    """Write `NNNNN/metadata.jsonl` and `NNNNN/samples/NNNN.png` for each prompt, and return what was written.

    Source: Ghosh et al., GenEval (NeurIPS 2023). Prompts are numbered in the order of the run; the metadata is the row
    of the file of a run on `Prompts`, else the prompt alone.

    Raises:
        InputError: If images are missing, the folder is not empty, or the file of prompts is gone or has changed.
    """
    prompts = _by_prompt(run, folder)
    for number, (row, paths) in enumerate(prompts.values()):
        with replacing(folder / f"{number:05}" / "metadata.jsonl") as file:
            file.write(json.dumps(row).encode() + b"\n")
        for index, path in enumerate(paths):
            _copy(path, folder / f"{number:05}" / "samples" / f"{index:04}.png")
    return f"{folder}: {counted(len(prompts), 'prompt')} for GenEval\n"


def export_vqascore(run: Path, folder: Path) -> str:
    """Write `<id>.jpeg` for each prompt, the first of several images, and `prompts.json` with the prompts by id.

    Source: Li et al., GenAI-Bench (2024), the images of a model for VQAScore. JPEG of quality 100.

    Raises:
        InputError: See `export_geneval`.
    """
    prompts = _by_prompt(run, folder)
    for prompt_id, (_, paths) in prompts.items():
        _copy(paths[0], folder / f"{quote(prompt_id, safe=' ')}.jpeg")
    write_json(folder / "prompts.json", {prompt_id: row["prompt"] for prompt_id, (row, _) in prompts.items()})
    return f"{folder}: {counted(len(prompts), 'prompt')} for VQAScore\n"


def _by_prompt(run: Path, folder: Path) -> dict[str, tuple[dict[str, Any], list[Path]]]:
    """Return the row and the images of each prompt by its id, in the order of the run."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; an export among other files would be evaluated with them")
    log, settings = read_records(run / "predictions", SampleRecord), read_settings(run)
    per_prompt = settings.get("data.init_args.per_prompt")
    rows = read_prompts(Path(settings["data.init_args.file"]).expanduser()) if per_prompt else {}
    prompts: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for image_id, path in image_paths(run).items():
        prompt_id, row = prompt_of(image_id, per_prompt or 1), {"prompt": log[image_id].prompt}
        if per_prompt:
            if rows.get(prompt_id, {}).get("prompt") != row["prompt"]:
                source = settings["data.init_args.file"]
                raise InputError(f"{source} has another prompt {prompt_id} than {run} was generated from; restore it")
            row = rows[prompt_id]
        prompts.setdefault(prompt_id, (row, []))[1].append(path)
    return prompts


def _copy(path: Path, copy: Path) -> None:
    with Image.open(path) as image, replacing(copy) as file:
        image.save(file, "PNG" if copy.suffix == ".png" else "JPEG", quality=100)
