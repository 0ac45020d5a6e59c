"""The same ground gives the same map, whatever the size of the image that it lies in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.data_preprocessor import SegDataPreProcessor
from PIL import Image
from support.models import DEMO

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.config.scale import ScaleOptions
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.engine.jobs import predict as engine
from mapsage_kaggle.engine.jobs import scaling
from mapsage_kaggle.engine.jobs.inference import TrainedModel
from mapsage_kaggle.imagery.journal import JOURNAL
from mapsage_kaggle.imagery.sources import find_images
from mapsage_kaggle.jobs import predict as parent
from mapsage_kaggle.jobs.subject import ModelOptions
from mapsage_kaggle.records import SCALE_KEY

BLOCK = 64
SIZES = [
    (96, 128), (100, 200), (100, 80), (128, 128), (150, 333), (200, 96), (256, 256), (257, 255),
    (300, 300), (320, 480), (333, 150), (400, 400), (450, 450), (480, 320), (500, 375), (512, 512),
    (512, 513), (600, 600), (640, 480), (255, 256), (256, 257), (768, 512), (270, 230), (128, 512),
    (512, 128), (90, 1100), (1100, 90), (129, 508), (343, 191), (200, 900), (130, 700), (700, 130),
    (288, 288), (224, 224), (192, 160), (160, 192), (384, 96), (96, 384), (410, 399), (560, 240),
]  # fmt: skip


class Stripes(torch.nn.Module):
    """Tells stripes that come back after 8 pixels from those that do after 16; of others it knows nothing."""

    out_channels = len(EARTHVQA_CLASSES)
    align_corners = False

    def __init__(self) -> None:
        super().__init__()
        self.test_cfg: dict[str, Any] = {}
        self.data_preprocessor = SegDataPreProcessor()

    def encode_decode(self, inputs: torch.Tensor, metas: Any) -> torch.Tensor:
        grey = inputs.mean(1, keepdim=True)
        found = grey.new_zeros(len(grey), self.out_channels, *grey.shape[2:])
        for index, lag in enumerate((4, 8)):
            moved = (F.pad(grey, (lag, 0, 0, 0), mode="replicate")[..., :-lag] - grey).abs()
            for kernel in ((17, 1), (1, 17)):
                moved = F.avg_pool2d(
                    moved, kernel, 1, [side // 2 for side in kernel], count_include_pad=False
                )
            found[:, index : index + 1] = moved
        return found


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    net: Any = Stripes()
    return TrainedModel(
        net, classes=EARTHVQA_CLASSES, palette=EARTHVQA_PALETTE, device=torch.device("cpu"), meta={}
    )


def config(side: int = 1024) -> Config:
    init_default_scope("mmseg")
    cfg = for_inference(read_config(DEMO), {})
    cfg.test_dataloader.dataset.pipeline[1].scale = (side, side)
    return cfg


def ground(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return blocks of stripes that the model knows at twice their size, and the truth."""
    y, x = np.indices((height, width))
    truth = (y // BLOCK + x // BLOCK) % 2
    grey = np.where((x % np.where(truth, 8, 4)) < np.where(truth, 4, 2), 220, 30).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2), truth


