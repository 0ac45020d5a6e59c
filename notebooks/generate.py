"""Write each notebook from the script beside it, the same bytes every time.

The script is the source; nobody edits the notebook. A test compares the two. The cell that finds the kit
is written once, in ``mapsage_train.py``.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

SOURCE = Path(__file__).resolve().with_name("mapsage_train.py")
SOURCES = (SOURCE, SOURCE.with_name("mapsage_selftest.py"), SOURCE.with_name("mapsage_maps.py"))
KIT_CELL = "# (the cell of mapsage_train.py that finds the kit)"


def notebook_text(source: Path = SOURCE) -> str:
    """Return the notebook as JSON, without outputs, each cell's id made from its place."""
    notebook = jupytext.read(source, fmt="py:percent")
    [kit] = [cell.source for cell in jupytext.read(SOURCE).cells if "def choose_kit" in cell.source]
    for cell in notebook.cells:
        cell.source = cell.source.replace(KIT_CELL, kit)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"{number:02d}-{cell.cell_type}"
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for script in SOURCES:
        script.with_suffix(".ipynb").write_text(notebook_text(script), encoding="utf-8")
