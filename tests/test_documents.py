"""What the documents show works, and nothing in them is left to fill in."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import forward, inputs, tiny_dit

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "bigain/assets/README.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in_and_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
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


def test_the_site_names_what_it_does_not_hold():
    """Links out of `docs/` become file names; links inside, and broken ones, are left for the build to check."""
    rewrite = runpy.run_path(str(ROOT / "scripts/site_links.py"))["on_page_markdown"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="adr/0001-plans-from-leaders.md"))
    config = {"docs_dir": str(ROOT / "docs")}

    def shown(text):
        return rewrite(text, page=page, config=config, files=None)

    assert shown("See [the README](../../README.md#x).") == "See the README (`README.md`)."
    assert shown("See [`README.md`](../../README.md).") == "See `README.md`."
    for kept in ("[a](../flops.md)", "[a](../../NONE.md)", "![a](../../README.md)", "[a](https://a.b/c)", "[a](#b)"):
        assert shown(kept) == kept


def test_every_page_is_in_the_menu_of_the_site():
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
