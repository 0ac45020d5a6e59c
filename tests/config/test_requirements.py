"""What a config needs and is not installed is said by looking at it."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
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
        ({"model": {"backbone": {"_scope_": "mmpretrain", "type": "ConvNeXt"}}}, "mmpretrain"),
        ({"optim_wrapper": {"constructor": {"type": "mmpretrain.Something"}}}, "mmpretrain"),
        ({"model": {"backbone": {"type": "mmdet.models.backbones.Something"}}}, "mmdet"),
        ({"model": {"decode_head": {"type": "MaskFormerHead"}}}, "mmdet"),
        ({"visualizer": {"vis_backends": [{"type": "WandbVisBackend"}]}}, "wandb"),
        ({"custom_imports": {"imports": "mmpretrain.models"}}, "mmpretrain"),
        ({"model": {"backbone": {"type": "VPD"}}}, "ldm"),
        ({"train_dataloader": {"dataset": {"type": "DSDLSegDataset"}}}, "dsdl"),
        ({"train_dataloader": {"dataset": {"pipeline": [{"type": "Albu"}]}}}, "albumentations"),
        ({"val_evaluator": {"type": "CityscapesMetric"}}, "cityscapesscripts"),
    ],
)
def test_a_package_that_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, cfg: dict[str, Any], package: str
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=f"needs the package {package}"):
        check_installed(cfg, SOURCE)


def test_nothing_is_said_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: ModuleSpec(name, None, origin=f"{name}.py"))
    check_installed({"model": {"backbone": {"type": "mmpretrain.ConvNeXt"}}}, SOURCE)


def test_imports_that_may_fail_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    imports = {"imports": ["mmdet.models"], "allow_failed_imports": True}
    check_installed({"custom_imports": imports}, SOURCE)


def test_a_folder_of_the_name_of_a_package_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dsdl").mkdir()  # as in mmsegmentation's own configs
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    cfg = {"train_dataloader": {"dataset": {"type": "DSDLSegDataset"}}}
    with pytest.raises(MachineError, match="needs the package dsdl"):
        check_installed(cfg, SOURCE, [tmp_path])
    (tmp_path / "dsdl" / "dataset.py").touch()
    check_installed(cfg, SOURCE, [tmp_path])


@pytest.mark.skipif(has_compiled_ops(), reason="this mmcv has its compiled ops")
@pytest.mark.parametrize("head", ["CCHead", "PSAHead", "mmseg.PointHead"])
def test_a_head_that_needs_compiled_ops_is_refused_where_there_are_none(head: str) -> None:
    with pytest.raises(MachineError, match="compiled ops"):
        check_installed({"model": {"decode_head": [{"type": head}]}}, SOURCE)
