"""Plan how many of a run's images are kept decoded: as many as disk and memory have room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mapsage_kaggle.engine.fast.cache import DecodedCache
from mapsage_kaggle.messages import Message, as_message

_SAMPLE = 64
_IMAGE_BYTES, _LABEL_BYTES = 3, 1  # a pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """What a run's decoded images take, and what there is room for.

    Attributes:
        folder: Where they are kept.
        needed_bytes: What all of them take, from the sizes of a sample of them.
        room_bytes: What the cache may take, including what it holds already.
        room_in: ``disk`` or ``memory``: which of the two sets the limit.
    """

    folder: Path
    needed_bytes: int
    room_bytes: int
    room_in: str

    @property
    def share(self) -> float:
        """The share of the images that is kept, from 0 to 1."""
        return 1.0 if self.needed_bytes <= self.room_bytes else self.room_bytes / self.needed_bytes

    def __str__(self) -> str:
        needed, room = f"{self.needed_bytes / 1e9:.1f} GB", f"{self.room_bytes / 1e9:.1f} GB"
        if self.share == 1.0:
            return (
                f"Decoded, the images take {needed}; {self.folder} may hold {room}, as the {self.room_in} "
                "allows: all are decoded once."
            )
        return Message(
            "Decoded, the images take {needed}; {folder} may hold {room}, as the {what} allows: "
            "{percent} % are decoded once, the others each time, which is slower and changes "
            "nothing else.",
            needed,
            self.folder,
            room,
            as_message(self.room_in),
            f"{100 * self.share:.0f}",
        )


def plan_cache(datasets: Iterable[Any]) -> CachePlan | None:
    """Make the caches of data sets keep as much as there is room for, before any data worker starts.

    Which images those are follows from their names: of two processes that plan with different room, one keeps
    a subset of what the other keeps.

    Returns:
        What was planned; None where nothing is cached.
    """
    leaves = {id(leaf): leaf for dataset in datasets for leaf in leaves_of(dataset)}
    caches: list[DecodedCache] = []
    needed_bytes = 0
    for leaf in leaves.values():
        found = _caches(leaf)
        if found and hasattr(leaf, "get_data_info"):
            caches += found
            needed_bytes += _decoded_bytes([leaf.get_data_info(index) for index in range(len(leaf))])
    if not caches:
        return None
    room_bytes, room_in = caches[0].room()
    plan = CachePlan(
        folder=caches[0].folder, needed_bytes=needed_bytes, room_bytes=room_bytes, room_in=room_in
    )
    for cache in caches:
        cache.share = plan.share
    return plan


def leaves_of(dataset: Any) -> Iterator[Any]:
    """Yield the data sets that load images themselves, inside any that repeat, filter or join them."""
    inner = getattr(dataset, "datasets", None) or (
        [dataset.dataset] if getattr(dataset, "dataset", None) is not None else []
    )
    if not inner:
        yield dataset
    for item in inner:
        yield from leaves_of(item)


def _caches(dataset: Any) -> list[DecodedCache]:
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", None) or ()
    caches = (getattr(item, "cache", None) for item in transforms)
    return [cache for cache in caches if isinstance(cache, DecodedCache)]


def _decoded_bytes(infos: Sequence[dict[str, Any]]) -> int:
    """Return what a data set's images and masks take, decoded, from the sizes of some of them."""
    total = 0.0
    for key, pixel_bytes in (("img_path", _IMAGE_BYTES), ("seg_map_path", _LABEL_BYTES)):
        paths = sorted({str(info[key]) for info in infos if info.get(key)})
        some = paths[:: max(1, len(paths) // _SAMPLE)]
        pixels = [count for path in some if (count := _num_pixels(path)) is not None]
        if pixels:
            total += pixel_bytes * len(paths) * sum(pixels) / len(pixels)
    return round(total)


def _num_pixels(path: str) -> int | None:
    """Return how many pixels an image has by its header; None where that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # whether it can be decoded is for the data set to say
