"""The data: its classes, where it lies under the inputs, and whether it is sound.

Two published data sets share images and label scheme: LoveDA (Wang et al., 2021) with seven classes and
``Urban``/``Rural`` below each split, EarthVQA (Wang et al., 2024) with ``playground`` as the eighth.
Both keep 0 in their masks for *no data*.
"""

from __future__ import annotations

import os
import random
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.machine import subfolders
from mapsage_kaggle.messages import Message, as_message
from mapsage_kaggle.walk import walk

LOVEDA_CLASSES = ("background", "building", "road", "water", "barren", "forest", "agriculture")
LOVEDA_PALETTE = (
    (255, 255, 255),
    (255, 0, 0),
    (255, 255, 0),
    (0, 0, 255),
    (159, 129, 183),
    (0, 255, 0),
    (255, 195, 128),
)
"""The colours that LoveDA's authors publish, by class."""

EARTHVQA_CLASSES = (*LOVEDA_CLASSES, "playground")
EARTHVQA_PALETTE = (*LOVEDA_PALETTE, (105, 0, 135))
"""LoveDA's, and a dark violet for ``playground``: among the colours farthest (CIE Lab) from the other seven
and from black, to normal eyes and to eyes without red, green or blue cones."""

NO_DATA = 0
"""The mask value that is ignored; class *c* is stored as *c* + 1."""

Layout = Literal["earthvqa", "loveda"]

