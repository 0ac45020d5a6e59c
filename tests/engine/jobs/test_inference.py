"""A trained model says what mmsegmentation's own says, whole, by windows, and in views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from support.models import DEMO, balance, fill

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.engine.jobs.inference import (
    TrainedModel,
    View,
    Windows,
    build_model,
    choose_device,
    load_model,
    windows_of,
)
from mapsage_kaggle.errors import CheckpointError, ConfigError, MachineError, UsageError

SLIDE = {"mode": "slide", "crop_size": (32, 32), "stride": (21, 21)}
TOLERANCE = 1e-5


def config(*overrides: str) -> Config:
    cfg = read_config(DEMO, ["model.backbone.embed_dims=8", *overrides])
    head = {"in_channels": [8, 16, 32, 48], "loss_decode.avg_non_ignore": True}
    cfg.merge_from_dict({f"model.decode_head.{key}": value for key, value in head.items()})
    return for_inference(cfg, {})


def trained(cfg: Config, folder: Path, *, seed: int = 0, **meta: Any) -> Path:
    """Write weights for a config's model, as mmengine's best files hold them."""
    net = build_model(cfg)
    fill(net, seed)
    balance(net)
    path = folder / "best_mIoU_iter_8.pth"
    torch.save({"meta": {"iter": 8, **meta}, "state_dict": net.state_dict(), "message_hub": {}}, path)
    return path


def images(num: int = 1, size: tuple[int, int] = (80, 71)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (num, 3, *size), generator=generator, dtype=torch.uint8)


def stock(model: TrainedModel, pictures: torch.Tensor, test_cfg: dict[str, Any]) -> torch.Tensor:
    """Return what mmsegmentation's own inference says."""
    prepared = model.net.data_preprocessor({"inputs": list(pictures)}, False)["inputs"]
    shape = tuple(prepared.shape[2:])
    metas = [{"ori_shape": shape, "img_shape": shape, "pad_shape": shape} for _ in prepared]
    before, model.net.test_cfg = model.net.test_cfg, Config({"x": test_cfg}).x
    with torch.inference_mode():
        logits: torch.Tensor = model.net.inference(prepared, metas)
    model.net.test_cfg = before
    return logits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    cfg = config()
    return load_model(cfg, trained(cfg, tmp_path_factory.mktemp("weights")), device="cpu")


