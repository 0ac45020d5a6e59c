"""``python -m mapsage_kaggle`` is the same as ``mapsage-kaggle``."""

from __future__ import annotations

import sys

from mapsage_kaggle.cli import main

if __name__ == "__main__":
    sys.exit(main())
