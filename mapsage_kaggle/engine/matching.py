"""Check that the files that a data set names exist, and say what to do where names or suffixes differ."""

from __future__ import annotations

import errno
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from mapsage_kaggle.config.reading import leaves_with_keys
from mapsage_kaggle.engine.contents import files_of
from mapsage_kaggle.engine.fast.plan import leaves_of
from mapsage_kaggle.engine.reading import GuardedDataset
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.messages import Message, settings_text
from mapsage_kaggle.outside import joined
from mapsage_kaggle.paths import KagglePaths
from mapsage_kaggle.walk import walk

_Item: TypeAlias = tuple[str, Mapping[str, Any]]
"""A data set's dotted key and its config."""
_Pair: TypeAlias = tuple[str, ...]
_IMAGES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".img", ".npy"))
_NOTHING = ("need at least one array to concatenate", "The training data set is empty.")
"""Errors of mmengine and of the sampler for a data set without a sample."""


_LOADERS = ("train_dataloader", "val_dataloader")


def check_files(guarded: GuardedDataset, cfg: Mapping[str, Any], loader: str) -> list[str]:
    """Check that every image and mask that a data set names exists; return warnings of what is left out.

    Only folders are listed: asking a network mount for each file would take minutes.

    Raises:
        DataError: Some are missing and may not be skipped, or all are.
    """
    told: list[str] = []
    leaves = list(leaves_of(guarded))
    items = list(leaves_with_keys(cfg[loader]["dataset"], f"{loader}.dataset"))
    for leaf, item in zip(
        leaves, items if len(items) == len(leaves) else items[:1] * len(leaves), strict=True
    ):
        pairs = [pair for pair in files_of(leaf) if pair and "://" not in pair[0]]
        if getattr(leaf, "backend_args", None) or getattr(leaf, "file_client_args", None):
            continue
        is_there = _Listings()
        try:
            lost = [pair for pair in pairs if not all(map(is_there, pair))]
            refusal = _lost(leaf, cfg, item, lost, is_there) if lost else None
        except OSError:
            continue  # storage that does not answer is retried, and reported, as it is read
        if refusal is not None and (guarded.on_bad_image != "skip" or len(lost) == len(pairs)):
            raise refusal
        told += [refusal.problem] if refusal is not None else _other_case(leaf, item[0], is_there)
    return told


class _Listings:
    """Tells whether files exist, by listing each folder once."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}

    def __call__(self, file: str) -> bool:
        folder, _, name = file.rpartition("/")
        if folder not in self.names:
            try:
                self.names[folder] = set(os.listdir(folder or "."))  # noqa: PTH208 - names alone, of many
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
                self.names[folder] = set()
        return name in self.names[folder]


def _lost(
    leaf: Any, cfg: Mapping[str, Any], item: _Item, lost: Sequence[_Pair], is_there: Callable[[str], bool]
) -> DataError:
    """Return the refusal of images or masks that are missing."""
    total = len(leaf)
    suffix, listing = str(getattr(leaf, "img_suffix", "")), str(getattr(leaf, "ann_file", "") or "")
    image = lost[0][0]
    if is_there(image):
        endings = _endings_beside(lost[0][1], str(getattr(leaf, "seg_map_suffix", "")))
        remedy = "Attach the masks too, or leave these images out with --on-bad-image skip."
        if endings:
            remedy = Message(
                "The masks end otherwise: {setting}", _setting(cfg, item, "seg_map_suffix", endings[0])
            )
        return DataError(
            Message(
                "{count} of {total} images have no mask; the first is {image}, whose mask would be {mask}.",
                len(lost),
                total,
                image,
                lost[0][1],
            ),
            remedy,
        )
    bare = image.removesuffix(suffix)
    if suffix and listing and is_there(bare):
        written = Path(bare).suffix
        own = str(_free(KagglePaths.from_environment().working / Path(listing).name))
        return DataError(
            Message(
                "{list} names {name} with its suffix, and img_suffix adds {suffix} to it: {count} of "
                "{total} images are not there.",
                listing,
                Path(bare).name,
                suffix,
                len(lost),
                total,
            ),
            # A line may end in CR LF, or in blanks, which do not count when the list is read.
            Message(
                "Make a list without: sed 's/\\{written}[[:space:]]*$//' {list} > {own}, and name it: "
                "{setting}",
                written,
                shlex.quote(listing),
                shlex.quote(own),
                _setting(cfg, item, "ann_file", own, also=("data_root", "img_suffix")),
            ),
        )
    return DataError(
        Message("{count} of {total} images are not there; the first is {image}.", len(lost), total, image),
        "Attach the whole data set, or leave them out with --on-bad-image skip.",
    )


def _free(path: Path) -> Path:
    """Return a path at which nothing is: the shell empties what it redirects to before it is read."""
    names = (path.with_stem(f"{path.stem}_{number}") for number in count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _setting(cfg: Mapping[str, Any], item: _Item, option: str, value: str, also: Sequence[str] = ()) -> str:
    """Return the arguments that change an option of a data set, and of those like it."""
    alike = [
        key
        for loader in _LOADERS
        for key, other in leaves_with_keys((cfg.get(loader) or {}).get("dataset") or {}, f"{loader}.dataset")
        if all(other.get(name) == item[1].get(name) for name in ("type", option, *also))
    ]
    return settings_text(f"{key}.{option}={shlex.quote(value)}" for key in alike)


def _endings_beside(mask: str, suffix: str) -> list[str]:
    """Return the endings of files that are named like a missing mask but for its suffix."""
    stem = mask.removesuffix(suffix) if suffix else str(Path(mask).with_suffix(""))
    folder, name = Path(stem).parent, Path(stem).name
    return sorted(file.name.removeprefix(name) for file in folder.glob(f"{name}[._-]*") if file.is_file())


def says_nothing_matches(error: BaseException) -> bool:
    """Return whether an error in building means that a data set has found no image."""
    return any(text in str(error) for text in _NOTHING)


def nothing_matches(cfg: Mapping[str, Any]) -> DataError | None:
    """Return the refusal of a config's first data set that finds no image; None where all find some."""
    for loader in (*_LOADERS, "test_dataloader"):
        dataset = (cfg.get(loader) or {}).get("dataset")
        for item in leaves_with_keys(dataset, f"{loader}.dataset") if dataset else ():
            found = _no_match(cfg, item)
            if found is not None:
                return found
    return None