def test_what_is_drawn_unseen_follows_from_the_image_too(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = model.net.encode_decode
    dropout = torch.nn.functional.dropout  # on, unless it is told otherwise
    monkeypatch.setattr(model.net, "encode_decode", lambda *args: dropout(encode(*args), 0.1))
    found = [model.logits(images(), windows=windows_of(SLIDE)) for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_drawn_for_a_window_follows_from_it_alone(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    encode = model.net.encode_decode
    monkeypatch.setattr(model, "draws", ("Noisy",))
    monkeypatch.setattr(
        model.net, "encode_decode", lambda *args: (found := encode(*args)) + torch.randn_like(found)
    )
    pictures = images(2)
    alone = [model.logits(one, windows=windows_of(SLIDE, batch=1)) for one in pictures.split(1)]
    together = model.logits(pictures, windows=windows_of(SLIDE, batch=batch))
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("size", [(64, 64), (80, 71), (33, 97)])
def test_whole_images_are_judged_as_by_mmsegmentation_bit_for_bit(
    model: TrainedModel, size: tuple[int, int]
) -> None:
    pictures = images(2, size)

    found = model.logits(pictures, windows=None)

    assert found.shape == (2, 8, *size)
    assert torch.equal(found, stock(model, pictures, {"mode": "whole"}))
    assert len(model.labels(found).unique()) > 1


@pytest.mark.parametrize("size", [(64, 64), (80, 71), (33, 97), (29, 90), (29, 30)])
def test_one_window_at_a_time_gives_mmsegmentations_logits_bit_for_bit(
    model: TrainedModel, size: tuple[int, int]
) -> None:
    windows = windows_of(SLIDE, batch=1)

    found = model.logits(images(1, size), windows=windows)

    assert torch.equal(found, stock(model, images(1, size), SLIDE))


@pytest.mark.parametrize("batch", [3, 64])
def test_several_windows_of_several_images_at_a_time_change_rounding_only(
    model: TrainedModel, batch: int
) -> None:
    pictures = images(3)
    expected = stock(model, pictures, SLIDE)

    found = model.logits(pictures, windows=windows_of(SLIDE, batch=batch))

    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def test_windows_never_hold_more_than_their_batch(model: TrainedModel, monkeypatch: Any) -> None:
    seen: list[int] = []
    ask = model.net.encode_decode

    def counting(inputs: torch.Tensor, metas: Any) -> torch.Tensor:
        seen.append(len(inputs))
        return ask(inputs, metas)

    monkeypatch.setattr(model.net, "encode_decode", counting)
    model.logits(images(2), windows=windows_of(SLIDE, batch=4))

    assert max(seen) == 4
    assert sum(seen) == 2 * len(Windows(size=(32, 32), stride=(21, 21)).places(80, 71))


def test_flipped_views_are_flipped_back_and_averaged(model: TrainedModel) -> None:
    pictures = images()
    whole = {"mode": "whole"}
    expected = stock(model, pictures, whole)
    expected = expected + stock(model, pictures.flip(3), whole).flip(3)
    expected = expected + stock(model, pictures.flip(2), whole).flip(2)

    found = model.logits(
        pictures, windows=None, views=(View(), View(flip="horizontal"), View(flip="vertical"))
    )

    assert torch.allclose(found, expected / 3, atol=1e-5)
    assert not torch.allclose(found, model.logits(pictures, windows=None), atol=1e-3)


def test_a_scaled_view_is_judged_at_its_size_and_brought_back(model: TrainedModel) -> None:
    inputs = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    larger = torch.nn.functional.interpolate(inputs, (60, 72), mode="bilinear")
    expected = model.logits_of_inputs(larger, windows=None)
    expected = torch.nn.functional.interpolate(expected, (40, 48), mode="bilinear")

    found = model.logits_of_inputs(inputs, windows=None, views=(View(scale=1.5),))

    assert torch.allclose(found, expected, atol=1e-6)


def test_what_the_preprocessor_pads_is_cut_off_again(tmp_path: Path) -> None:
    cfg = config()
    cfg.model.data_preprocessor.test_cfg = {"size_divisor": 32}
    padded = load_model(cfg, trained(cfg, tmp_path), device="cpu")

    assert padded.logits(images(1, (40, 50)), windows=None).shape == (1, 8, 40, 50)


def test_a_whole_checkpoint_gives_its_averaged_weights(tmp_path: Path) -> None:
    # mmengine's EMAHook swaps them: `state_dict` has the average, `ema_state_dict` what was trained.
    cfg = config()
    averaged, raw = build_model(cfg), build_model(cfg)
    fill(averaged, 1)
    fill(raw, 2)
    other = {f"module.{name}": value for name, value in raw.state_dict().items()}
    path = tmp_path / "iter_8.pth"
    torch.save({"meta": {}, "state_dict": averaged.state_dict(), "ema_state_dict": other}, path)

    found = load_model(cfg, path, device="cpu")

    assert all(
        torch.equal(found.net.state_dict()[name], value) for name, value in averaged.state_dict().items()
    )


def test_bare_weights_and_weights_of_a_wrapped_model_load(tmp_path: Path) -> None:
    cfg = config()
    net = build_model(cfg)
    fill(net)
    path = tmp_path / "weights.pth"
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, path)

    found = load_model(cfg, path, device="cpu")

    assert torch.equal(found.net.decode_head.conv_seg.bias, net.decode_head.conv_seg.bias)
    assert not any(parameter.requires_grad for parameter in found.net.parameters())
    assert not found.net.training


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    cfg = config()
    path = trained(cfg, tmp_path)
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["decode_head.conv_seg.bias"]
    torch.save(content, path)

    with pytest.raises(CheckpointError, match=r"decode_head\.conv_seg\.bias not in it"):
        load_model(cfg, path, device="cpu")


def test_weights_of_another_size_are_named_with_both_shapes(tmp_path: Path) -> None:
    path = trained(config(), tmp_path)
    larger = config("model.decode_head.channels=32")

    with pytest.raises(CheckpointError, match=r"fusion_conv.conv.weight has \(64, 256, 1, 1\)|convs.0.conv"):
        load_model(larger, path, device="cpu")


def test_a_checkpoint_of_other_classes_is_refused_by_name(tmp_path: Path) -> None:
    cfg = config()
    path = trained(cfg, tmp_path, dataset_meta={"classes": ("cat", "dog")})

    with pytest.raises(CheckpointError, match=r"2 classes \(cat, dog\); the config has 8 \(background, "):
        load_model(cfg, path, device="cpu")


def test_a_file_that_changed_after_it_was_verified_is_refused(tmp_path: Path) -> None:
    cfg = config()

    with pytest.raises(CheckpointError, match="its sha256 is"):
        load_model(cfg, trained(cfg, tmp_path), sha256="0" * 64, device="cpu")


def test_classes_and_colours_are_the_data_sets(model: TrainedModel) -> None:
    from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE

    assert model.classes == EARTHVQA_CLASSES
    assert model.palette == EARTHVQA_PALETTE
    assert model.meta["iter"] == 8


def test_sliding_without_a_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="crop_size=None"):
        windows_of({"mode": "slide"})
    with pytest.raises(UsageError, match="leave pixels out"):
        Windows(size=(32, 32), stride=(48, 32))


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(MachineError, match="sees no GPU"):
        choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_says_what_the_cpu_says(tmp_path: Path, model: TrainedModel) -> None:
    cfg = config()
    gpu = load_model(cfg, trained(cfg, tmp_path), device="cuda")
    expected = model.logits(images(2), windows=windows_of(SLIDE))

    found = gpu.logits(images(2), windows=windows_of(SLIDE)).cpu()

    assert float((found - expected).abs().max()) <= 1e-3 * float(expected.abs().max())
