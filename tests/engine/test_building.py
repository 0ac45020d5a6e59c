"""The model is built as the engine builds it, and what it is made of is seen in it, not in the config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from torch.nn import functional

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.config.split import ModelTraits, split_differences
from mapsage_kaggle.engine.building import build_model, drawing_modules, traits_of
from mapsage_kaggle.engine.problems import known_problem
from mapsage_kaggle.errors import ConfigError, MachineError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NO_DROPS = {"drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0}
MIT = {
    "type": "MixVisionTransformer", "embed_dims": 8, "num_layers": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1],
    **NO_DROPS,
}  # fmt: skip
FCN = {
    "type": "FCNHead", "in_channels": 64, "channels": 8, "num_classes": 3, "num_convs": 1, "in_index": 3,
    "dropout_ratio": 0.0, "norm_cfg": {"type": "GN", "num_groups": 2}, "align_corners": False,
}  # fmt: skip
UNET = {
    "type": "UNet", "base_channels": 4, "num_stages": 2, "strides": (1, 1), "enc_num_convs": (1, 1),
    "dec_num_convs": (1,), "downsamples": (True,), "enc_dilations": (1, 1), "dec_dilations": (1,),
}  # fmt: skip
EMA = {"type": "EMAHead", "in_channels": 8, "channels": 8, "ema_channels": 8, "num_bases": 4, "num_stages": 1}
HAM = {
    "type": "LightHamHead", "in_channels": [8, 8], "in_index": [2, 3], "ham_channels": 8,
    "ham_kwargs": {"MD_S": 1, "MD_R": 4, "rand_init": True},
}  # fmt: skip


def config(backbone: dict[str, Any] = MIT, head: dict[str, Any] | None = None, **model: Any) -> Config:
    head = {**FCN, "in_channels": 8, **(head or {})}
    if head["type"] != "FCNHead":
        del head["num_convs"]
    return Config({
        "default_scope": "mmseg",
        "model": {"type": "EncoderDecoder", "backbone": backbone, "decode_head": head,
                  "test_cfg": {"mode": "whole"}, **model},
    })  # fmt: skip


def traits(*args: Any, **changes: Any) -> ModelTraits:
    return traits_of(build_model(config(*args, **changes)))


def test_a_model_with_pretrained_as_a_string_is_built() -> None:
    cfg = config({"type": "ResNetV1c", "depth": 18}, {"in_channels": 512}, pretrained="open-mmlab://r18")
    assert build_model(cfg).backbone.init_cfg["checkpoint"] == "open-mmlab://r18"


def test_building_leaves_the_config_as_it_was() -> None:
    cfg = config({"type": "ResNetV1c", "depth": 18}, {"in_channels": 512}, pretrained="open-mmlab://r18")
    before = copy.deepcopy(cfg.to_dict())
    build_model(cfg)
    assert cfg.to_dict() == before


def test_what_a_split_leaves_equal_is_not_held_against_a_model() -> None:
    assert split_differences(traits()) == ()


@pytest.mark.parametrize(
    ("backbone", "head", "word"),
    [
        ({**MIT, "drop_path_rate": 0.1}, {}, "DropPath 0.1 in backbone"),
        (MIT, {"dropout_ratio": 0.2}, "Dropout2d 0.2 in decode_head"),
        ({"type": "ResNetV1c", "depth": 18}, {"in_channels": 512}, "batch norm"),
        (UNET, {"in_channels": 4, "in_index": 1}, "batch norm"),
        (MIT, {"norm_cfg": {"type": "SyncBN"}}, "batch norm takes its statistics from its own part"),
        (MIT, {"loss_decode": [{"type": "LovaszLoss", "reduction": "none"}]}, "LovaszLoss"),
        (MIT, {"loss_decode": {"type": "CrossEntropyLoss", "reduction": "sum"}}, "CrossEntropyLoss"),
        (MIT, {"act_cfg": {"type": "RReLU"}}, "RReLU"),
        (MIT, {"sampler": {"type": "OHEMPixelSampler"}}, "sampler"),
        (MIT, EMA, "EMAModule"),
        (MIT, HAM, "NMF2D"),
    ],
)
def test_what_makes_a_split_batch_differ_is_said(
    backbone: dict[str, Any], head: dict[str, Any], word: str
) -> None:
    found = split_differences(traits(backbone, head))
    assert word in "".join(found)


class Plain(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values


class Noisy(Plain):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.empty_like(values).normal_()


class Normal(Plain):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.normal(values, 1.0)


class Gumbel(Plain):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.gumbel_softmax(values)


class Thinned(Plain):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.dropout(values, 0.1, self.training)


class Begun(Plain):
    def begin_anew(self, weight: torch.Tensor) -> None:
        torch.nn.init.normal_(weight)


@pytest.mark.parametrize(
    ("part", "trains", "infers"),
    [(Plain, 0, 0), (Noisy, 1, 1), (Normal, 1, 1), (Gumbel, 1, 1), (Thinned, 1, 0), (Begun, 0, 0)],
)
def test_a_module_that_draws_is_told_and_a_dropout_draws_in_training_alone(
    part: type[torch.nn.Module], trains: int, infers: int
) -> None:
    model = torch.nn.Sequential(part())
    assert traits_of(model).draws == (part.__name__,) * trains
    assert drawing_modules(model) == (part.__name__,) * infers


class Judged(Plain):
    def loss(self, values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(values, labels, ignore_index=255)


@pytest.mark.parametrize("part", [Judged(), torch.nn.CrossEntropyLoss(ignore_index=255)])
def test_a_loss_that_is_no_loss_decode_may_look_at_the_whole_batch(part: torch.nn.Module) -> None:
    assert traits_of(torch.nn.Sequential(part)).losses == (type(part).__name__,)


def test_a_frozen_batch_norm_takes_nothing_from_the_batch() -> None:
    assert not traits({"type": "ResNetV1c", "depth": 18, "norm_eval": True}, {"in_channels": 512}).batch_norm


def test_sync_batch_norm_looks_at_all_ranks_parts() -> None:
    found = split_differences(traits(MIT, {"norm_cfg": {"type": "SyncBN"}}), world_size=2)
    assert "all ranks' parts" in found[0]


@pytest.mark.parametrize(
    ("backbone", "channels", "can"),
    [({"type": "ResNetV1c", "depth": 18}, 512, True), ({"type": "ERFNet"}, 16, False), (MIT, 8, True)],
)
def test_a_backbone_can_recompute_where_it_takes_with_cp(
    backbone: dict[str, Any], channels: int, can: bool
) -> None:
    head = {"in_channels": channels, "in_index": 0 if backbone["type"] == "ERFNet" else 3}
    assert traits(backbone, head).can_recompute is can


def test_the_module_that_is_missing_is_named_not_the_one_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_part.py").write_text("import a_library_of_mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError) as caught:
        import_modules_from_strings(["own_part"])
    problem = known_problem(caught.value)
    assert isinstance(problem, ConfigError)
    assert (
        problem.problem == f"The module a_library_of_mine is missing, which {tmp_path}/own_part.py imports."
    )


def test_a_name_that_a_module_does_not_have_is_quoted_with_who_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outer_part.py").write_text("import inner_part\n")
    (tmp_path / "inner_part.py").write_text("from mmseg.models import NoSuchHead\n")
    config = tmp_path / "mine.py"
    config.write_text("custom_imports = dict(imports='outer_part', allow_failed_imports=False)\n")
    with pytest.raises(ImportError) as caught:
        Config.fromfile(config)
    problem = known_problem(caught.value)
    assert problem is not None
    assert (
        f"{tmp_path}/inner_part.py imports what is not there: cannot import name 'NoSuchHead'"
        in problem.problem
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Please install onedl-mmcv for PSAMask ops. E.g. with mim"), "PSAMask"),
        (ImportError("Please install onedl-mmdetection to use Mask2FormerHead: pip"), "mmdet"),
        (ModuleNotFoundError("No module named 'mmpretrain'", name="mmpretrain"), "mmpretrain"),
        (ModuleNotFoundError("No module named 'mmcv._ext'", name="mmcv._ext"), "compiled ops of mmcv"),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_to_install(error: Exception, words: str) -> None:
    problem = known_problem(error)
    assert isinstance(problem, MachineError)
    assert words in problem.problem


def test_an_error_of_another_kind_is_left_as_it_is() -> None:
    assert known_problem(ValueError("no")) is None
