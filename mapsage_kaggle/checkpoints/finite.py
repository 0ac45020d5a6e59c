"""Whether a checkpoint's tensors hold NaN or Inf, told from bytes that pass by once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.checkpoints.allowed import ITEM_BYTES, TensorInfo
from mapsage_kaggle.checkpoints.archive import Entry

if TYPE_CHECKING:
    import numpy as np

_F8, _F4, _F2, _B2 = ("<u8", 0x7FF0000000000000), ("<u4", 0x7F800000), ("<u2", 0x7C00), ("<u2", 0x7F80)
_PATTERNS: Mapping[str, tuple[str, int]] = {
    "float64": _F8, "complex128": _F8, "float32": _F4, "complex64": _F4, "float16": _F2, "bfloat16": _B2,
    "float8_e5m2": ("<u1", 0x7C), "float8_e4m3fn": ("<u1", 0x7F),
}  # fmt: skip
"""The word that a float of each type is (complex ones: two), and the bits that are all set in NaN and
Inf and in no other value: the exponent's, and with float8_e4m3fn, which has no Inf, the mantissa's too."""

_MAX_GATHERED_BYTES = 16 * 2**20
_MAX_LOOKS = 4


@dataclass(slots=True)
class _Span:
    """Bytes of a storage that some tensors look at."""

    start: int
    stop: int
    places: list[str]
    is_finite: bool = True


class FiniteSweep:
    """Looks for NaN and Inf while the storages' data passes by.

    Tensors may be windows on a larger storage: what lies outside of them is nobody's and may be
    anything. However many they are, each byte is looked at once for each kind of float.
    """

    def __init__(self, tensors: Iterable[tuple[str, TensorInfo]]) -> None:
        self._on: dict[str, list[tuple[str, TensorInfo]]] = {}
        for place, tensor in tensors:
            if tensor.dtype in _PATTERNS and tensor.num_elements:
                self._on.setdefault(f"data/{tensor.storage.key}", []).append((place, tensor))
        self._bad: set[str] = set()

    def take(self, entry: Entry, pieces: Iterator[memoryview]) -> None:
        tensors = self._on.get(entry.name)
        if not tensors:
            return
        passing: Iterable[memoryview] = pieces
        sparse = [(place, tensor) for place, tensor in tensors if not _is_dense(tensor)]
        if sparse and _may_gather(entry, [tensor for _, tensor in sparse]):
            data = b"".join(pieces)
            self._bad |= {place for place, tensor in sparse if not _window_finite(data, tensor)}
            tensors = [(place, tensor) for place, tensor in tensors if _is_dense(tensor)]
            passing = [memoryview(data)]
        tracks = [
            _Track(pattern, _spans([item for item in tensors if _PATTERNS[item[1].dtype] == pattern]))
            for pattern in sorted({_PATTERNS[tensor.dtype] for _, tensor in tensors})
        ]
        for piece in passing:
            for track in tracks:
                track.feed(piece)
        self._bad |= {
            place for track in tracks for span in track.spans if not span.is_finite for place in span.places
        }

    def tensors_not_finite(self) -> tuple[list[str], list[str]]:
        """Return the places of tensors with NaN or Inf: those in weights, and those elsewhere."""
        bad = sorted(self._bad)
        state = [place for place in bad if place.startswith("optimizer.")]
        return [place for place in bad if not place.startswith("optimizer.")], state


def _is_dense(tensor: TensorInfo) -> bool:
    """Whether it covers its stretch of the storage without gaps."""
    return tensor.last_element + 1 - tensor.offset <= tensor.num_elements


def _may_gather(entry: Entry, sparse: Sequence[TensorInfo]) -> bool:
    """Whether tensors with gaps can be looked at alone; else what lies in the gaps has to be finite too."""
    looked_at = sum(tensor.num_elements * ITEM_BYTES[tensor.dtype] for tensor in sparse)
    return entry.size_bytes <= _MAX_GATHERED_BYTES and looked_at <= _MAX_LOOKS * entry.size_bytes


def _spans(tensors: Sequence[tuple[str, TensorInfo]]) -> list[_Span]:
    """Return what some tensors look at, in order, what overlaps being one."""
    spans: list[_Span] = []
    for place, tensor in sorted(tensors, key=lambda item: item[1].offset * ITEM_BYTES[item[1].dtype]):
        size = ITEM_BYTES[tensor.dtype]
        start, stop = tensor.offset * size, (tensor.last_element + 1) * size
        if spans and start < spans[-1].stop:
            spans[-1].stop = max(spans[-1].stop, stop)
            spans[-1].places.append(place)
        else:
            spans.append(_Span(start=start, stop=stop, places=[place]))
    return spans


@dataclass(slots=True)
class _Track:
    """The spans of one kind of float, met one after the other."""

    pattern: tuple[str, int]
    spans: list[_Span]
    index: int = 0
    position: int = 0
    rest: bytes = b""
    word_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.word_bytes = int(self.pattern[0][2:])

    def feed(self, piece: memoryview) -> None:
        start, self.position = self.position, self.position + len(piece)
        while self.index < len(self.spans):
            span = self.spans[self.index]
            if span.start >= self.position:
                return
            self._look(span, piece[max(span.start - start, 0) : min(span.stop, self.position) - start])
            if span.stop > self.position:
                return
            self.index += 1
            self.rest = b""

    def _look(self, span: _Span, part: memoryview) -> None:
        if self.rest or len(part) % self.word_bytes:
            whole = self.rest + bytes(part)
            cut = len(whole) - len(whole) % self.word_bytes
            self.rest = whole[cut:]
            part = memoryview(whole)[:cut]
        if span.is_finite and len(part):
            span.is_finite = _all_finite(part, self.pattern)


def _all_finite(data: Any, pattern: tuple[str, int]) -> bool:
    import numpy as np

    word, bits = pattern
    if word in ("<u4", "<u8"):
        # Both propagate NaN, and need no array of flags: four times as fast as isfinite.
        values = np.frombuffer(data, word.replace("u", "f"))
        return bool(np.isfinite(values.max()) and np.isfinite(values.min()))
    return _no_pattern(np.frombuffer(data, word), bits)


def _no_pattern(words: np.ndarray[Any, Any], bits: int) -> bool:
    return not bool(((words & bits) == bits).any())


def _window_finite(data: bytes, tensor: TensorInfo) -> bool:
    """Tell whether a tensor holds neither NaN nor Inf, whatever lies in its gaps."""
    import numpy as np

    word, bits = _PATTERNS[tensor.dtype]
    item_bytes, word_bytes = ITEM_BYTES[tensor.dtype], int(word[2:])
    words = np.frombuffer(data, word, offset=tensor.offset * item_bytes)
    window = np.lib.stride_tricks.as_strided(
        words,
        (*tensor.shape, item_bytes // word_bytes),
        [*(step * item_bytes for step in tensor.stride), word_bytes],
        writeable=False,
    )
    return _no_pattern(window, bits)
