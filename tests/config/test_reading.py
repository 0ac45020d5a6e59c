"""What is read of a config, and which are refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.configs import CONFIGS, patched, planned, small, without

from mapsage_kaggle.config.reading import changes_between, read_config
from mapsage_kaggle.config.weights import weights_files
from mapsage_kaggle.errors import ConfigError, MachineError


@pytest.mark.parametrize(
    "train_cfg",
    [
        {"type": "EpochBasedTrainLoop", "max_epochs": 12},
        {"type": "mmengine.EpochBasedTrainLoop", "max_epochs": 12},
        {"by_epoch": True, "max_epochs": 12},
        {"max_epochs": 12},
    ],
)
def test_a_config_that_trains_by_epochs_is_refused_with_what_to_write_instead(
    train_cfg: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"small\.py trains by epochs .*IterBasedTrainLoop"):
        planned(small(train_cfg=train_cfg))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (without(small(), "train_cfg"), "no training loop"),
        (small(train_cfg=None), "no training loop"),
        (small(train_cfg__type="MyLoop"), r"a training loop of its own \(MyLoop\)"),
        (small(train_cfg__max_iters=0), "max_iters is 0"),
        (small(train_cfg__max_iters="many"), "max_iters is 'many'"),
        (small(train_cfg__max_iters=True), "max_iters is True"),
        (without(small(), "model"), "has no model"),
        (without(small(), "train_dataloader"), "has no train_dataloader"),
        (without(small(), "optim_wrapper"), "has no optim_wrapper"),
        (small(train_dataloader__sampler__type="ClassBalanced"), "samples with ClassBalanced"),
        (without(small(), "train_dataloader.sampler"), "samples with no sampler"),
    ],
)
def test_what_the_kit_cannot_train_is_refused(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(cfg)


def test_an_iteration_based_config_without_a_type_is_taken() -> None:
    assert planned(small(train_cfg={"by_epoch": False, "max_iters": 100})).max_iters == 100


def test_overrides_are_read_as_mmengine_reads_them() -> None:
    cfg = read_config(
        CONFIGS / "demo.py",
        ["optim_wrapper.optimizer.lr=1e-4", "optim_wrapper.optimizer.betas=[0.8,0.9]", "log_level=DEBUG",
         "train_dataloader.dataset.pipeline.4.prob=0.25"],
    )  # fmt: skip
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.optim_wrapper.optimizer.betas == [0.8, 0.9]
    assert cfg.log_level == "DEBUG"
    assert cfg.train_dataloader.dataset.pipeline[4].prob == 0.25


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":[1,2],"b":{"c":(3,-4.5)}}', {"a": [1, 2], "b": {"c": (3, -4.5)}}),
        (
            "dict(type='A', size=(1,2), inner=dict(x=None))",
            {"type": "A", "size": (1, 2), "inner": {"x": None}},
        ),
        ("[dict(type='A'),{'type':'B'}]", [{"type": "A"}, {"type": "B"}]),
        ("{}", {}),
        ("iter_{}.pth", "iter_{}.pth"),
    ],
)
def test_a_whole_dict_is_a_value(text: str, value: Any) -> None:
    cfg = read_config(CONFIGS / "demo.py", [f"extra={text}"])

    assert cfg.to_dict()["extra"] == value


@pytest.mark.parametrize(
    "override",
    [
        "max_iters",
        "extra=dict(a=[1)",
        "extra={'a':open('x')}",
        "extra=dict(1)",
        "=3",
        "optim_wrapper.clip_grad=[1,(2]",
        "train_dataloader.dataset.pipeline.99.prob=1",
        "model.type.x=1",
    ],
)
def test_an_override_that_does_not_fit_is_a_config_error(override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set"):
        read_config(CONFIGS / "demo.py", [override])


@pytest.mark.parametrize(
    "text",
    ["model = dict(", "_base_ = ['./nowhere.py']", "raise SystemError('no')", "import sys; sys.exit(7)"],
)
def test_a_config_that_does_not_parse_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.py does not parse"):
        read_config(path)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no config at .*nowhere\.py"):
        read_config(tmp_path / "nowhere.py")


def test_what_changed_since_the_session_before_is_told_by_key_but_not_paths() -> None:
    def effective(mounted: str, **changes: Any) -> str:
        cfg = patched(
            small(launcher="none", **changes),
            data_roots={"data/earthvqa": Path(mounted)},
            checkpoint=Path(mounted, "iter_8.pth"),
            action="resume",
        )
        text: str = cfg.pretty_text
        return text

    roots = {"data_root": ["/kaggle/input/earthvqa/a-long-name-that-fills-the-line", "/kaggle/input/more"]}
    before = effective("/kaggle/input/earthvqa", val_dataloader__dataset=roots)
    moved = {"data_root": ["/kaggle/input/datasets/someone/earthvqa", "/kaggle/input/datasets/someone/more"]}
    after = effective("/kaggle/input/datasets/someone/earthvqa", val_dataloader__dataset=moved)
    assert before != after
    assert changes_between(before, after.replace("launcher = 'none'", "launcher = 'pytorch'")) == ()
    other = effective(
        "/kaggle/input/datasets/someone/earthvqa", val_dataloader__dataset=moved,
        optim_wrapper__optimizer__lr=1e-4, model__decode_head__dropout_ratio=0.1,
    )  # fmt: skip
    assert changes_between(before, other) == (
        "-model.decode_head.dropout_ratio = 0.0",
        "+model.decode_head.dropout_ratio = 0.1",
        "-optim_wrapper.optimizer.lr = 6e-05",
        "+optim_wrapper.optimizer.lr = 0.0001",
    )


@pytest.mark.parametrize("text", ["import os\na = os.getpid()\n", "a = inf\n", "a = dict(\n", "a = [*b]\n"])
def test_a_config_of_an_earlier_session_is_read_and_never_run(text: str) -> None:
    lines = [f"-{line}" for line in text.splitlines()]
    assert changes_between(text, "b = 1\n") == (*lines, "+b = 1")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("pretrain/mit_b0.pth", ("mit_b0.pth",)),
        ("open-mmlab://resnet50_v1c", ("resnet50_v1c-2cccc1ad.pth",)),
        ("torchvision://resnet50", ("resnet50-0676ba61.pth",)),
        ("open-mmlab://of_nobody", ("of_nobody",)),
        (
            "https://download.openmmlab.com/x/mit_b2_20220624-66e8bf70.pth",
            ("mit_b2_20220624-66e8bf70.pth", "mit_b2.pth"),
        ),
    ],
)
def test_weights_are_looked_for_under_the_name_of_the_published_file(
    name: str, files: tuple[str, ...]
) -> None:
    assert weights_files(name) == files


def test_a_config_of_an_installed_package_can_be_inherited(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "_base_ = ['mmseg::_base_/models/pspnet_r50-d8.py']\nmodel = dict(backbone=dict(depth=18))\n"
    )
    assert read_config(mine).model.backbone.type == "ResNetV1c"
    assert read_config(mine).model.backbone.depth == 18


@pytest.mark.skipif(find_spec("mmdet") is not None, reason="mmdet is installed")
@pytest.mark.parametrize(
    "text",
    [
        "_base_ = 'mmdet::_base_/default_runtime.py'\n",
        "_base_ = ['mmseg::_base_/default_runtime.py', 'mmdet::yolox/yolox_s_8xb8-300e_coco.py']\n",
        "from mmengine.config import read_base\nwith read_base():\n    from mmdet.configs.a import *\n",
        "_base_ = []\nimport mmdet.models\n",
    ],
)
def test_a_package_that_a_config_inherits_from_is_said_with_what_to_install(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(MachineError, match=r"needs the package mmdet.*Install onedl-mmdetection"):
        read_config(tmp_path / "mine.py")
