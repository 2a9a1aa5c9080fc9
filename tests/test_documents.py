"""What the documents show works, and nothing in them is left to fill in."""

import re
from pathlib import Path

import pytest
import torch
from models import forward, inputs, tiny_dit

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "bigain/assets/README.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in_and_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_recipe_for_a_compressor_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    (recipe,) = (block for block in blocks if "class KeepBright" in block)
    namespace = {}
    exec(recipe, namespace)
    model, given = tiny_dit(), inputs("dit")
    plain = forward(model, given)
    with namespace["KeepBright"](ratio=0.5).applied_to(model):
        assert not torch.equal(forward(model, given), plain)
    for useless in (0.0, 1.0):
        with namespace["KeepBright"](ratio=useless).applied_to(model), pytest.raises(ValueError, match="keys at"):
            forward(model, given)
