"""Imports go down only: cli and report see all; tokens and diffusion see torch and the standard library."""

import ast
import sys
from pathlib import Path

import bigain

ROOT = Path(bigain.__file__).parent
LAYERS = {
    "errors": 0,
    "schema": 0,
    "files": 0,
    "locks": 0,
    "tokens": 0,
    "diffusion": 1,
    "backbones": 2,
    "compressors": 3,
    "data": 3,
    "metrics": 3,
    "modules": 4,
    "callbacks": 5,
    "report": 6,
    "inspector": 7,
    "configuration": 6,
    "parsing": 6,
    "run_directory": 7,
    "scoring": 7,
    "lightning_cli": 8,
    "running": 9,
    "prepared": 10,
    "doctor": 11,
    "flops": 11,
    "bench": 11,
    "joint": 11,
    "sweeps": 11,
    "cli": 12,
}
PURE = {"tokens", "diffusion"}
# Same height, but strangers to each other.
FORBIDDEN = {
    ("modules", "compressors"),
    ("compressors", "data"),
    ("compressors", "metrics"),
    ("data", "compressors"),
    ("data", "backbones"),
    ("metrics", "compressors"),
    ("metrics", "backbones"),
}


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


def test_every_module_has_a_layer():
    names = {layer for _, layer, _ in imports()} - {"__init__", "__main__"}
    assert names <= set(LAYERS)


def test_imports_go_down_only():
    seen = 0
    for path, layer, module in imports():
        if not module.startswith("bigain.") or layer in ("__init__", "__main__"):
            continue
        target = module.split(".")[1]
        seen += 1
        assert LAYERS[target] <= LAYERS[layer], f"{path} imports {module}"
        assert (layer, target) not in FORBIDDEN, f"{path} imports {module}"
    assert seen > 100


def test_pure_layers_use_torch_and_the_standard_library_only():
    for path, layer, module in imports():
        top = module.split(".")[0]
        if layer in PURE:
            assert top in {"torch", "bigain", *sys.stdlib_module_names}, f"{path} imports {module}"
