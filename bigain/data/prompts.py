"""Prompts from a file, to generate images from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from bigain.data.base import EvalDataModule
from bigain.data.class_space import ClassSpace
from bigain.data.folders import read_text
from bigain.data.selection import Item
from bigain.errors import InputError

# Names of the columns, in the order of preference, in lower case.
_PROMPT = ("prompt", "prompts", "caption", "text")
_ID = ("image_id", "prompt_id", "id")
_HELP = (
    "expected .txt with one prompt per line, or .csv, .tsv, .jsonl or .json with a column prompt, prompts, caption or "
    "text and, if prompts have ids, image_id, prompt_id or id"
)


class Prompts(EvalDataModule):
    """Prompts of a text file or table, such as PartiPrompts, DrawBench, GenEval or COCO captions: for generation only.

    Image ids are those of the prompts, or their numbers from `00000`; with several images per prompt, `00000/0000`.
    """

    def __init__(self, file: str, per_prompt: int = 1, **kwargs: Any) -> None:
        """Store the settings; nothing is read yet.

        Args:
            file: `.txt`, one prompt per line; `.csv` or `.tsv` with a header; `.jsonl`, an object per line; `.json`,
                COCO's captions, of which the first of each image counts.
            per_prompt: Images per prompt; GenEval takes 4.
            **kwargs: Arguments of every dataset.
        """
        super().__init__(**kwargs)
        if per_prompt < 1:
            raise InputError(f"per_prompt must be at least 1, not {per_prompt}")
        self.file = file
        self.per_prompt = per_prompt
        self.name = f"Prompts[{Path(file).stem}]"

    @property
    def all_classes(self) -> ClassSpace:
        return ClassSpace(names=(), prompts=(), indices=None)

    @cached_property
    def _rows(self) -> Mapping[str, Mapping[str, Any]]:
        return read_prompts(Path(self.file).expanduser())

    def find_items(self) -> list[Item]:
        if self.per_prompt == 1:
            return [Item(prompt_id, ()) for prompt_id in self._rows]
        return [Item(f"{prompt_id}/{number:04}", ()) for prompt_id in self._rows for number in range(self.per_prompt)]

    def generation_prompts(self) -> list[str]:
        return [self._rows[prompt_of(item.image_id, self.per_prompt)]["prompt"] for item in self.items]

    def read_bytes(self, item: Item) -> bytes:
        raise InputError(f"{self.name} has prompts, no images; use it with a DiffusionSampler")


def prompt_of(image_id: str, per_prompt: int) -> str:
    """Return the id of the prompt of an image."""
    return image_id if per_prompt == 1 else image_id.rpartition("/")[0]


def read_prompts(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a file by the ids of their prompts, each with its own columns and `prompt`: see `Prompts`.

    Raises:
        InputError: If the file cannot be read, has no prompts, or has an id twice.
    """
    text, suffix = read_text(path, _HELP), path.suffix.lower()
    prompts: dict[str, dict[str, Any]] = {}
    try:
        for number, row in enumerate(_rows_of(text, suffix)):
            cells = {str(name).strip().lower(): row[name] for name in row} if isinstance(row, dict) else {}
            prompt, key = (next((cells[name] for name in names if name in cells), None) for names in (_PROMPT, _ID))
            if not isinstance(prompt, str) or not prompt.strip() or None in row:
                raise ValueError(f"row {number} has no prompt or too many columns: {row!r:.80}")
            prompt_id = str("" if key is None else key).strip() or f"{number:05}"
            # COCO has five captions of each image.
            if prompt_id in prompts and (suffix != ".json" or "caption" not in row):
                raise ValueError(f"it has the id {prompt_id!r} twice")
            prompts.setdefault(prompt_id, {**row, "prompt": prompt.strip()})
        if not prompts:
            raise ValueError("it has no prompts")
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path} does not hold prompts ({error}); {_HELP}") from error
    return prompts


def _rows_of(text: str, suffix: str) -> list[Any]:
    """Return the rows of a file, which should be objects; raise a ValueError or csv.Error if it is malformed."""
    if suffix in (".csv", ".tsv"):
        # Quotes are part of the text in a .tsv, as in PartiPrompts.
        dialect: Any = {"strict": True} if suffix == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        return [*csv.DictReader(io.StringIO(text, newline=""), **dialect)]
    if suffix == ".json":
        content = json.loads(text)
        if isinstance(content, dict):
            rows = ({"id": key, **row} if isinstance(row, dict) else row for key, row in content.items())
            content = content.get("annotations") or [*rows]
        return content if isinstance(content, list) else [content]
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    return [_object(line, number) if suffix == ".jsonl" else {"prompt": line} for number, line in lines.items()]


def _object(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