def score(folder: Path, model: TrainedModel, size: tuple[int, int], **options: Any) -> float:
    """Return the mIoU, in percent, of the map of an image of so many pixels."""
    image, truth = ground(*size)
    file = folder / f"{size[0]}x{size[1]}.png"
    Image.fromarray(image).save(file, compress_level=1)
    task = engine.Task(out=folder / "out", sources=find_images([file]), **options)
    found = engine.Predictor(config(), model, task, "0" * 64, lambda event, **data: None).run()
    assert found["refused"] == []
    with Image.open(folder / "out" / "masks" / file.with_suffix(".png").name) as picture:
        mask = np.asarray(picture).astype(int) - 1
    return float(
        np.mean(
            [100 * np.sum((mask == k) & (truth == k)) / np.sum((mask == k) | (truth == k)) for k in (0, 1)]
        )
    )


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows come where images are larger than 512 x 512 as the model sees them."""
    monkeypatch.setattr(scaling, "WHOLE_SIDE", 512)
    monkeypatch.setattr(scaling, "WINDOW", 256)


@pytest.mark.slow(scope_s=40)
def test_forty_sizes_score_as_the_training_size_does(tmp_path: Path, model: TrainedModel, soon: None) -> None:
    # At 512 x 512 the test pipeline, too, shows the model twice the image's size.
    trained = score(tmp_path, model, (512, 512))
    found = {size: score(tmp_path, model, size, factor=2.0) for size in SIZES}
    assert len(found) == 40
    assert {size: value for size, value in found.items() if abs(value - trained) > 3} == {}
    assert trained > 90


@pytest.mark.slow(scope_s=40)
def test_one_pixel_more_is_no_cliff_where_the_scale_is_known(tmp_path: Path, model: TrainedModel) -> None:
    below, above = (score(tmp_path, model, (1024, width), factor=2.0) for width in (1024, 1025))
    assert min(below, above) > 90
    assert abs(below - above) < 1
    unknown = [score(tmp_path, model, size) for size in ((512, 512), (300, 300))]
    assert unknown[0] - unknown[1] > 30


@pytest.mark.parametrize("size", [(100, 80), (256, 256), (257, 255), (90, 700)])
def test_any_size_scores_as_the_training_size_does(
    tmp_path: Path, model: TrainedModel, soon: None, size: tuple[int, int]
) -> None:
    assert abs(score(tmp_path, model, size, factor=2.0) - score(tmp_path, model, (512, 512))) < 3


@pytest.mark.parametrize("size", [(80, 100), (150, 333)])
def test_windows_see_an_image_of_any_size_at_its_own(
    tmp_path: Path, model: TrainedModel, size: tuple[int, int]
) -> None:
    image, _ = ground(*size)
    enlarged = np.asarray(Image.fromarray(image).resize((2 * size[1], 2 * size[0]), Image.Resampling.NEAREST))
    own = model.labels(
        model.logits(torch.from_numpy(enlarged.transpose(2, 0, 1).copy())[None], windows=None)
    )[0]
    Image.fromarray(enlarged).save(tmp_path / "image.png")
    task = engine.Task(out=tmp_path / "out", sources=find_images([tmp_path / "image.png"]), window=700)
    engine.Predictor(config(), model, task, "0" * 64, lambda event, **data: None).run()
    with Image.open(tmp_path / "out" / "masks" / "image.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), own.numpy() + 1)


# --- what is told


def told(
    model: TrainedModel, folder: Path, *sizes: tuple[int, int], **options: Any
) -> tuple[list[str], list[float]]:
    """Return what a person is told, and the scales in the journal."""
    for number, size in enumerate(sizes):
        Image.fromarray(ground(*size)[0]).save(folder / f"{number}.png")
    said: list[str] = []
    task = engine.Task(out=folder / "out", sources=find_images([folder]), **options)
    take = lambda event, **data: said.append(data["message"]) if event == "notice" else None  # noqa: E731
    engine.Predictor(config(256), model, task, "0" * 64, take).run()
    lines = (folder / "out" / JOURNAL).read_text().splitlines()
    return said, [line["scale"] for line in sorted(map(json.loads, lines), key=lambda line: line["name"])]


def test_an_unknown_scale_is_told_once_and_noted_for_each_image(
    tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "WHOLE_SIDE", 256)
    (line,), scales = told(model, tmp_path, (128, 128), (64, 64), (256, 257))
    assert ".png is seen at " in line
    assert "images of up to 256 x 256 pixels" in line
    assert "--scale FACTOR" in line
    assert scales == [2.0, 4.0, 1.0]


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_known_scale_is_noted_for_each_image(tmp_path: Path, model: TrainedModel, factor: float) -> None:
    assert told(model, tmp_path, (128, 128), (64, 80), factor=factor) == ([], [factor, factor])


@pytest.mark.parametrize(
    ("noted", "said", "factor"),
    [
        ({"factor": 2.0, "low": 2.0, "high": 2.0}, {}, 2.0),
        ({"factor": 2.0, "low": 1.0, "high": 4.0}, {}, 1.0),
        ({"factor": 2.0, "low": 2.0, "high": 2.0}, {"gsd": 1.2}, 4.0),  # the config says 0.6 m
        (None, {"scale": 3.0}, 3.0),
        (None, {}, None),
    ],
)
def test_the_scale_in_a_checkpoint_and_what_a_person_says_reach_the_child(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    noted: dict[str, float] | None,
    said: dict[str, float],
    factor: float | None,
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    hub = {"runtime_info": {SCALE_KEY: noted}}
    torch.save({"state_dict": {"w": torch.ones(2)}, "message_hub": hub}, tmp_path / "iter_8.pth")
    Image.fromarray(ground(8, 8)[0]).save(tmp_path / "image.png")
    jobs: list[Any] = []
    numbers = dict.fromkeys(("num_done", "num_before", "num_pixels", "seconds", "peak_memory_bytes"), 1)
    result = {**numbers, "refused": [], "files": {}}
    monkeypatch.setattr(parent, "run_child", lambda entry, job, *others: (jobs.append(job), result)[1])
    events: list[Any] = []
    parent.predict(
        ModelOptions(config=DEMO, checkpoint=tmp_path / "iter_8.pth"),
        parent.PredictOptions(
            out=tmp_path / "out", images=(tmp_path / "image.png",), scale=ScaleOptions(**said)
        ),
        events.append,
    )
    assert [job["factor"] for job in jobs] == [factor]
    assert [f"at {factor:.3g} times" in event["message"] for event in events] == [True] * len(events)
    assert bool(events) == (factor is not None)
