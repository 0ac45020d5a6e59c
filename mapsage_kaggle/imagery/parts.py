"""The finished rows of a large scene, kept on the disk until the scene is complete.

    OUT/unfinished/<digest>/plan.json                what they depend on
    OUT/unfinished/<digest>/row_0003.mask            uint8, deflated, of shape (settled lines, width)
    OUT/unfinished/<digest>/row_0003.probabilities   uint8, deflated, of shape (classes, settled lines, width)

The digest is the name's: one name may be a folder of another, and rows are removed with their folder.
A row is what one row of windows settles, see :meth:`mapsage_kaggle.imagery.windows.Axis.settled`. Each file
gets its final name only when it is complete, and zlib's format has a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mapsage_kaggle.imagery.reading import Bytes
from mapsage_kaggle.imagery.windows import Axis
from mapsage_kaggle.imagery.writing import replacing

UNFINISHED = "unfinished"
_FAST_DEFLATE = 1


class Parts:
    """The finished rows of one scene. Rows of another plan are removed.

    Args:
        out: The folder that everything is written below.
        name: The scene's.
        rows: Windows from top to bottom.
        width: Of the scene, in pixels.
        num_probabilities: Bands of the probability map; 0 for none.
        stamp: What else the rows depend on.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        rows: Axis,
        *,
        width: int,
        num_probabilities: int,
        stamp: Mapping[str, Any],
    ) -> None:
        folder = out / UNFINISHED / hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        self._folder, self._rows, self._width, self._num_bands = folder, rows, width, num_probabilities
        plan = json.dumps(
            {**stamp, "starts": rows.starts, "window": rows.size, "height": rows.length, "width": width}
        )
        file = folder / "plan.json"
        if not file.is_file() or file.read_text(encoding="utf-8") != plan:
            shutil.rmtree(folder, ignore_errors=True)
            with replacing(file) as temporary:
                temporary.write_text(plan, encoding="utf-8")

    def num_done(self) -> int:
        """Return how many rows are done, from the top without a gap."""
        for index in range(len(self._rows.starts)):
            if not self._is_whole(index):
                return index
        return len(self._rows.starts)

    def _is_whole(self, index: int) -> bool:
        """Whether a row can be read: its name alone does not tell, on a disk that was full or went away."""
        try:
            self.mask(index)
            if self._num_bands:
                self.probabilities(index)
        except (OSError, zlib.error, ValueError):
            return False
        return True

    def write(self, index: int, mask: Bytes, probabilities: Bytes | None) -> None:
        bands = [mask] if probabilities is None else [mask, probabilities]
        # The mask last: where it is, the row is done.
        for file, values in reversed(list(zip(self._files(index), bands, strict=True))):
            with replacing(file) as temporary:
                temporary.write_bytes(zlib.compress(np.ascontiguousarray(values).data, _FAST_DEFLATE))

    def mask(self, index: int) -> Bytes:
        """Return a row's mask, of shape ``(lines, width)``."""
        mask: Bytes = self._load(self._files(index)[0], 1, index)[0]
        return mask

    def probabilities(self, index: int) -> Bytes:
        """Return a row's probabilities, of shape ``(classes, lines, width)``."""
        return self._load(self._files(index)[1], self._num_bands, index)

    def remove(self) -> None:
        """Remove all rows of the scene, and the folder above them if it is then empty."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):
            self._folder.parent.rmdir()

    def _files(self, index: int) -> list[Path]:
        kinds = ["mask", "probabilities"] if self._num_bands else ["mask"]
        return [self._folder / f"row_{index:04d}.{kind}" for kind in kinds]

    def _load(self, file: Path, num_bands: int, index: int) -> Bytes:
        top, bottom = self._rows.settled(index)
        content = zlib.decompress(file.read_bytes(), bufsize=num_bands * (bottom - top) * self._width)
        return np.frombuffer(content, np.uint8).reshape(num_bands, bottom - top, self._width)
