"""Where a config lies, and the folders that its own modules may be imported from."""

from __future__ import annotations

import os
from pathlib import Path

from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.paths import bundled


def import_paths(config: Path, inputs: Path | None = None) -> tuple[Path, ...]:
    """Return the folders that a config's own modules may live in.

    Its own folder and that folder's parent, attached code repositories, and the kit's own place.
    """
    kit = Path(__file__).resolve().parents[2]
    folder = config.resolve().parent
    found = [folder, folder.parent]
    if inputs is not None and inputs.is_dir():
        found += _code_repositories(inputs)
    return tuple(dict.fromkeys([*found, kit]))


def _code_repositories(inputs: Path, depth: int = 4) -> list[Path]:
    """Return attached folders that look like code: with a setup file, or a package right below them."""
    found: list[Path] = []
    level = [inputs]
    for _ in range(depth):
        below: list[Path] = []
        for folder in level:
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            names = {entry.name for entry in entries}
            if folder != inputs and names & {"setup.py", "setup.cfg", "pyproject.toml"}:
                found.append(folder)
                continue
            # A data set's folders hold thousands of files and no code: nothing to descend into.
            below += [Path(entry.path) for entry in entries[:200] if entry.is_dir(follow_symlinks=False)]
        level = below
    return sorted(found)


def find_config(name: str | Path) -> Path:
    """Return the config file of a given path, or of that name among the kit's own.

    Raises:
        ConfigError: There is none; the message has the names that there are.
    """
    path = Path(name)
    if path.is_file():
        return path.absolute()
    folder = bundled("configs")
    own = folder / path.name if path.suffix == ".py" else folder / f"{path.name}.py"
    if not path.is_absolute() and own.is_file():
        return own
    names = ", ".join(sorted(item.name for item in folder.glob("*.py") if not item.name.startswith("_")))
    raise ConfigError(
        f"There is no config {name}.", f"Give the path of a file, or one of the kit's own: {names}."
    )
