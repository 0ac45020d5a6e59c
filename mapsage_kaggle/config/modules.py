"""Where a config lies, and the folders that its own modules may be imported from.

What is attached is data, and none of it is imported unless it came with the config or is named. Nothing
of this is put into a child's environment, where every process that it starts would run what is there: a
child adds the folders to its own path, behind everything that is installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from mapsage_kaggle.errors import ConfigError, UsageError
from mapsage_kaggle.kit import PACKAGE
from mapsage_kaggle.machine import attached, subfolders
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import bundled
from mapsage_kaggle.walk import walk

_NEVER_SHADOW = frozenset(
    {PACKAGE, "configs", "demo", "docs", "examples", "scripts", "test", "tests", "tools"}
)
"""A copy of the kit, and folders that no config imports, although careless wheels install them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodePlaces:
    """The folders that a config's own modules are imported from.

    Attributes:
        first: They go before everything that is installed, because they were named and shadow it.
        last: They go behind it.
        messages: One sentence for each that was named.
    """

    first: tuple[Path, ...] = ()
    last: tuple[Path, ...] = ()
    messages: tuple[str, ...] = ()

    def to_json(self) -> dict[str, list[str]]:
        return {"first": [str(path) for path in self.first], "last": [str(path) for path in self.last]}

    def start(self, module: str) -> tuple[str, str, str]:
        return ("mapsage_kaggle.engine.start", json.dumps(self.to_json()), module)


def use_code(places: Mapping[str, Sequence[str]]) -> None:
    """Make the modules in these folders importable in this process, which is a child."""
    sys.path[:0] = places.get("first", ())
    sys.path += [path for path in places.get("last", ()) if path not in sys.path]


def code_places(config: Path, inputs: Path, named: Sequence[Path] = ()) -> CodePlaces:
    """Return where a config's own modules may be imported from.

    Args:
        config: The config. Its own folder and that folder's parent count; where it is attached, all
            folders up to the root of the source that it came with; where it is the kit's own, none.
        inputs: Kaggle's input folder.
        named: Folders that a person names (``--code``).

    Raises:
        UsageError: A named one is no folder.
        ConfigError: A folder that came with the config has a package that is installed, too.
    """
    first: list[Path] = []
    last: list[Path] = []
    messages: list[str] = []
    for path in named:
        folder = path.resolve()
        if not folder.is_dir():
            raise UsageError(
                Message("--code {path} is no folder.", path), "Name the folder that holds the package."
            )
        shadowed = shadows(folder)
        (first if shadowed else last).append(folder)
        messages.append(
            Message(
                "Code is imported from {folder}, before the installed {names}.", folder, ", ".join(shadowed)
            )
            if shadowed
            else Message("Code is imported from {folder}.", folder)
        )
    for folder in _beside(config, inputs):
        if folder in first or folder in last:
            continue
        shadowed = shadows(folder)
        if shadowed:
            raise ConfigError(
                Message(
                    "{folder} came with {config} and holds {names}, which is installed, too.",
                    folder,
                    config,
                    ", ".join(shadowed),
                ),
                Message(
                    "Remove it, or say that it is to be imported in place of the installed one: --code "
                    "{folder}",
                    folder,
                ),
            )
        last.append(folder)
    return CodePlaces(first=tuple(first), last=tuple(last), messages=tuple(messages))


def _beside(config: Path, inputs: Path) -> list[Path]:
    folder, inputs = config.resolve().parent, inputs.resolve()
    if folder.is_relative_to(bundled("configs")):
        return []
    if not folder.is_relative_to(inputs):
        return [folder, folder.parent]
    sources = [source for source in attached(inputs) if folder.is_relative_to(source)]
    root = sources[0] if sources else folder
    return [place for place in (folder, *folder.parents) if place.is_relative_to(root)]


def shadows(folder: Path) -> tuple[str, ...]:
    """Return the packages in a folder that are also found elsewhere; a copy of the kit is none of them."""
    found: list[str] = []
    for name in (path.name for path in subfolders(folder)):
        if name in _NEVER_SHADOW or not name.isidentifier() or not (folder / name / "__init__.py").is_file():
            continue
        spec = _installed(name)
        if spec is not None and not _lies_in(spec, folder):
            found.append(name)
    return tuple(found)


def _installed(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # of a module that something has put into sys.modules by hand
        return None


def _lies_in(spec: ModuleSpec, folder: Path) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return any(Path(place).resolve().is_relative_to(folder) for place in places)


def check_custom_imports(cfg: Mapping[str, Any], places: CodePlaces, inputs: Path) -> None:
    """Look whether what a config imports of its own is there, so that a refusal can say where it lies.

    Raises:
        ConfigError: A module is neither installed nor in these places, but in an attached folder.
    """
    wanted = (cfg.get("custom_imports") or {}).get("imports") or ()
    path = [str(place) for place in (*places.first, *places.last)]
    for module in [wanted] if isinstance(wanted, str) else wanted:
        top = str(module).partition(".")[0]
        if _installed(top) is not None or PathFinder.find_spec(top, path) is not None:
            continue
        named = frozenset({top, f"{top}.py"})
        found = walk(inputs, want_dir=named.__contains__, want_file=named.__contains__)
        folders = sorted({item.parent for item in (*found.dirs, *found.files)})
        if folders:
            raise ConfigError(
                Message(
                    "custom_imports names {module}, which is neither installed nor beside the config; "
                    "what is attached is not imported unless it is named. {folder} has it.",
                    module,
                    folders[0],
                ),
                Message("If you trust it: --code {folder}", folders[0]),
            )


def find_config(name: str | Path) -> Path:
    """Return the config file of a given path, or of that name among the kit's own.

    ``train_loveda`` is enough for ``train_loveda_kaggle.py``.

    Raises:
        ConfigError: There is none; the message has the names that there are.
    """
    path = Path(name)
    if path.is_file():
        return path.absolute()
    folder = bundled("configs")
    if not path.is_absolute():
        stem = path.name.removesuffix(".py")
        for own in (folder / f"{stem}.py", folder / f"{stem}_kaggle.py"):
            if own.is_file():
                return own
    names = ", ".join(sorted(item.name for item in folder.glob("*.py") if not item.name.startswith("_")))
    raise ConfigError(
        Message("There is no config {name}.", name),
        Message("Give the path of a file, or one of the kit's own: {names}.", names),
    )
