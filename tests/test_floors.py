"""The floors of docs/design.md: a room imports what stands below it, and nothing above."""

import ast
from pathlib import Path

import pytest

import tsm_triton

PACKAGE = Path(tsm_triton.__file__).parent
# from the ground up; rooms of one line may import each other's neighbours, never each other
FLOORS = (
    {"version", "choices", "torch_private", "late", "files", "arguments", "progress", "_ops"},
    {"extras", "activations", "threads"},
    {"backwards"},
    {"reference", "kernels"},
    {"ops"},
    {"sites"},
    {"functional"},
    {"modules"},
    {"dataflow", "testing"},
    {"integrations"},
    {"patching", "preparation"},
    {"backbones", "fusion"},
    {"streaming"},
    {"checkpoints"},
    {"models"},
    {"video"},
    {"exporting", "training"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file names in its relative imports, those inside of functions too."""
    inside = path.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*inside[: len(inside) - node.level + 1], *(node.module or "").split(".")]
            named = [parts[0]] if parts[0] else [alias.name for alias in node.names]
            found |= set(named)
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_arrow_runs_up(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":  # the public names, from every floor
        return
    for other in rooms_imported(path) - {room, "__version__"}:
        assert FLOOR[other] < FLOOR[room], f"expected {room} above {other}, which it imports"


def test_every_room_has_its_floor():
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__p")}
    assert rooms - {"__init__", "py.typed"} == set(FLOOR)
