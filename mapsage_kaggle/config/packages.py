"""The packages that a config may need beyond the kit's own, and the refusal where one is missing."""

from __future__ import annotations

from collections.abc import Mapping

from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.messages import Message

PACKAGES: Mapping[str, str] = {
    "mmpretrain": "onedl-mmpretrain",
    "mmcls": "onedl-mmpretrain",
    "mmdet": "onedl-mmdetection",
    "ldm": "latent-diffusion (https://github.com/CompVis/stable-diffusion)",
    "dsdl": "dsdl",
    "cityscapesscripts": "cityscapesscripts",
    "timm": "timm",
    "albumentations": "albumentations",
    "osgeo": "gdal",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "clearml": "clearml",
    "neptune": "neptune",
    "aim": "aim",
    "dvclive": "dvclive",
}
"""What to install for an import name."""


def missing(package: str, user: str) -> MachineError:
    """Return the refusal for a package that is not installed."""
    return MachineError(
        Message("{user}, which needs the package {package}; it is not installed.", user, package),
        Message("Install {package}, or add it to the attached wheels.", PACKAGES.get(package, package)),
    )
