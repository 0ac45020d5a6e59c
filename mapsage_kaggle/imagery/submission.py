"""Pack a test split's masks for a benchmark, and check that none is missing or wrong."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.imagery.writing import Labels, replacing
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import listed

_MAX_TOLD = 5


def write_submission(archive: Path, masks: Mapping[str, Path]) -> None:
    """Zip masks, given by name in the archive, in order of name, as plain numbers without a palette."""
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(masks):
            # A fixed time, so that the same masks give the same bytes.
            with Image.open(masks[name]) as picture, io.BytesIO() as plain:
                Image.fromarray(np.asarray(picture)).save(plain, "PNG", compress_level=4)
                target.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), plain.getvalue())


def check_submission(
    archive: Path, expected: Mapping[str, tuple[int, int]], labels: Labels, *, name: Path | None = None
) -> None:
    """Decode every mask in an archive and compare it with what the benchmark expects.

    ``expected`` has the width and height of each mask, by its name in the archive. *No data* is not allowed.
    ``name`` is what to call the archive in the refusal; by default its own path.

    Raises:
        DataError: A mask is missing, unexpected, unreadable, of another size, or has a value that is no
            class. Lists the first five and counts the rest.
    """
    problems = list(_problems(archive, expected, labels))
    if problems:
        raise DataError(
            Message("{path} is not complete; problems: {count}.", name or archive, len(problems)),
            "Mend or replace the images of the test split that are named, and run the command again.",
            listed(problems, _MAX_TOLD),
        )


def _problems(archive: Path, expected: Mapping[str, tuple[int, int]], labels: Labels) -> Iterator[str]:
    first, last = min(labels.numbers), max(labels.numbers)
    with zipfile.ZipFile(archive) as content:
        names = Counter(content.namelist())
        for name in sorted(expected.keys() - names.keys()):
            yield Message("{name}: missing", name)
        for name in sorted(names.keys() - expected.keys()):
            yield Message("{name}: belongs to no image of the test split", name)
        for name in sorted(name for name, count in names.items() if count > 1):
            yield Message("{name}: {count} times", name, names[name])
        for name in sorted(expected.keys() & names.keys()):
            try:
                with Image.open(io.BytesIO(content.read(name)), formats=("PNG",)) as picture:
                    mask = np.asarray(picture)
            except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
                yield Message("{name}: cannot be decoded ({why})", name, error)
                continue
            width, height = expected[name]
            if mask.shape != (height, width):
                found = " x ".join(str(side) for side in (*mask.shape[1::-1], *mask.shape[2:]))
                yield Message("{name}: {found}, expected {wanted}", name, found, f"{width} x {height}")
                continue
            wrong = [int(value) for value in np.unique(mask) if value not in labels.numbers]
            if wrong:
                values = ", ".join(map(str, wrong[:_MAX_TOLD]))
                yield Message(
                    "{name}: values {values}, expected {first} to {last}", name, values, first, last
                )
