"""Remedies for errors in importing or building a config's parts."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator

from mapsage_kaggle.config.packages import PACKAGES, missing
from mapsage_kaggle.config.requirements import without_ops
from mapsage_kaggle.errors import ConfigError, MachineError, MapsageError
from mapsage_kaggle.messages import Message

_WANTS_OPS = re.compile(r"(?:Please install onedl-mmcv for|requires) (\S+)")


def known_problem(error: BaseException) -> MapsageError | None:
    """Return an error in building or importing with its remedy; None where none is known.

    What it was raised from, or while handling, counts as well.
    """
    for cause in causes(error, handled=True):
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package = cause.name.partition(".")[0]
            if cause.name == "mmcv._ext":
                return without_ops("The config has code that imports mmcv.ops")
            if package in ("torch", "mmengine", "mmcv", "mmseg"):
                return MachineError(
                    Message("The training packages are missing: {last}.", cause),
                    "Run the install cell first.",
                )
            if package in PACKAGES:
                return missing(package, f"The config imports {cause.name}")
            return ConfigError(
                Message("The module {module} is missing, which {place} imports.", cause.name, _place(cause)),
                "Attach the code that holds it beside the config, install its package, or take it out of "
                "custom_imports.",
            )
    text = str(error)
    if isinstance(error, ImportError) and text.startswith("Failed to import custom modules"):
        *_, first = causes(error, handled=True)
        return ConfigError(
            Message("{place} imports what is not there: {why}.", _place(first), str(first)),
            "Mend it for the versions that are installed, or take it out of custom_imports.",
        )
    if isinstance(error, (RuntimeError, ImportError)) and "onedl-mmcv" in text:
        match = _WANTS_OPS.search(text)
        return without_ops(f"The model uses {match.group(1) if match else 'a layer'}")
    if isinstance(error, ImportError) and "onedl-mmdetection" in text:
        return missing("mmdet", "The model has a head of mmdetection")
    return None


def causes(error: BaseException, *, handled: bool = False) -> Iterator[BaseException]:
    """Yield an error and what it was raised from; if ``handled``, also while handling what."""
    cause: BaseException | None = error
    for _ in range(8):  # a chain of causes may be a ring
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (cause.__context__ if handled else None)


def _place(error: BaseException) -> str:
    """Return the file that imports in vain; of mmengine's own, what it does that for."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [file for file in files if not file.startswith("<frozen")]
    return own[-1] if own and "/mmengine/" not in own[-1] else "custom_imports"
