"""Imports what training needs, at once and quickly."""

from __future__ import annotations

import gc
import importlib

TRAINING = (
    "yapf.yapflib.yapf_api",  # mmengine's Config formats with it, and imports it late
    "mapsage_kaggle.engine.register",
    "mapsage_kaggle.engine.runner",
    "mapsage_kaggle.engine.session",
)
"""What a training child imports, but for the modules that are run as programs."""


def import_ahead(*modules: str) -> None:
    """Import modules without looking for garbage meanwhile, which is a fifth of the time of imports.

    What is there then is never looked at again, and forks need no copies of it.

    Raises:
        Exception: One cannot be imported.
    """
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()