_IMAGES, _MASKS = "images_png", "masks_png"
_AREAS = ("rural", "urban")
_SPLITS = {"train": "Train", "val": "Val", "test": "Test"}
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"))
_MASK_SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp"))
_STAT_THREADS = 16
_MAX_TOLD = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One folder of images and its folder of masks.

    Attributes:
        area: ``""``, or ``Urban`` or ``Rural`` in LoveDA.
    """

    area: str
    images: Path
    masks: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """``Train``, ``Val`` or ``Test``: one part in EarthVQA, one for each area in LoveDA."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRoot:
    """A folder that has the shape of a data set.

    Attributes:
        path: The folder that holds the splits; what a config calls ``data_root``.
        layout: ``loveda`` where areas lie below the splits, else ``earthvqa``.
        splits: Those that were found, ``Train`` first.
    """

    path: Path
    layout: Layout
    splits: tuple[Split, ...]

    def split(self, name: str) -> Split:
        """Return a split by name, in any case.

        Raises:
            DataError: There is none of that name.
        """
        for split in self.splits:
            if split.name.casefold() == name.casefold():
                return split
        raise DataError(
            Message(
                "{path} has no {missing}/{images}, only {others}.",
                self.path,
                _SPLITS.get(name.casefold(), name),
                _IMAGES,
                ", ".join(split.name for split in self.splits),
            ),
            "Attach the whole data set.",
        )

    @property
    def trainable(self) -> bool:
        """Whether images and masks are there, to train on and to validate."""
        found = {split.name for split in self.splits if all(part.masks for part in split.parts)}
        return {"Train", "Val"} <= found


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An image and its mask, which have the same stem. ``mask`` is None in a split without masks."""

    image: Path
    mask: Path | None


# --- where it lies ---------------------------------------------------------------------------------------


def find_data_roots(folder: Path) -> tuple[DataRoot, ...]:
    """Return every data set below ``folder``, however deep it is mounted, in order of path.

    Recognised by its shape alone: a folder with ``Train/images_png`` or ``Val/images_png``, or with ``Urban``
    or ``Rural`` between the two. Upper and lower case are not told apart. Folders of images are not listed,
    which on a network file system is what would take long.
    """
    found = walk(
        folder,
        want_dir=lambda name: name.casefold() == _IMAGES,
        enter=lambda name: name.casefold() not in (_IMAGES, _MASKS) and not is_debris(name),
    )
    # A root lies two levels above its images, or three with areas, or one more with nested splits.
    candidates = {
        path
        for images in found.dirs
        for path in images.parents[1:4]
        if path == folder or folder in path.parents
    }
    roots: dict[Path, DataRoot] = {}
    for path in sorted(candidates):
        nested = path.parent in roots and path.name.casefold() in _SPLITS
        root = None if nested else _as_root(path)
        if root is not None:
            roots[path] = root
    return tuple(roots.values())


def is_debris(folder: str) -> bool:
    """Tell whether a folder is what archives made on a Mac leave: all names again, with no image in them."""
    return folder == "__MACOSX"


def read_data_root(path: Path) -> DataRoot:
    """Return the data set that lies at ``path`` itself.

    Raises:
        DataError: It does not have the shape of one; says what was found instead.
    """
    if not path.is_dir():
        raise DataError(
            Message("The data root {path} does not exist.", path),
            "Attach the data set as input, or name what holds Train and Val: --set data_root=FOLDER",
        )
    root = _as_root(path)
    if root is not None:
        return root
    found = _few(child.name for child in _folders(path).values()) or Message("no folder")
    nearby = find_data_roots(path)
    remedy = (
        Message("It lies in {path}: --set data_root={folder}", nearby[0].path, nearby[0].path)
        if nearby
        else Message("Name the folder that holds Train and Val: --set data_root=FOLDER")
    )
    raise DataError(
        Message(
            "{path} holds {found}, not Train/{images} and Val/{images_too}.", path, found, _IMAGES, _IMAGES
        ),
        remedy,
    )


def choose_data_root(
    roots: Sequence[DataRoot],
    *,
    searched: Path,
    layout: Layout | None = None,
    setting: str = "--set data_root=FOLDER",
) -> DataRoot:
    """Return the one data set to train on.

    One with images and masks to train on and to validate goes before one that lacks some.

    Raises:
        DataError: There is none, or there are several that differ in nothing but their place.
    """
    shape = "Train/Urban/images_png" if layout == "loveda" else "Train/images_png"
    fitting = [root for root in roots if layout in (None, root.layout)]
    best = [root for root in fitting if root.trainable] or fitting
    if len(best) == 1:
        return best[0]
    if best:
        raise DataError(
            Message(
                "{count} data sets lie below {path}: {names}.",
                len(best),
                searched,
                ", ".join(str(root.path) for root in best),
            ),
            Message("Detach all but one, or name it: {setting}", setting),
        )
    if roots:
        others = ", ".join(f"{root.path} ({root.layout} layout)" for root in roots)
        raise DataError(
            Message(
                "No data set with {shape} lies below {searched}, only {others}.", shape, searched, others
            ),
            Message(
                "Attach the data set that the config was written for, or choose the config for this "
                "one: train_{layout}_kaggle.py.",
                roots[0].layout,
            ),
        )
    raise DataError(
        Message(
            "No data set lies below {path}: no folder with {shape} and its masks_png was found.",
            searched,
            shape,
        ),
        "Attach the data set as input; if it was attached just now, wait a minute and try again.",
    )


def list_pairs(split: Split) -> tuple[Pair, ...]:
    """Return the pairs of a split, in the order of their areas and names, the same on every machine.

    Raises:
        DataError: An image has no mask, or a mask no image, or there is none at all.
    """
    pairs, problems = _match(split)
    if problems:
        raise DataError(*_summary(Message("{name} cannot be read", split.name), problems))
    return pairs


def area_of(image: Path) -> str:
    """Return ``Urban`` or ``Rural`` for an image of a layout that tells them apart, else nothing."""
    name = image.parent.parent.name
    return name.title() if name.casefold() in _AREAS else ""


def _folders(path: Path) -> dict[str, Path]:
    """Return the folders in ``path`` by lower-case name; a folder that cannot be listed has none."""
    found = {folder.name.casefold(): folder for folder in reversed(subfolders(path))}
    return dict(reversed(found.items()))


def _as_root(path: Path) -> DataRoot | None:
    children = _folders(path)
    splits = []
    for key, name in _SPLITS.items():
        parts = _parts(children[key]) if key in children else ()
        if parts:
            splits.append(Split(name=name, parts=parts))
    if not any(split.name != "Test" for split in splits):
        return None
    areas = any(part.area for split in splits for part in split.parts)
    return DataRoot(path=path, layout="loveda" if areas else "earthvqa", splits=tuple(splits))


def _parts(folder: Path, *, nested: bool = False) -> tuple[Part, ...]:
    children = _folders(folder)
    if _IMAGES in children:
        return (Part(area="", images=children[_IMAGES], masks=children.get(_MASKS)),)
    parts = []
    for key in _AREAS:
        below = _folders(children[key]) if key in children else {}
        if _IMAGES in below:
            parts.append(Part(area=key.title(), images=below[_IMAGES], masks=below.get(_MASKS)))
    same = children.get(folder.name.casefold())
    if not parts and same is not None and not nested:
        # Train.zip, which holds Train/, unpacks to Train/Train.
        return _parts(same, nested=True)
    return tuple(parts)


# --- whether it is sound ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing wrong with the data: where, what was found, what was expected."""

    path: Path
    found: str
    expected: str

    def __str__(self) -> str:
        return Message(
            "{path}: {found}, expected {expected}",
            self.path,
            as_message(self.found),
            as_message(self.expected),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """What checking a data set gave.

    Attributes:
        pairs: How many complete pairs each split has, by name.
        decoded: How many pairs were decoded.
        pixels: How many pixels have each mask value, in the decoded masks; 0, *no data*, comes first.
        problems: Everything wrong, by path.
    """

    root: DataRoot
    pairs: dict[str, int]
    decoded: int
    pixels: tuple[int, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise if something is wrong.

        Raises:
            DataError: Names the first five problems and counts the rest.
        """
        if self.problems:
            raise DataError(
                *_summary(Message("The data set at {path} is not sound", self.root.path), self.problems)
            )


def check_data(root: DataRoot | Path, num_classes: int, *, sample: int | None = 64) -> DataReport:
    """Find what would stop training, or spoil it, before it starts.

    Names and sizes of all files are compared. Images and masks of a sample are decoded in full, which
    finds damaged files, images and masks of unequal size, and mask values out of range.

    Args:
        root: The data set, or the folder it lies in.
        num_classes: Mask values may be 0 (no data) to ``num_classes``.
        sample: How many pairs to decode, drawn over ``Train`` and ``Val`` in proportion; None for all.

    Raises:
        DataError: ``root`` has not the shape of a data set. All else is reported.
    """
    if isinstance(root, Path):
        root = read_data_root(root)
    problems: list[Problem] = []
    complete: list[Pair] = []
    counts = {}
    for name in ("Train", "Val"):
        split = next((split for split in root.splits if split.name == name), None)
        if split is None:
            problems.append(
                Problem(
                    path=root.path / name,
                    found="no such folder",
                    expected=Message("{one} and {other}", _IMAGES, _MASKS),
                )
            )
            continue
        pairs, wrong = _match(split)
        problems += wrong
        counts[name] = len(pairs)
        complete += pairs

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        sound = list(pool.map(_sizes, complete))
    for wrong in sound:
        problems += wrong
    complete = [pair for pair, wrong in zip(complete, sound, strict=True) if not wrong]

    pixels: Counter[int] = Counter()
    chosen = complete
    if sample is not None and sample < len(chosen):
        chosen = sorted(random.Random(0).sample(chosen, sample), key=lambda pair: pair.image)
    # Decoding needs no interpreter lock, so threads do.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for histogram, wrong in pool.map(lambda pair: _decode(pair, num_classes), chosen):
            pixels.update(histogram)
            problems += wrong
    return DataReport(
        root=root,
        pairs=counts,
        decoded=len(chosen),
        pixels=tuple(pixels[value] for value in range(num_classes + 1)),
        problems=tuple(sorted(problems, key=lambda problem: problem.path)),
    )


def _match(split: Split) -> tuple[tuple[Pair, ...], list[Problem]]:
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for part in split.parts:
        images = _files(part.images, IMAGE_SUFFIXES)
        if not images:
            problems.append(Problem(path=part.images, found="no image", expected="at least one"))
        if part.masks is None:
            if split.name != "Test":
                beside = Message("a folder {name} beside it", _MASKS)
                problems.append(Problem(path=part.images, found="images without masks", expected=beside))
            else:
                pairs += [Pair(image=image, mask=None) for image in images.values()]
            continue
        masks = _files(part.masks, _MASK_SUFFIXES)
        for stem, image in images.items():
            if stem in masks:
                pairs.append(Pair(image=image, mask=masks[stem]))
            else:
                problems.append(
                    Problem(path=image, found="no mask", expected=str(part.masks / f"{stem}.png"))
                )
        for stem in masks.keys() - images.keys():
            expected = str(part.images / f"{stem}.png")
            problems.append(Problem(path=masks[stem], found="no image", expected=expected))
    return tuple(pairs), problems


def _files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return the files in ``folder`` by stem, in order of name. Suffixes are told without a ``stat``."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.casefold() in suffixes and not path.name.startswith("."):
            found[path.stem] = path
    return found


def _sizes(pair: Pair) -> list[Problem]:
    problems = []
    for path in (pair.image, pair.mask):
        if path is None:
            continue
        try:
            state = path.stat()
        except OSError as error:
            problems.append(Problem(path=path, found=_reason(error), expected="a readable file"))
            continue
        if not stat.S_ISREG(state.st_mode):
            problems.append(Problem(path=path, found="not a file", expected="an image"))
        elif state.st_size == 0:
            problems.append(Problem(path=path, found="an empty file", expected="an image"))
    return problems


def _decode(pair: Pair, num_classes: int) -> tuple[dict[int, int], list[Problem]]:
    """Decode a pair in full. Returns how many pixels have each mask value, and what is wrong."""
    from PIL import Image

    sizes: list[tuple[int, int]] = []
    histogram: dict[int, int] = {}
    problems: list[Problem] = []
    for path in (pair.image, pair.mask):
        if path is None:
            continue
        try:
            with Image.open(path) as picture:
                picture.load()
        # Pillow's readers raise SyntaxError and ValueError too, on broken chunks and headers.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            found = f"cannot be decoded ({_reason(error)})"
            problems.append(Problem(path=path, found=found, expected="a whole image"))
            continue
        sizes.append(picture.size)
        if path is pair.image:
            continue
        if picture.mode not in ("L", "P"):
            found = f"a mask in mode {picture.mode}"
            expected = f"one 8-bit channel with the values 0 to {num_classes}"
            problems.append(Problem(path=path, found=found, expected=expected))
            continue
        histogram = {value: count for value, count in enumerate(picture.histogram()) if count}
        beyond = [value for value in histogram if value > num_classes]
        if beyond:
            found = f"mask values {_few(beyond)}"
            problems.append(Problem(path=path, found=found, expected=Message("0 to {most}", num_classes)))
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        image, mask = ("{} x {}".format(*size) for size in sizes)
        problems.append(
            Problem(
                path=pair.image,
                found=Message("{size} pixels", image),
                expected=Message("the {size} of its mask", mask),
            )
        )
    return histogram, problems


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__


def _few(values: Iterable[object]) -> str:
    items = [str(value) for value in values]
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _summary(opening: str, problems: Sequence[Problem]) -> tuple[str, str, list[str]]:
    count = (
        Message("{count} problems", len(problems))
        if len(problems) > 1
        else Message("{count} problem", len(problems))
    )
    lines = [str(problem) for problem in problems[:_MAX_TOLD]]
    if len(problems) > _MAX_TOLD:
        lines.append(Message("... and {count} more", len(problems) - _MAX_TOLD))
    remedy = "Attach a complete copy of the data set, or remove what is named here."
    return Message("{opening}, {count}:", opening, count), remedy, lines
