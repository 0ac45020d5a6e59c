"""Write ``mapsage_train.ipynb`` from ``mapsage_train.py``, the same bytes every time.

The script is the source; nobody edits the notebook. A test compares the two.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

SOURCE = Path(__file__).resolve().with_name("mapsage_train.py")


def notebook_text(source: Path = SOURCE) -> str:
    """Return the notebook as JSON, without outputs, each cell's id made from its place."""
    notebook = jupytext.read(source, fmt="py:percent")
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
    SOURCE.with_suffix(".ipynb").write_text(notebook_text(), encoding="utf-8")
