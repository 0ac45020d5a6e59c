"""Which of a config's stock parts the kit has faster ones for, and the way back.

All by name, since a config is read without the libraries: what a name stands for is looked at again where
it is built (``engine.fast.stock``), and a part that turns out not to be mmsegmentation's own runs as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FASTER_MODULES: Mapping[str, str] = {
    "MixVisionTransformer": "MapsageMixVisionTransformer",
    "SegformerHead": "MapsageSegformerHead",
}
FASTER_LOADERS: Mapping[str, str] = {
    "LoadImageFromFile": "MapsageLoadImage",
    "LoadAnnotations": "MapsageLoadLabels",
}
PIPELINE = "MapsageFastPipeline"
FUSED_OPTIMIZERS = frozenset({"Adam", "AdamW", "SGD"})
"""Those of which every device that the kit trains on has a fused kind, in each torch it runs with."""

_STOCK_NAMES = {faster: stock for stock, faster in {**FASTER_MODULES, **FASTER_LOADERS}.items()}
_FROM_MMCV = frozenset({"LoadImageFromFile", "RandomResize"})
_DECODERS = ("cv2", "pillow")
_ORDER: Mapping[str, Mapping[str, Any]] = {
    # Each transform that the faster pipeline knows, in its order, with what options it may have: a
    # tuple of values, or None for any.
    "LoadImageFromFile": {"color_type": None, "imdecode_backend": _DECODERS},
    "LoadAnnotations": {"reduce_zero_label": None, "imdecode_backend": _DECODERS},
    "RandomResize": {
        "scale": None, "ratio_range": None, "keep_ratio": None, "resize_type": ("Resize",),
        "interpolation": ("bilinear",), "backend": ("cv2",),
    },
    "RandomCrop": {"crop_size": None, "cat_max_ratio": None, "ignore_index": None},
    "RandomFlip": {"prob": None, "direction": None},
    "PhotoMetricDistortion": {
        "brightness_delta": None, "contrast_range": None, "saturation_range": None, "hue_delta": None,
    },
    "PackSegInputs": {"meta_keys": None},
}  # fmt: skip


def stock_name(kind: Any, scope: str) -> str:
    """Return the bare name of a ``type`` that means mmsegmentation's or mmcv's own part, else nothing.

    Args:
        kind: A string, with or without a scope, or a class.
        scope: The config's ``default_scope``.
    """
    if isinstance(kind, str):
        before, separator, name = kind.replace("::", ".").rpartition(".")
        return name if before == "mmseg" or (not separator and scope == "mmseg") else ""
    package = str(getattr(kind, "__module__", "")).partition(".")[0]
    name = str(getattr(kind, "__name__", ""))
    # mmcv has classes of the same names that are others.
    return name if package == "mmseg" or (package == "mmcv" and name in _FROM_MMCV) else ""


def faster_name(name: str, scope: str) -> str:
    """Return the ``type`` of the faster part for a stock one."""
    return ("" if scope == "mmseg" else "mmseg.") + {**FASTER_MODULES, **FASTER_LOADERS}[name]


def has_fused_kind(optimizer: Any) -> bool:
    """Return whether a ``type`` means one of torch's optimizers that have a fused kind.

    A bare name may still be another class's by the time that it is built, see ``engine.runner``.
    """
    if isinstance(optimizer, str):
        before, _, name = optimizer.replace("::", ".").rpartition(".")
        return before in ("", "mmengine", "mmseg", "torch.optim") and name in FUSED_OPTIMIZERS
    module = str(getattr(optimizer, "__module__", ""))
    return module.startswith("torch.optim.") and getattr(optimizer, "__name__", "") in FUSED_OPTIMIZERS


def faster_pipeline(
    pipeline: Sequence[Any], *, cache_dir: str | None, scope: str
) -> tuple[list[Any], str] | None:
    """Return a pipeline with faster parts, and what they are in a few words; None where it has none.

    Without a ``cache_dir`` no decoded images are kept.
    """
    names = [_known(item, scope) for item in pipeline]
    length = _recognised(names)
    if length >= 2:
        swapped = {"type": PIPELINE, "transforms": list(pipeline[:length]), "cache_dir": cache_dir}
        others = len(pipeline) - length
        reason = "the same samples in one pass, from images that are decoded once"
        return [swapped, *pipeline[length:]], reason if not others else f"{reason}; {others} more as they are"
    if cache_dir is None or not any(name in FASTER_LOADERS for name in names):
        return None
    loaders = [
        {**item, "type": faster_name(name, scope), "cache_dir": cache_dir} if name in FASTER_LOADERS else item
        for name, item in zip(names, pipeline, strict=True)
    ]
    return loaders, "images and masks are decoded once"


def _known(item: Any, scope: str) -> str:
    if not isinstance(item, Mapping):
        return ""
    name = stock_name(item.get("type"), scope)
    options = _ORDER.get(name)
    if options is None:
        return ""
    for key, value in item.items():
        if key == "type":
            continue
        if key not in options or (options[key] is not None and value not in options[key]):
            return ""
    return name


def _recognised(names: Sequence[str]) -> int:
    """Return how many transforms from the first one on are known and in order, the two loaders first."""
    order = list(_ORDER)
    if list(names[:2]) != order[:2]:
        return 0
    length, place = 2, 1
    while length < len(names) and names[length] and order.index(names[length]) > place:
        place = order.index(names[length])
        length += 1
    return length


def stock(value: Any) -> Any:
    """Return a part of a config with the kit's faster parts replaced by the stock ones, nested ones too.

    A scope before a name is kept.
    """
    if isinstance(value, Mapping):
        kind = value.get("type")
        name = kind.replace("::", ".").rpartition(".")[2] if isinstance(kind, str) else ""
        plain = {key: stock(item) for key, item in value.items()}
        if name in _STOCK_NAMES:
            plain["type"] = str(kind).removesuffix(name) + _STOCK_NAMES[name]
            plain.pop("cache_dir", None)
        return plain
    if isinstance(value, (list, tuple)):
        items: list[Any] = []
        for item in value:
            is_pipeline = isinstance(item, Mapping) and item.get("type") == PIPELINE
            items += stock(item["transforms"]) if is_pipeline else [stock(item)]
        return type(value)(items)
    return value
