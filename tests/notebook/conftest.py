"""What several tests of the notebooks need."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from support.notebooks import NOTEBOOK


@pytest.fixture(scope="module")
def notebook() -> Any:
    """Return the notebook that trains. Not to be changed."""
    return nbformat.read(NOTEBOOK, as_version=4)
