"""Some of a data set's classes: what is written has the values that the data set itself would have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS
from PIL import Image
from support.fields import any_image, save
from support.models import DEMO, write_model

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.engine.jobs import export
from mapsage_kaggle.engine.jobs import predict as engine
from mapsage_kaggle.engine.jobs.inference import TrainedModel, load_model
from mapsage_kaggle.errors import ConfigError, DataError
from mapsage_kaggle.imagery.sources import find_images
from mapsage_kaggle.imagery.submission import check_submission, write_submission
from mapsage_kaggle.imagery.writing import Labels
from mapsage_kaggle.jobs.predict import _SUBMISSION_LABELS

SOME = ("forest", "building", "water")
KINDS = {
    "EarthVQADataset": SOME,
    "LoveDADataset": SOME,
    "PascalVOCDataset": ("cat", "aeroplane", "person"),
}


def config(kind: str) -> Config:
    cfg = read_config(DEMO, ["model.decode_head.num_classes=3"])
    cfg.model.decode_head.loss_decode.avg_non_ignore = True  # else mmsegmentation warns
    cfg.train_dataloader.dataset.type = kind
    cfg.train_dataloader.dataset.metainfo = {"classes": KINDS[kind]}
    return for_inference(cfg, {})


def model_of(kind: str, folder: Path) -> TrainedModel:
    cfg = config(kind)
    return load_model(cfg, write_model(cfg, folder / "w.pth", 2), device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_is_read_as_a_mask_gives_the_classes_that_it_was_made_of(
    kind: str, tmp_path: Path
) -> None:
    model = model_of(kind, tmp_path)
    save(tmp_path / "image.png", any_image(3))
    task = engine.Task(out=tmp_path / "out", sources=find_images([tmp_path / "image.png"]), polygons=True)
    found = engine.Predictor(config(kind), model, task, "0" * 64, lambda event, **data: None).run()
    assert found["refused"] == []

    labels = engine.labels_of(config(kind), model)
    cls: Any = DATASETS.get(kind)
    reads = {
        "seg_map_path": str(tmp_path / "out" / "masks" / "image.png"), "seg_fields": [],
        "reduce_zero_label": labels.no_data == 0, "label_map": cls.get_label_map(list(KINDS[kind])),
    }  # fmt: skip
    read = LoadAnnotations()(reads)["gt_seg_map"]
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "image.png"))
    assert len(np.unique(read)) > 1
    for index in np.unique(read):
        assert set(np.unique(mask[read == index])) == {found["labels"][KINDS[kind][index]]}
    fields = pyogrio.raw.read(tmp_path / "out" / "polygons" / "image.gpkg", layer="classes")
    table = dict(zip(fields[0]["fields"], fields[3], strict=True))
    assert {(name, int(value)) for name, value in zip(table["class"], table["value"], strict=True)} <= set(
        zip(labels.classes, labels.numbers, strict=True)
    )


def test_some_classes_keep_their_own_values_and_colours(tmp_path: Path) -> None:
    model = model_of("EarthVQADataset", tmp_path)
    labels = engine.labels_of(config("EarthVQADataset"), model)
    assert (labels.numbers, labels.no_data) == ((6, 2, 4), 0)
    assert labels.palette == tuple(EARTHVQA_PALETTE[EARTHVQA_CLASSES.index(name)] for name in SOME)
    told = export._classes(config("EarthVQADataset"), model, export.Portable(model.net), 1, None)
    assert told["mask_values"] == [6, 2, 4]


@pytest.mark.parametrize(
    "change",
    [{"numbers": (1, 2, 3)}, {"no_data": 255}, {"classes": ("a", "b", "c")}, {"palette": ((9, 9, 9),) * 3}],
    ids=lambda change: next(iter(change)),
)
def test_maps_of_other_labels_are_others(tmp_path: Path, change: dict[str, Any]) -> None:
    cfg, task = config("EarthVQADataset"), engine.Task(out=tmp_path, sources=())
    labels = engine.labels_of(cfg, model_of("EarthVQADataset", tmp_path))
    assert task.digest(cfg, labels) == task.digest(cfg, replace(labels))
    assert task.digest(cfg, labels) != task.digest(cfg, replace(labels, **change))


def test_a_submission_of_some_classes_holds_the_benchmark_s_values(tmp_path: Path) -> None:
    labels = engine.labels_of(config("EarthVQADataset"), model_of("EarthVQADataset", tmp_path))
    save(tmp_path / "0.png", labels.values(np.arange(9).reshape(3, 3).astype(np.uint8) % 3, None))
    write_submission(tmp_path / "s.zip", {"0.png": tmp_path / "0.png"})
    check_submission(tmp_path / "s.zip", {"0.png": (3, 3)}, _SUBMISSION_LABELS)
    with pytest.raises(DataError, match="values 6, expected 1 to 5"):
        check_submission(
            tmp_path / "s.zip", {"0.png": (3, 3)},
            Labels(classes=("a",) * 5, palette=((0, 0, 0),) * 5, numbers=(1, 2, 3, 4, 5), no_data=0),
        )  # fmt: skip


def one_channel(names: tuple[str, ...], folder: Path) -> TrainedModel:
    cfg = read_config(DEMO, [f"model.decode_head.num_classes={len(names)}"])
    cfg.model.decode_head.update(out_channels=1, threshold=0.5)
    cfg.model.decode_head.loss_decode.update(use_sigmoid=True, avg_non_ignore=True)
    cfg.train_dataloader.dataset.metainfo = {"classes": names}
    cfg = for_inference(cfg, {})
    return load_model(cfg, write_model(cfg, folder / "w.pth", 2), device="cpu")


def test_one_class_alone_is_asked_for_the_name_of_its_absence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="building and its absence"):
        one_channel(("building",), tmp_path)
    assert one_channel(("background", "building"), tmp_path).num_channels == 1
