"""Packs a test split's masks for a benchmark, and checks that none is missing or wrong."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.imagery.writing import Labels, replacing
from mapsage_kaggle.messages import Message


def write_submission(archive: Path, masks: Mapping[str, Path]) -> None:
    """Zip masks, each by its file's name, in order of name, as plain numbers without colours.

    Args:
        archive: Where to.
        masks: The mask's file by the name in the archive.
    """
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(masks):
            # A fixed time, so that the same masks give the same bytes.
            with Image.open(masks[name]) as picture, io.BytesIO() as plain:
                Image.fromarray(np.asarray(picture)).save(plain, "PNG", compress_level=4)
                target.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), plain.getvalue())


def check_submission(archive: Path, expected: Mapping[str, tuple[int, int]], labels: Labels) -> None:
    """Decode every mask in an archive and compare it with what the benchmark expects.

    Args:
        archive: The zip.
        expected: Width and height of each mask, by its name in the archive.
        labels: Which values there may be; none of them for *no data*.

    Raises:
        DataError: A mask is missing, too many, of another size, or has a value that is no class. Names the
            first five and counts the rest.
    """
    problems = list(_problems(archive, expected, labels))
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        count = Message("{count} problem", len(problems)) + ("s" if len(problems) > 1 else "")
        raise DataError(
            f"{archive} is not complete, {count}:\n  " + "\n  ".join(problems[:5]) + more + "\n",
            "Mend or replace the images of the test split that are named, and run the command again.",
        )


def _problems(archive: Path, expected: Mapping[str, tuple[int, int]], labels: Labels) -> Iterator[str]:
    first, last = min(labels.numbers), max(labels.numbers)
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
        for name in sorted(expected.keys() - set(names)):
            yield f"{name}: missing"
        for name in sorted(set(names) - expected.keys()):
            yield f"{name}: belongs to no image of the test split"
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{name}: {names.count(name)} times"
        for name in sorted(expected.keys() & set(names)):
            try:
                with Image.open(io.BytesIO(content.read(name)), formats=("PNG",)) as picture:
                    mask = np.asarray(picture)
            except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
                yield f"{name}: cannot be decoded ({error})"
                continue
            width, height = expected[name]
            if mask.shape != (height, width):
                found = " x ".join(str(side) for side in (*mask.shape[1::-1], *mask.shape[2:]))
                yield f"{name}: {found}, expected {width} x {height}"
                continue
            wrong = [int(value) for value in np.unique(mask) if value not in labels.numbers]
            if wrong:
                values = ", ".join(map(str, wrong[:5]))
                yield f"{name}: values {values}, expected {first} to {last}"
