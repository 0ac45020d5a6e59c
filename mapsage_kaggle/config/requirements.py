"""What a config needs beyond the kit's own packages, looked for without importing any of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config.packages import PACKAGES, missing
from mapsage_kaggle.config.reading import as_list, as_mapping, mapping_or_empty
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.messages import Message

if TYPE_CHECKING:
    from mmengine.config import Config

# What each imports, where its package may be a folder without a file of its own.
_NEEDED_BY: Mapping[str, str] = {
    "MaskFormerHead": "mmdet",
    "Mask2FormerHead": "mmdet",
    "VPD": "ldm.util",
    "DSDLSegDataset": "dsdl.dataset",
    "CityscapesMetric": "cityscapesscripts",
    "TIMMBackbone": "timm",
    "Albu": "albumentations",
    "LoadSingleRSImageFromFile": "osgeo",
    "LoadMultipleRSImageFromFile": "osgeo",
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
    "MLflowVisBackend": "mlflow",
    "ClearMLVisBackend": "clearml",
    "NeptuneVisBackend": "neptune",
    "AimVisBackend": "aim",
    "DVCLiveVisBackend": "dvclive",
}
_WITH_COMPILED_OPS = frozenset(
    {"CCHead", "PSAHead", "PointHead", "SideAdapterCLIPHead", "Mask2FormerHead", "DCN", "DCNv2"}
)
"""Parts of mmsegmentation and mmcv that compute with ops that mmcv must have been compiled with."""
_WITH_COMPILED_OPS_ON_GPU = frozenset({"FocalLoss", "mmseg.FocalLoss"})
"""Parts of mmsegmentation that compute on a CPU without them."""

_SCOPES = ("mmdet", "mmpretrain", "mmcls")
_PARTS = ("model", "train_dataloader", "val_dataloader", "val_evaluator", "custom_hooks", "visualizer",
          "vis_backends", "optim_wrapper", "default_hooks")  # fmt: skip


def check_installed(cfg: Mapping[str, Any] | Config, source: Path, places: Sequence[Path] = ()) -> None:
    """Make sure that the packages are there that a config is known to need.

    ``places`` are folders that its own code may lie in.

    Raises:
        MachineError: One is missing; the message names it and what to install.
    """
    cfg = as_mapping(cfg)
    path = [str(place) for place in places]

    def is_missing(module: str) -> bool:
        package, _, within = module.partition(".")
        for spec in (find_spec(package), PathFinder.find_spec(package, path)):
            if spec is not None and spec.origin is None and within:  # a folder may have the name by chance
                spec = PathFinder.find_spec(module, spec.submodule_search_locations)
            if spec is not None:
                return False
        return True

    kinds = [kind for part in _PARTS for kind in _types_in(cfg.get(part))]
    for kind in dict.fromkeys(kinds):
        scope, _, name = kind.replace("::", ".").rpartition(".")
        scope = scope.partition(".")[0]
        package = scope if scope in _SCOPES else _NEEDED_BY.get(name, "")
        if package and is_missing(package):
            raise missing(package.partition(".")[0], f"{source} uses {kind}")
        if name in _WITH_COMPILED_OPS and not has_compiled_ops():
            raise without_ops(f"{source} uses {kind}")
    custom = mapping_or_empty(cfg.get("custom_imports"))
    for module in as_list(custom.get("imports")) if not custom.get("allow_failed_imports") else ():
        package = str(module).partition(".")[0]
        if package in PACKAGES and is_missing(package):
            raise missing(package, f"{source} imports {module}")


def check_ops_on_gpu(cfg: Mapping[str, Any] | Config, source: Path) -> None:
    """Make sure that mmcv has the ops that a model needs on a GPU alone.

    Raises:
        MachineError: It has none; the message names what needs them.
    """
    for kind in _types_in(as_mapping(cfg).get("model")):
        if kind.replace("::", ".") in _WITH_COMPILED_OPS_ON_GPU and not has_compiled_ops():
            raise without_ops(f"{source} uses {kind} on a GPU")


def without_ops(user: str) -> MachineError:
    """Return the refusal for an mmcv without its compiled ops."""
    return MachineError(
        Message("{user}, which needs compiled ops of mmcv; the mmcv that is installed has none.", user),
        "Choose another head or loss, or build mmcv with its ops from source, which takes half an hour: "
        "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary :all: --no-deps onedl-mmcv.",
    )


def has_compiled_ops() -> bool:
    """Return whether mmcv has them, or is not installed at all."""
    spec = find_spec("mmcv")
    return spec is None or spec.origin is None or any(Path(spec.origin).parent.glob("_ext*"))


def _types_in(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        kind, scope = node.get("type"), node.get("_scope_")
        if kind is not None:
            kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
            yield f"{scope}.{kind}" if scope in _SCOPES else kind
        for value in node.values():
            yield from _types_in(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _types_in(item)
