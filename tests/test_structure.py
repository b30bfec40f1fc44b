"""The house: imports run one way, each wing has one door, files are short."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import snn_homeostasis

PACKAGE = Path(snn_homeostasis.__file__).parent
FLOORS = [
    {"errors"},
    {"following", "layers", "state"},
    {"delays", "observe", "updates"},
    {"cells"},
    {"discovery", "distributed", "monitoring", "rule"},
    {"calibration"},
    {"homeostasis"},
    {"lightning", "rules"},
    {"__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The wing of a file, or the file itself at the top of the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]


def inner_imports(path: Path) -> list[Path]:
    """The modules of the package that a file imports, as paths without a suffix."""
    return [
        path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for node in imports_of(path)
        if node.level
    ]


def test_each_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way_and_through_doors(path):
    for module in inner_imports(path):
        room = room_of(module)
        if room == room_of(path):
            continue
        assert FLOOR_OF[room] < FLOOR_OF[room_of(path)], f"{path} imports upwards from {room}"
        assert module.parent == PACKAGE, f"{path} enters {room} by {module.name}, not by its door"


def test_no_files_import_each_other_in_a_circle():
    graph = {path.with_suffix(""): inner_imports(path) for path in FILES}
    list(TopologicalSorter(graph).static_order())


def test_the_top_is_small_and_files_are_short():
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    assert {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 320} == {}


def test_only_three_files_know_snntorch():
    outer = {
        path: {node.module.split(".")[0] for node in imports_of(path) if not node.level} for path in FILES
    }
    direct = {path for path in FILES if "import snntorch" in path.read_text().split('"""')[2]}
    knowing = {path for path in FILES if "snntorch" in outer[path]} | direct
    assert {path.stem for path in knowing} == {"connections", "upstream", "neurons"}


def test_everything_public_is_documented_and_has_an_example():
    for name in snn_homeostasis.__all__:
        public = getattr(snn_homeostasis, name)
        assert public.__doc__, name
        is_message = isinstance(public, type) and issubclass(public, Exception)
        assert is_message or ">>>" in public.__doc__, name
