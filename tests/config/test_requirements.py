"""What a config needs and is not installed is said by looking at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mapsage_kaggle.config import requirements
from mapsage_kaggle.config.requirements import check_installed, has_compiled_ops
from mapsage_kaggle.errors import MachineError

SOURCE = Path("mine.py")


@pytest.mark.parametrize(
    ("cfg", "package"),
    [
        ({"model": {"backbone": {"type": "mmpretrain.ConvNeXt"}}}, "mmpretrain"),
        ({"model": {"backbone": {"type": "mmdet::Something"}}}, "mmdet"),
        ({"model": {"decode_head": {"type": "MaskFormerHead"}}}, "mmdet"),
        ({"visualizer": {"vis_backends": [{"type": "WandbVisBackend"}]}}, "wandb"),
        ({"custom_imports": {"imports": "mmpretrain.models"}}, "mmpretrain"),
        ({"model": {"backbone": {"type": "VPD"}}}, "ldm"),
    ],
)
def test_a_package_that_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, cfg: dict[str, Any], package: str
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=f"needs the package {package}"):
        check_installed(cfg, SOURCE)


def test_nothing_is_said_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    check_installed({"model": {"backbone": {"type": "mmpretrain.ConvNeXt"}}}, SOURCE)


@pytest.mark.skipif(has_compiled_ops(), reason="this mmcv has its compiled ops")
@pytest.mark.parametrize("head", ["CCHead", "PSAHead", "mmseg.PointHead"])
def test_a_head_that_needs_compiled_ops_is_refused_where_there_are_none(head: str) -> None:
    with pytest.raises(MachineError, match="compiled ops"):
        check_installed({"model": {"decode_head": [{"type": head}]}}, SOURCE)
