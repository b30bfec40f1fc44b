"""The folder reads in one direction."""

import ast
from pathlib import Path

import pytest

import snn_homeostasis

PACKAGE = Path(snn_homeostasis.__file__).parent
ORDER = [
    ["errors"],
    ["following", "passes", "sharded", "shortcuts", "state"],
    ["checks", "graphs"],
    ["bounds", "estimator", "neurons", "parameters", "interpolation", "kernels"],
    ["connections", "joint", "rates", "delayed_layer"],
    ["inner", "settings", "delays", "wrappers"],
    ["delay_connections", "ledger", "taps"],
    ["slots"],
    ["changes"],
    ["updates"],
    ["cells"],
    ["units", "discovery/isolation", "discovery/links", "discovery/marks"],
    ["discovery/alignment", "discovery/chains", "discovery/obstacles"],
    ["discovery/watching"],
    ["discovery/tracing"],
    ["discovery/finding"],
    ["discovery/building"],
    ["contributions", "discovery", "registry"],
    ["distributed"],
    ["rows", "teams"],
    ["sweep"],
    ["homeostasis"],
    ["rules"],
    ["__init__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
FILES = {
    str(path.relative_to(PACKAGE).with_suffix("")).removesuffix("/__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(FILES)


def imports_of(module: str) -> tuple[set[str], set[str]]:
    """The modules of the package, and the outer packages, that a module imports."""
    tree = ast.parse(FILES[module].read_text())
    inner, outer = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = FILES[module].parents[node.level - 1].relative_to(PACKAGE)
            inner.add(str(folder / node.module.replace(".", "/")))
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
