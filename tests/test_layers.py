"""Imports go down only; tokens and diffusion see torch, the standard library and little else."""

import ast
import sys
from pathlib import Path

import bigain

ROOT = Path(bigain.__file__).parent
# Floors from the ground up; a package imports from its own floor's package and from floors below.
FLOORS = [
    ["errors"],
    ["tokens", "runs"],
    ["diffusion"],
    ["backbones"],
    ["compressors", "data"],
    ["metrics", "cost"],
    ["tasks"],
    ["report"],
    ["inspector"],
    ["modules", "callbacks"],
    ["commands"],
]
FLOOR = {package: number for number, floor in enumerate(FLOORS) for package in floor}
PURE = {"tokens", "diffusion"}
# What single modules of these import besides torch and the standard library.
ALSO = {"kernels": {"triton"}, "racing.py": {"scipy"}}
# Reports read files: they need neither torch nor a model.
FILES_ONLY = {"report": {"report", "runs", "errors"}, "runs": {"runs", "errors"}}
# The classifier and the sampler see a network only; whether it is compressed is not their business.
UNCOMPRESSED = {"classifier.py", "sampler.py", "forwards.py"}


def imports():
    """(file, its layer, imported module) for every import statement of the package."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, parts[0], alias.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                yield path, parts[0], node.module


def test_every_package_has_a_floor():
    assert {layer for _, layer, _ in imports()} - {"__init__", "__main__"} <= set(FLOOR)
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


def test_imports_go_down_only():
    seen = 0
    for path, layer, module in imports():
        if not module.startswith("bigain.") or layer in ("__init__", "__main__"):
            continue
        target = module.split(".")[1]
        seen += 1
        assert target == layer or FLOOR[target] < FLOOR[layer], f"{path} imports {module}"
        assert target in FILES_ONLY.get(layer, {target}), f"{path} imports {module}"
        assert not (path.name in UNCOMPRESSED and target == "compressors"), f"{path} imports {module}"
    assert seen > 100


def test_pure_layers_use_torch_and_the_standard_library():
    for path, layer, module in imports():
        top = module.split(".")[0]
        if layer in PURE:
            also = ALSO.get(path.name, ALSO.get(path.parent.name, set()))
            assert top in {"torch", "bigain", *also, *sys.stdlib_module_names}, f"{path} imports {module}"
