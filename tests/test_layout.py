"""The layout: rooms and their floors, imports that only go down, a small root, and tests for every room.

Imports are read from the source (those inside functions and under TYPE_CHECKING too), so nothing has to be imported.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_FILES_AT_THE_ROOT = 8

FLOORS = (
    ("support",),
    ("configs", "scoring"),
    ("data", "models", "metrics"),
    ("dataset", "training", "efficiency", "conversion"),
    ("evaluation", "runner", "dryrun", "training_data", "evaluate_efficiency"),
    ("train", "evaluate", "tools", "benchmarks"),
)
"""Rooms, from the ground up; a room imports from floors below its own."""

MODEL_FLOORS = (
    ("runtime", "frames", "hub", "tensor_file", "device"),
    ("alignment", "connector", "quantization"),
    ("encoders", "language"),
    ("sizes",),
    ("decoding", "checkpoint"),
    ("salmonn",),
    ("aligning", "released_rules"),
    ("build",),
)
"""The same inside `models/`."""

OLD_NAMES = ("beats", "ced", "qformer", "text", "whisper")
"""Files of one line in `models/`: public names that stay; nothing of ours imports them."""

NEVER_IMPORTED = ("tools", "benchmarks", "tests")


def source_files() -> list[Path]:
    folders = [ROOT / name for names in FLOORS for name in names if (ROOT / name).is_dir()]
    return sorted([*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))])


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> frozenset[str]:
    return frozenset(map(module_name, source_files()))


def imported_by(file: Path) -> set[str]:
    """Our own modules that a file imports, wherever in it: `from models import build` is `models.build`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}; write the whole name"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else node.module for name in inner]
        else:
            continue
        found.update(name for name in names if name in modules())
    return found - {module_name(file)}


@cache
def arrows() -> frozenset[tuple[str, str]]:
    """Every import of one of our modules by another: (importer, imported)."""
    return frozenset((module_name(file), name) for file in source_files() for name in imported_by(file))


def floor_of(room: str, floors: tuple[tuple[str, ...], ...]) -> int:
    return next(number for number, rooms in enumerate(floors) if room in rooms)


def not_downward(pairs: set[tuple[str, str]], floors: tuple[tuple[str, ...], ...], position: int) -> list[str]:
    """The arrows between rooms that do not lead to a lower floor; a room is a name's part at `position`."""
    wrong = []
    for importer, imported in sorted(pairs):
        upper, lower = importer.split(".")[position], imported.split(".")[position]
        if upper != lower and floor_of(upper, floors) <= floor_of(lower, floors):
            wrong.append(f"{importer} imports {imported}")
    return wrong


def test_every_file_has_its_room() -> None:
    rooms = {name for names in FLOORS for name in names}
    assert {name.split(".")[0] for name in modules()} <= rooms
    inside = {name for names in MODEL_FLOORS for name in names} | set(OLD_NAMES)
    assert {name.split(".")[1] for name in modules() if name.startswith("models.")} <= inside


def test_a_room_imports_from_floors_below_only() -> None:
    assert not_downward(set(arrows()), FLOORS, 0) == []


def test_a_room_of_the_models_imports_from_floors_below_only() -> None:
    inside = {pair for pair in arrows() if all(name.startswith("models.") for name in pair)}
    inside = {pair for pair in inside if pair[0].split(".")[1] not in OLD_NAMES}
    assert not_downward(inside, MODEL_FLOORS, 1) == []


def test_no_circle_of_imports() -> None:
    graph = {name: {imported for importer, imported in arrows() if importer == name} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' -> '.join(error.args[1])}")


def test_nobody_imports_tools_benchmarks_or_tests() -> None:
    wrong = {
        f"{importer} imports {imported}"
        for importer, imported in arrows()
        if imported.split(".")[0] in NEVER_IMPORTED and importer.split(".")[0] != imported.split(".")[0]
    }
    assert wrong == set()


def test_old_names_are_not_imported() -> None:
    old = {f"models.{name}" for name in OLD_NAMES}
    assert {pair for pair in arrows() if pair[1] in old} == set()


def test_the_root_stays_small() -> None:
    files = sorted(file.name for file in ROOT.glob("*.py"))
    assert len(files) <= MOST_FILES_AT_THE_ROOT, f"a new file belongs in a room: {', '.join(files)}"


def test_contributing_shows_the_floors() -> None:
    shown: dict[int, set[str]] = {}
    floor = 0
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if row := re.fullmatch(r"\| (\d*) ?\| ((?:`[a-z_./]+` ?)+) *\| .+ \|", line):
            floor = int(row[1]) if row[1] else floor
            names = {name.rstrip("/").removesuffix(".py") for name in re.findall("`([^`]+)`", row[2])}
            shown.setdefault(floor, set()).update(names)
    assert [shown[number] for number in sorted(shown)] == [set(names) for names in FLOORS]


def test_every_room_has_its_tests() -> None:
    rooms = [Path(name) for names in FLOORS for name in names]
    rooms += [folder.relative_to(ROOT) for folder in (ROOT / "models").iterdir() if (folder / "__init__.py").exists()]
    for room in rooms:
        tests = ROOT / "tests" / room
        if (ROOT / room).is_dir():
            assert any(tests.glob("test_*.py")), f"{room}/ has no tests: expected tests/{room}/test_*.py"
        else:
            file = tests.with_name(f"test_{room.name}.py")
            assert file.exists(), f"{room}.py has no tests: expected {file.relative_to(ROOT)}"


def test_no_test_file_imports_another() -> None:
    """What several test files use is in a file of its own in tests/ (tiny.py, runs.py, …) or in a conftest.py."""
    wrong = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            wrong += [
                f"{file.relative_to(ROOT)} imports {name}"
                for name in names
                if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
            ]
    assert wrong == []


def test_the_check_itself_sees_lazy_and_type_checking_imports(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from models.salmonn import SALMONN\n"
        "def late():\n    import dataset\n    from models import build\n",
        encoding="utf-8",
    )
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module != "typing":
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    assert {"models.salmonn.SALMONN", "models.build"} <= found
    assert not_downward({("data.audio", "dataset"), ("dataset", "data.audio")}, FLOORS, 0) == [
        "data.audio imports dataset"
    ]
