"""The notebooks' files: generated from their scripts, and self-explaining."""

from __future__ import annotations

import ast
import importlib.util
from typing import Any

import nbformat
import pytest
from support.notebooks import MAPS, NOTEBOOK, ROOT, SELFTEST, code_cells, kit_cell


@pytest.fixture(scope="module", params=[NOTEBOOK, SELFTEST, MAPS], ids=lambda path: path.stem)
def either(request: pytest.FixtureRequest) -> Any:
    """Return each of the notebooks."""
    return nbformat.read(request.param, as_version=4)


def test_each_notebook_is_what_its_script_gives() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "notebooks" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scripts = [path.with_suffix(".py") for path in (NOTEBOOK, SELFTEST, MAPS)]
    assert list(module.SOURCES) == scripts
    for script, path in zip(scripts, (NOTEBOOK, SELFTEST, MAPS), strict=True):
        assert module.notebook_text(script) == path.read_text(encoding="utf-8"), "run `make notebook`"


def test_each_finds_the_kit_in_the_same_cell(notebook: Any, either: Any) -> None:
    assert kit_cell(either) == kit_cell(notebook)


def test_it_holds_no_outputs_and_names_a_kernel(either: Any) -> None:
    assert [cell for cell in code_cells(either) if cell.outputs or cell.execution_count] == []
    assert either.metadata.kernelspec.name == "python3"


def test_every_cell_of_code_follows_a_sentence(either: Any) -> None:
    kinds = [cell.cell_type for cell in either.cells]
    assert kinds[0] == "markdown"
    assert all(kinds[index - 1] == "markdown" for index, kind in enumerate(kinds) if kind == "code")


def test_no_cell_but_the_one_that_finds_the_kit_defines_or_catches_anything(either: Any) -> None:
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.Try, ast.With, ast.For, ast.While, ast.If)
    found = [
        (cell.id, type(node).__name__)
        for cell in code_cells(either)
        if cell.source != kit_cell(either)  # there is no kit yet that could define anything
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, forbidden)
    ]
    assert found == []


def test_one_cell_holds_the_parameters_and_all_of_them_are_used(either: Any) -> None:
    tagged = [cell for cell in code_cells(either) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = {node.targets[0].id for node in ast.parse(tagged[0].source).body if isinstance(node, ast.Assign)}
    others = "\n".join(cell.source for cell in code_cells(either) if cell is not tagged[0])
    used = {node.id for node in ast.walk(ast.parse(others)) if isinstance(node, ast.Name)}
    assert names - used == set()


def test_the_steps_come_in_the_order_of_the_design(notebook: Any) -> None:
    source = "\n".join(cell.source for cell in code_cells(notebook))
    steps = (".install(", ".preflight(", ".discover()", ".configure()", ".train()", ".what_next()")
    places = [source.index(step) for step in steps]
    assert places == sorted(places)
