"""Starts a module of the engine with a config's own code importable.

    python -m mapsage_kaggle.engine.start '{"last": ["/folder"]}' mapsage_kaggle.engine.worker spec.json

A folder that takes precedence over what is installed must be on the path before anything is imported; and
none may be in the environment, where each process that Python starts would run the ``sitecustomize`` in it.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys

from mapsage_kaggle.config.modules import use_code
from mapsage_kaggle.engine.importing import TRAINING, import_ahead

if __name__ == "__main__":
    places, module = sys.argv[1:3]
    del sys.argv[1:3]
    use_code(json.loads(places))
    if module == "mapsage_kaggle.engine.worker":
        with contextlib.suppress(Exception):  # it fails again where it is told
            import_ahead(*TRAINING)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
