"""`bigain list`: what is shipped, found in the source and in the folders of configurations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

from bigain.commands.configs import shipped_configs
from bigain.commands.parsing import Outcome, shipped_classes, shipped_functions
from bigain.report.tables import Table

Kind = Literal["compressors", "datasets", "models", "configs", "tables", "scores", "metrics"]
Rows = list[tuple[str, str]]

_SCORES = "bigain.tokens.scores"


def list_available(what: Kind | None = None) -> Outcome:
    """List what is shipped, with one line about each.

    Args:
        what: compressors, datasets, models, configs, tables, scores or metrics; left out: where each is used.
    """
    rows = _KINDS[what][1]() if what else [(name, usage) for name, (usage, _) in _KINDS.items()]
    return Outcome(Table(() if what else ("bigain list ...", "used as"), rows).plain() + "\n")


def _files(folder: str, prefix: str = "", whole: bool = False) -> Rows:
    """Return files with the comment that each begins with, or its first sentence."""
    rows = []
    for path in sorted((shipped_configs() / folder).glob("*.yaml")):
        comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        text = " ".join(line.removeprefix("#").strip() for line in comment)
        rows.append((f"{prefix}{path.name}", text if whole else text.partition(". ")[0]))
    return rows


_KINDS: dict[str, tuple[str, Callable[[], Rows]]] = {
    "compressors": (
        "--compressor NAME; its arguments: bigain flops --compressor.help NAME",
        lambda: [*shipped_classes("compressor").items()],
    ),
    "datasets": ("bigain predict --data NAME", lambda: [*shipped_classes("data").items()]),
    "models": ("bigain predict --model NAME", lambda: _files("models", "models/")),
    "configs": (
        "bigain predict --config NAME; *_joint.yaml: bigain evaluate --config NAME",
        lambda: _files("", whole=True),
    ),
    "tables": ("bigain sweep NAME", lambda: _files("tables")),
    "scores": (
        "--compressor.score NAME, of LGTM and ABM",
        lambda: [(f"{_SCORES}.{name}", text) for name, text in shipped_functions(_SCORES).items()],
    ),
    "metrics": (
        "bigain score RUN --metric NAME, or --model.metrics; those of features: --model.extractor NAME",
        lambda: [*shipped_classes("metric").items(), *shipped_classes("extractor").items()],
    ),
}
