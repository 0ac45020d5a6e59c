"""Find a config's data roots and pretrained weights among what is attached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.reading import data_roots_of, datasets_of, setting_of_root, type_name
from mapsage_kaggle.config.weights import pretrained_of, weights_files
from mapsage_kaggle.data import datasets
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.walk import walk


def find_data(cfg: Mapping[str, Any], inputs: Path) -> dict[str, Path]:
    """Return where the config's data roots are here, by the name that the config gives them.

    A root that exists as written is kept. One that does not is looked for below the inputs: the
    kit's own data sets by their shape, others by the folders that the config expects within them.

    Raises:
        DataError: One is not to be found, or several fit.
    """
    found: dict[str, Path] = {}
    for name, kind in data_roots_of(cfg).items():
        if Path(name).is_dir():
            found[name] = Path(name).absolute()
            continue
        layout = _OWN_LAYOUTS.get(kind)
        if layout is not None:
            roots = datasets.find_data_roots(inputs) if inputs.is_dir() else ()
            setting = setting_of_root(cfg, name)
            chosen = datasets.choose_data_root(roots, searched=inputs, layout=layout, setting=setting)
            found[name] = chosen.path
        elif (place := _find_by_layout(cfg, name, inputs)) is not None:
            found[name] = place
    return found


_OWN_LAYOUTS: Mapping[str, datasets.Layout] = {"EarthVQADataset": "earthvqa", "LoveDASplitDataset": "loveda"}


def _find_by_layout(cfg: Mapping[str, Any], root: str, inputs: Path) -> Path | None:
    """Return the folder below the inputs that holds what the config expects in ``root``.

    Of several, the one that has ``root``'s own name; of those, the one that lies highest. A root of
    which the config says nothing is looked for by its name alone; None where that is not to be found
    either, since the data set may know better.

    Raises:
        DataError: Nothing has the layout, or several have.
    """
    layout = layout_of(cfg, root)
    own_name = Path(root).name.casefold()

    def fits(folder: Path) -> bool:
        if not layout:
            return folder.name.casefold() == own_name
        return all((folder / item).exists() for item in layout)

    found = [folder for level in _levels(inputs) for folder in level if fits(folder)]
    named = [folder for folder in found if folder.name.casefold() == own_name]
    fitting = named or found  # from the top down
    best = [folder for folder in fitting if len(folder.parts) == len(fitting[0].parts)]
    if len(best) == 1 or not (layout or best):
        return best[0] if best else None
    expected = ", ".join(map(str, layout)) or Path(root).name
    if best:
        raise DataError(
            Message(
                "{count} folders below {inputs} may be the config's data_root {root} (with "
                "{expected}): {names}.",
                len(best),
                inputs,
                repr(root),
                expected,
                ", ".join(map(str, best)),
            ),
            Message("Detach all but one, or name it: {setting}", setting_of_root(cfg, root)),
        )
    raise DataError(
        Message(
            "The config's data_root {root} does not exist, and no folder below {inputs} holds {expected}.",
            repr(root),
            inputs,
            expected,
        ),
        Message(
            "Attach the data set as input; if it was attached just now, wait a minute and try again. "
            "Or say where it lies: {setting}",
            setting_of_root(cfg, root),
        ),
    )


def count_images(cfg: Mapping[str, Any], inputs: Path) -> int | None:
    """Return how many images a config trains on, repeats counted; None where its data are not here."""
    try:
        roots = find_data(cfg, inputs)
        return _count((cfg.get("train_dataloader") or {}).get("dataset") or {}, roots) or None
    except (DataError, OSError):
        return None


def _count(dataset: Mapping[str, Any], roots: Mapping[str, Path]) -> int:
    """Return how many images a data set gives, which may wrap others.

    Raises:
        DataError: Its images and masks do not match.
        OSError: Its files are not where its config says, or cannot be read.
    """
    kind, inner = type_name(dataset.get("type")), dataset.get("dataset")
    if isinstance(inner, Mapping):
        return _count(inner, roots) * (int(dataset.get("times") or 1) if kind == "RepeatDataset" else 1)
    if dataset.get("datasets"):
        return sum(_count(item, roots) for item in dataset["datasets"])
    root = roots.get(str(dataset.get("data_root")), Path(str(dataset.get("data_root") or "")))
    if kind in _OWN_LAYOUTS:
        return len(datasets.list_pairs(datasets.read_data_root(root).split(dataset.get("split", "Train"))))
    listing = root / str(dataset.get("ann_file") or "")
    if listing.is_file():
        return sum(1 for line in listing.read_text(encoding="utf-8").splitlines() if line.strip())
    prefix = dataset.get("data_prefix")
    folder = root / str(prefix.get("img_path", "") if isinstance(prefix, Mapping) else "")
    if not folder.is_dir() or folder == root:
        raise FileNotFoundError(folder)
    suffix = str(dataset.get("img_suffix") or "")
    return sum(
        file.suffix.lower() in datasets.IMAGE_SUFFIXES
        and file.name.endswith(suffix)
        and not file.name.startswith(".")
        for file in folder.rglob("*")
    )


_MAX_DEPTH = 6


def layout_of(cfg: Mapping[str, Any], root: str) -> tuple[Path, ...]:
    wanted: list[str] = []
    for name in ("train_dataloader", "val_dataloader"):
        for item in datasets_of((cfg.get(name) or {}).get("dataset") or {}):
            if item.get("data_root") != root:
                continue
            prefix = item.get("data_prefix")
            places = [*(prefix.values() if isinstance(prefix, Mapping) else ()), item.get("ann_file")]
            wanted += [place for place in places if isinstance(place, str) and place]
    return tuple(dict.fromkeys(map(Path, wanted)))


def _levels(folder: Path) -> Iterator[list[Path]]:
    """Yield a folder, then the folders in it, and so on downwards."""
    level = [folder] if folder.is_dir() else []
    for _ in range(_MAX_DEPTH):
        yield level
        level = [
            Path(entry.path)
            for parent in level
            for entry in scandir(parent)
            if entry.is_dir(follow_symlinks=False) and not datasets.is_debris(entry.name)
        ]


def scandir(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)[:500]
    except OSError:
        return []


def find_pretrained(cfg: Mapping[str, Any], inputs: Path) -> dict[str, Path]:
    """Return the attached file for each pretrained weight of the config, by the config's name for it."""
    return _attached(pretrained_of(cfg), inputs)


def find_start(cfg: Mapping[str, Any], inputs: Path) -> Path | None:
    """Return the file that a config's ``load_from`` names; of an address the attached file of that name.

    Returns:
        The file, whether it is there or not; None where there is no ``load_from``, or nothing of the name
        of an address is attached.
    """
    name = str(cfg.get("load_from") or "")
    if "://" not in name:
        return Path(name) if name else None
    return _attached((name,), inputs).get(name)


def _attached(names: Sequence[str], inputs: Path) -> dict[str, Path]:
    found = {name: Path(name).absolute() for name in names if Path(name).is_file()}
    missing = [name for name in names if name not in found]
    if not missing or not inputs.is_dir():
        return found
    wanted: dict[str, list[str]] = {}
    for name in missing:  # several may stand for one file: an address, and mmengine's name for it
        for file in weights_files(name):
            wanted.setdefault(file, []).append(name)
    for path in sorted(walk(inputs, want_file=lambda name: name in wanted).files):
        for name in wanted[Path(path).name]:
            found.setdefault(name, Path(path))
    return found
