"""Imports point downwards only, `import mapsage_kaggle` stays light, and nothing grows too long."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mapsage_kaggle"

# Lowest first. A room may import rooms of earlier rows only, whether at its top or in a function; the
# modules of a room that is a package may import each other. What is imported for types alone does not
# count. The package itself (__init__) hands its public names out lazily, and may name any room.
ROWS: tuple[tuple[str, ...], ...] = (
    # The ground: values and facts, from the standard library only.
    ("messages",),
    ("errors", "outside"),
    ("paths", "schema", "walk", "kit"),
    ("events",),
    ("processes",),
    ("clock",),
    ("pace", "records"),
    ("spec",),
    # This machine, and what is counted.
    ("machine", "metrics"),
    ("checks",),
    # The rooms.
    ("checkpoints", "config", "imagery"),
    ("data",),
    ("display", "engine", "relay"),
    ("setup", "training"),
    ("jobs",),
    # The doors.
    ("demo", "notebook"),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
STANDARD_LIBRARY_ONLY = frozenset(
    {
        "messages",
        "errors",
        "outside",
        "schema",
        "paths",
        "walk",
        "kit",
        "events",
        "clock",
        "pace",
        "records",
        "spec",
    }
)
WITHOUT_TORCH_AT_IMPORT = frozenset(room for room in RANK if room not in {"engine", "__main__"})

ENGINE_LIBRARIES = frozenset({"mmengine", "mmcv", "mmseg"})
MAX_LINES = {"file": 700, "class": 360, "function": 80}
MAX_FILES_AT_THE_ROOT = 20
HEAVY = ("torch", "mmengine", "mmcv", "mmseg", "ipywidgets", "matplotlib", "kaggle", "psutil")


@dataclass(frozen=True)
class Import:
    """One imported module, with where it stands."""

    module: str
    target: str
    line: int
    deferred: bool
    types_only: bool = False

    @property
    def room(self) -> str:
        return self.module.split(".")[1] if "." in self.module else "__init__"

    @property
    def top(self) -> str:
        return self.target.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str, path: Path) -> Iterator[Import]:
    yield from imports_in(module, path.read_text(encoding="utf-8"), package=path.name == "__init__.py")


def imports_in(module: str, source: str, *, package: bool = False) -> Iterator[Import]:
    def visit(node: ast.AST, deferred: bool, types_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, deferred, types_only)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = module.split(".")
                    kept = len(parts) - child.level + (1 if package else 0)
                    base = ".".join([*parts[:kept], *([base] if base else [])])
                for alias in child.names:
                    inner_module = f"{base}.{alias.name}"
                    is_module = base == "mapsage_kaggle" or inner_module in modules()
                    target = inner_module if is_module else base
                    yield Import(module, target, child.lineno, deferred, types_only)
            else:
                inner = deferred or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                # What only a type checker reads does not happen at import.
                for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from visit(child, inner or for_types, types_only or for_types)

    yield from visit(ast.parse(source), False, False)


def all_imports() -> list[Import]:
    return [found for module, path in modules().items() for found in imports_of(module, path)]


def against_the_layers(found: Import) -> bool:
    if found.top != "mapsage_kaggle" or "." not in found.target or found.room == "__init__":
        return False
    if found.types_only:
        return False
    target = found.target.split(".")[1]
    return target in RANK and target != found.room and RANK[target] >= RANK[found.room]


def test_every_module_has_its_row() -> None:
    rooms = {module.split(".")[1] for module in modules() if "." in module}

    assert rooms - set(RANK) == set()


def test_imports_point_downwards_only() -> None:
    assert [str(found) for found in all_imports() if against_the_layers(found)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = set(modules())
    below: dict[str, set[str]] = {name: set() for name in names}
    for found in all_imports():
        if not found.types_only:
            below[found.module] |= {found.target} & names
    while ends := {name for name, targets in below.items() if not targets}:
        below = {name: targets - ends for name, targets in below.items() if name not in ends}
    assert below == {}


def test_only_the_engine_imports_the_engine_libraries() -> None:
    def allowed(found: Import) -> bool:
        if found.target == "mmengine.config" and found.deferred:
            return found.room in {"config", "engine"} or found.types_only
        return found.room == "engine"

    wrong = [found for found in all_imports() if found.top in ENGINE_LIBRARIES and not allowed(found)]
    assert [str(found) for found in wrong] == []


def test_the_engine_runs_in_children_only() -> None:
    wrong = [
        found
        for found in all_imports()
        if found.target.startswith("mapsage_kaggle.engine") and found.room != "engine"
    ]
    assert [str(found) for found in wrong] == []


def test_the_lowest_rooms_use_the_standard_library_only() -> None:
    wrong = [
        found
        for found in all_imports()
        if found.room in STANDARD_LIBRARY_ONLY
        and found.top not in sys.stdlib_module_names
        and found.top != "mapsage_kaggle"
    ]
    assert [str(found) for found in wrong] == []


@pytest.mark.parametrize(
    ("library", "place"),
    [
        ("kaggle", "mapsage_kaggle.relay.client"),
        ("kagglesdk", "mapsage_kaggle.relay.client"),
        ("kagglehub", "mapsage_kaggle.training.upload"),
        ("ipywidgets", "mapsage_kaggle.display"),
        ("psutil", "mapsage_kaggle.processes"),
    ],
)
def test_a_library_is_imported_in_its_one_place_and_only_when_needed(library: str, place: str) -> None:
    wrong = [
        found
        for found in all_imports()
        if found.top == library and not (found.deferred and found.module.startswith(place))
    ]
    assert [str(found) for found in wrong] == []


@pytest.mark.parametrize(
    ("module", "source", "against"),
    [
        ("mapsage_kaggle.clock", "from mapsage_kaggle.training.supervisor import run", True),
        ("mapsage_kaggle.clock", "from mapsage_kaggle import training", True),
        ("mapsage_kaggle.clock", "def f():\n    import mapsage_kaggle.training.supervisor", True),
        ("mapsage_kaggle.clock", "from .training import run", True),
        ("mapsage_kaggle.engine.loop", "from ..training import run", True),
        ("mapsage_kaggle.paths", "from mapsage_kaggle.walk import walk", True),
        ("mapsage_kaggle.clock", "if TYPE_CHECKING:\n    from mapsage_kaggle import training", False),
        ("mapsage_kaggle.clock", "from mapsage_kaggle.errors import UsageError", False),
        ("mapsage_kaggle.engine.loop", "from mapsage_kaggle.engine import seeding", False),
        ("mapsage_kaggle.engine.loop", "from .seeding import derive", False),
    ],
)
def test_the_rule_itself_tells_up_and_across_from_down(module: str, source: str, against: bool) -> None:
    assert any(against_the_layers(found) for found in imports_in(module, source)) is against


def lines_of(path: Path) -> Iterator[tuple[str, str, int]]:
    text = path.read_text(encoding="utf-8")
    yield "file", path.name, len(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield kind, node.name, (node.end_lineno or 0) - node.lineno + 1


def test_no_file_class_or_function_is_too_long_to_be_read() -> None:
    long = [
        f"{module}: the {kind} {name} has {lines} lines"
        for module, path in modules().items()
        if path.parent.name != "locale"  # tables of text
        for kind, name, lines in lines_of(path)
        if lines > MAX_LINES[kind]
    ]
    assert long == []


def test_few_files_stand_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_FILES_AT_THE_ROOT


def light_modules() -> list[str]:
    found = [
        module
        for module in modules()
        if "." in module and module.split(".")[1] in WITHOUT_TORCH_AT_IMPORT and module != "mapsage_kaggle"
    ]
    return ["mapsage_kaggle", *found]


def test_importing_the_kit_and_its_lower_rooms_loads_nothing_heavy() -> None:
    """One process imports one module after the other, and tells which brought something heavy."""
    code = f"""
import importlib, sys
for name in {light_modules()!r}:
    before = set(sys.modules)
    importlib.import_module(name)
    heavy = sorted(set({HEAVY!r}) & (set(sys.modules) - before))
    if heavy:
        print(name, "loads", *heavy)
"""
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert answer.stdout == ""


@pytest.mark.parametrize("room", ["config.patch", "training.supervisor", "setup.install", "cli"])
def test_importing_an_upper_room_loads_no_engine(room: str) -> None:
    code = f"import sys, mapsage_kaggle.{room}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )

    assert answer.stdout.split() == []
