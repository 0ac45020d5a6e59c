"""What an export says of a form that could not be made, and the code that it hands on beside those made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import demo, write_model

from mapsage_kaggle.data.scenes import draw_scene
from mapsage_kaggle.display.jobs import Card, card_text
from mapsage_kaggle.engine.jobs import export
from mapsage_kaggle.engine.jobs.export import _reason
from mapsage_kaggle.engine.jobs.inference import load_model
from mapsage_kaggle.engine.jobs.predict import Predictor, Source, Task
from mapsage_kaggle.errors import JobError
from mapsage_kaggle.jobs.export import ExportedFile
from mapsage_kaggle.outside import MAX_SHOWN

RESIZE = {"type": "Resize", "scale": (160, 160), "keep_ratio": True}
SLIDE = {"mode": "slide", "crop_size": (96, 96), "stride": (64, 64)}
PROGRAM = 'torch.export.load("model.pt2").module()'


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such size\nat all"), "ValueError: no such size"),
        (KeyError(), "KeyError: no message"),
        (JobError("The logits differ."), "The logits differ."),
    ],
)
def test_a_form_s_reason_is_the_first_line_of_the_error(error: Exception, said: str) -> None:
    assert _reason(error) == said


def test_a_reason_of_pages_is_cut_short() -> None:
    assert len(_reason(RuntimeError("Given input size: " + "(s73 + 1)//2 * " * 4000))) <= MAX_SHOWN + 20


@pytest.mark.filterwarnings("ignore:When align_corners:UserWarning")
@pytest.mark.parametrize(
    ("steps", "model"),
    [
        ([RESIZE], {"decode_head.align_corners": True}),
        ([RESIZE], {"data_preprocessor.test_cfg": {"size": (192, 160)}, "data_preprocessor.pad_val": 2}),
        ([RESIZE], {"data_preprocessor.test_cfg": {"size_divisor": 32}, "test_cfg": SLIDE}),
        ([{"type": "Resize", "scale": 120}], {}),
        ([{"type": "Resize", "scale_factor": (1.5, 0.75)}], {}),
        ([RESIZE, {"type": "Pad", "size_divisor": 32}], {}),
        ([{"type": "CLAHE"}, {"type": "ResizeToMultiple"}], {}),
    ],
)
def test_the_cards_code_makes_the_mask_of_predict(
    steps: list[Any], model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"backbone.embed_dims": 8, "decode_head.in_channels": [8, 16, 32, 48], "decode_head.channels": 16}
    cfg = demo(tmp_path)
    cfg.merge_from_dict({f"model.{name}": value for name, value in {**small, **model}.items()})
    load, *_, pack = cfg.val_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [load, *steps, pack]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_scene(144, (0, 0))[0][:100]).save("tile.png")
    trained = load_model(cfg, write_model(cfg, tmp_path / "iter_8.pth", 1), device="cpu")
    task = Task(out=tmp_path, sources=(Source(path=tmp_path / "tile.png", name="tile.png"),), fast=False)
    made = Predictor(cfg, trained, task, "0" * 64, lambda event, **data: None).run()["files"]["tile.png"]

    job = {"config": "all.py", "checkpoint": "iter_8.pth", "sha256": None, "out": ".", "images": ["tile.png"]}
    cfg.dump("all.py")
    found = export.run({**job, "forms": ["safetensors"]}, lambda event, **data: None)
    card = card_for_torch(json.loads(Path("classes.json").read_text()), found["divisor"])
    code = re.findall(r"```python\n(.*?)```", card, re.S)[-1]
    assert PROGRAM in code
    exec(code.replace(PROGRAM, "portable"), {"portable": export.Portable(trained.net)})

    masks = [np.asarray(Image.open(path)) for path in ("mask.png", made)]
    assert (masks[0] == masks[1]).mean() > 0.999
    assert len(np.unique(masks[1])) > 2


def card_for_torch(classes: dict[str, Any], divisor: int = 1) -> str:
    """Return the card of a program, as if one had been made."""
    options = {"sha256": "", "max_difference": 0.0, "agreement": 1.0, "sizes": ()}
    card = Card(
        title="", licence="", licence_id="", config="", checkpoint="", checkpoint_sha256="", iteration=None,
        num_weights=1, classes=classes, failed=(), sessions=(),
        files=(ExportedFile(name="model.pt2", size_bytes=1, **options),), compared_on=(), draws=(), data="",
        divisor=divisor,
    )  # fmt: skip
    return card_text(card)


def test_a_class_with_a_bar_in_its_name_keeps_to_its_column() -> None:
    classes = {
        "classes": ["a|b"], "palette": [[1, 2, 3]], "mask_values": [0], "no_data": 255, "prepare": [],
        "input": {}, "read": {"type": "LoadImageFromFile"}, "output": {"num_channels": 1}, "windows": None,
    }  # fmt: skip
    assert r"| 0 | a\|b | `#010203` |" in card_for_torch(classes)


@pytest.mark.parametrize(
    ("test_cfg", "size"), [({"size": (96, 64)}, (96, 70)), ({"size_divisor": 32}, (64, 96)), (None, (50, 70))]
)
def test_forms_are_compared_at_the_size_that_the_preprocessor_pads_to(
    test_cfg: dict[str, Any] | None, size: tuple[int, int]
) -> None:
    net = SimpleNamespace(data_preprocessor=SimpleNamespace(test_cfg=test_cfg))
    assert export._padded(torch.ones(3, 50, 70), net).shape == (3, *size)
