"""What is imported before training is."""

from __future__ import annotations

import gc
import sys

import pytest

from mapsage_kaggle.engine.importing import import_ahead


def test_garbage_is_looked_for_again_after_an_import_that_failed() -> None:
    frozen = gc.get_freeze_count()
    try:
        with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
            import_ahead("this", "nowhere_at_all", "antigravity")
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
    assert "this" in sys.modules
    assert "antigravity" not in sys.modules