def _no_match(cfg: Mapping[str, Any], item: _Item) -> DataError | None:
    """Return the refusal of a data set in whose folder no image has its suffix; else None."""
    from mmseg.registry import DATASETS  # late: it is only needed to explain an error

    try:
        leaf: Any = DATASETS.build({**item[1], "pipeline": [], "lazy_init": True})
    except Exception:  # noqa: BLE001 - what is wrong with it is said by the error that is being explained
        return None
    prefix = getattr(leaf, "data_prefix", None)
    folder, suffix = Path((prefix or {}).get("img_path") or ""), str(getattr(leaf, "img_suffix", "") or "")
    listing = str(getattr(leaf, "ann_file", "") or "")
    if Path(listing).is_file():
        lines = Path(listing).read_text(encoding="utf-8", errors="replace").split()
        return (
            None
            if lines
            else DataError(Message("{list} names no image.", listing), "Name a list that does (ann_file).")
        )
    if not prefix or not suffix:
        return None
    files = walk(folder, want_file=_is_visible, enter=_is_visible).files
    if any(file.name.endswith(suffix) for file in files):
        return None
    endings = Counter(file.suffix for file in files)
    found = joined(f"{count} {ending or 'without any'}" for ending, count in endings.most_common())
    images = [ending for ending, _ in endings.most_common() if ending.casefold() in _IMAGES]
    return DataError(
        Message(
            "No file in {folder} ends with {suffix} (img_suffix); suffixes found: {found}.",
            folder,
            suffix,
            found or "none",
        ),
        Message("Name the suffix: {setting}", _setting(cfg, item, "img_suffix", images[0]))
        if images
        else "Attach the whole data set.",
    )


def _other_case(leaf: Any, key: str, listings: _Listings) -> list[str]:
    """Return a warning of images that are left out for upper and lower case in their suffix."""
    suffix, prefix = str(getattr(leaf, "img_suffix", "") or ""), getattr(leaf, "data_prefix", None) or {}
    folder = str(prefix.get("img_path") or "")
    if not suffix or not folder or Path(str(getattr(leaf, "ann_file", "") or "")).is_file():
        return []
    others = [
        name
        for path, names in listings.names.items()
        if Path(path).is_relative_to(folder)
        for name in sorted(names)
        if name.casefold().endswith(suffix.casefold()) and not name.endswith(suffix) and name[0] != "."
    ]
    if not others:
        return []
    message = Message(
        "{count} images in {folder} are left out, such as {name}: they do not end with {suffix} "
        "({key}.img_suffix), in which upper and lower case count.",
        len(others),
        folder,
        others[0],
        suffix,
        key,
    )
    return [message]


def _is_visible(name: str) -> bool:
    return not name.startswith(".")
