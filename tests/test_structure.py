"""The folder reads in one direction."""

import ast
from pathlib import Path

import pytest

import snn_homeostasis

PACKAGE = Path(snn_homeostasis.__file__).parent
ORDER = [
    ["errors"],
    ["sharded", "state"],
    ["checks"],
    ["bounds", "rates", "neurons", "parameters"],
    ["connections", "joint", "settings"],
    ["inner", "updates", "wrappers"],
    ["taps"],
    ["cells"],
    ["discovery", "units"],
    ["contributions"],
    ["distributed"],
    ["teams"],
    ["homeostasis"],
    ["rules"],
    ["__init__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports_of(module: str) -> tuple[set[str], set[str]]:
    """The modules of the package, and the outer packages, that a module imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    inner, outer = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            inner.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            outer.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            outer |= {alias.name.split(".")[0] for alias in node.names}
    return inner, outer


def test_every_module_has_its_place():
    assert sorted(LEVEL) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    inner, _ = imports_of(module)
    assert {name for name in inner if LEVEL[name] >= LEVEL[module]} == set()


def test_only_three_modules_know_snntorch():
    assert {module for module in MODULES if "snntorch" in imports_of(module)[1]} == {
        "connections",
        "inner",
        "neurons",
    }


def test_everything_public_is_exported_and_documented():
    for name in snn_homeostasis.__all__:
        assert getattr(snn_homeostasis, name).__doc__, name
