"""Pretrained weights are taken as mmengine takes them, and what did not arrive is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.config.weights import ATTACHED_MMCLS
from mapsage_kaggle.engine.building import build_model
from mapsage_kaggle.engine.pretrained import initialise, noted_arrivals
from mapsage_kaggle.engine.safety import install_safe_loading
from mapsage_kaggle.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SWIN = {
    "type": "SwinTransformer", "embed_dims": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1),
    "window_size": 2,
}  # fmt: skip
MIT = {
    "type": "MixVisionTransformer", "embed_dims": 8, "num_layers": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1],
}  # fmt: skip


@pytest.fixture(autouse=True)
def safe_loading() -> Iterator[None]:
    schemes = dict(CheckpointLoader._schemes)
    install_safe_loading()
    yield
    CheckpointLoader._schemes = schemes


def initialised(backbone: dict[str, Any], checkpoint: str, **init: Any) -> tuple[Any, list[str]]:
    """Return a model that took a file, and the warnings."""
    init_cfg = {"type": "Pretrained", "checkpoint": checkpoint, **init}
    head = {"type": "FCNHead", "in_channels": 64, "channels": 4, "num_classes": 2, "in_index": 3}
    cfg = {"type": "EncoderDecoder", "backbone": {**backbone, "init_cfg": init_cfg}, "decode_head": head}
    model = build_model(Config({"model": cfg}))
    return model, list(initialise(model))


def weights(backbone: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    from mmseg.registry import MODELS

    net = MODELS.build(dict(backbone))
    return {prefix + name: value for name, value in net.state_dict().items()}


def saved(tmp_path: Path, content: Any) -> str:
    torch.save(content, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


@pytest.mark.parametrize("prefix", ["backbone.", "backbone"])
def test_a_prefix_is_taken_with_and_without_its_dot(tmp_path: Path, prefix: str) -> None:
    given = weights(MIT, "backbone.")
    model, warnings = initialised(MIT, saved(tmp_path, {"state_dict": given}), prefix=prefix)
    name = "layers.0.0.projection.weight"
    assert torch.equal(model.backbone.state_dict()[name], given[f"backbone.{name}"])
    assert warnings == []


def test_of_mmcls_only_the_backbone_is_taken(tmp_path: Path) -> None:
    file = saved(tmp_path, {"state_dict": {**weights(MIT, "backbone."), "head.fc.weight": torch.ones(2)}})
    assert initialised(MIT, ATTACHED_MMCLS + file)[1] == []


@pytest.mark.parametrize("layout", ["model", "state_dict", "backbone."])
def test_a_swin_file_is_taken_in_each_layout_that_stock_knows(tmp_path: Path, layout: str) -> None:
    prefix = "backbone." if layout == "backbone." else ""
    given = {
        name: value
        for name, value in weights(SWIN, prefix).items()
        # A file of the authors has none of these: they are the norms of what the heads take.
        if not name.removeprefix(prefix).startswith("norm")
    }
    file = saved(tmp_path, {"state_dict" if layout == "backbone." else layout: given})
    warnings = initialised(SWIN, file)[1]
    assert len(warnings) == 1
    assert "norm0.weight, norm0.bias, norm1.weight and 5 more" in warnings[0]


def test_a_file_that_holds_a_part_is_taken_and_the_rest_is_named(tmp_path: Path) -> None:
    given = {name: value for name, value in weights(MIT).items() if name.startswith("layers.0.")}
    _, warnings = initialised(MIT, saved(tmp_path, given))
    assert f"gives {len(given)} of the" in warnings[0]
    assert "layers.1." in warnings[0]


def test_a_file_of_which_nothing_arrives_is_refused_with_the_right_file_s_name(tmp_path: Path) -> None:
    file = tmp_path / "mit_b0.pth"
    torch.save({"patch_embed1.proj.weight": torch.ones(3)}, file)
    with pytest.raises(ConfigError, match=r"such as patch_embed1\.proj\.weight") as caught:
        initialised(MIT, str(file))
    assert "mit_b0_20220624-7e0fe6dd.pth" in caught.value.remedy


@pytest.mark.parametrize("key", ["model", "module"])
def test_weights_under_a_key_that_stock_does_not_look_at_are_named_with_it(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"such as {key}\.layers\.0\."):
        initialised(MIT, saved(tmp_path, {key: weights(MIT), "epoch": 3}))


def test_a_prefix_that_a_file_does_not_have_is_refused_with_what_it_has(tmp_path: Path) -> None:
    file = saved(tmp_path, {"state_dict": weights(MIT, "backbone.")})
    with pytest.raises(ConfigError, match=r"under the prefix encoder\. .* like backbone\.layers\.0\."):
        initialised(MIT, file, prefix="encoder")


def test_position_biases_of_beit_are_resized_with_any_scipy(tmp_path: Path) -> None:
    beit = {
        "type": "BEiT", "embed_dims": 16, "num_layers": 1, "num_heads": 2, "mlp_ratio": 1, "patch_size": 8,
        "init_values": 0.1, "out_indices": (0,),
    }  # fmt: skip
    small, name = {**beit, "img_size": (32, 32)}, "layers.0.attn.relative_position_bias_table"
    given = weights(small)
    given[name] += torch.arange(2.0)  # a head without any bias, and one with the same everywhere
    model, warnings = initialised({**beit, "img_size": (64, 64)}, saved(tmp_path, given))
    found = model.backbone.state_dict()[name]
    assert torch.allclose(found, torch.arange(2.0).expand(15 * 15 + 3, 2), atol=1e-6)
    assert warnings == []


def test_a_weight_of_another_shape_has_not_arrived(tmp_path: Path) -> None:
    given = {name: value.new_zeros((7, 7, 7)) for name, value in weights(MIT).items()}
    with pytest.raises(ConfigError, match="holds none"):
        initialised(MIT, saved(tmp_path, given))


def test_afterwards_modules_load_as_before() -> None:
    before = torch.nn.Module._load_from_state_dict
    with noted_arrivals():
        pass
    assert torch.nn.Module._load_from_state_dict is before
