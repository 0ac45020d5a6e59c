"""Figures by class: what they take, and that they show what they are given."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapsage_kaggle.data.datasets import EARTHVQA_PALETTE
from mapsage_kaggle.display.class_plots import confusion_picture, iou_picture
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.plots import cjk_families, labels_in

NAMES = ("background", "building", "road")
SOUND = [[90, 5, 5], [10, 40, 50], [0, 0, 100]]


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)


@pytest.mark.parametrize("colour", EARTHVQA_PALETTE[1:3], ids=str)
def test_the_classes_colours_are_the_palettes(colour: tuple[int, int, int]) -> None:
    shown = pixels(confusion_picture(SOUND, NAMES, EARTHVQA_PALETTE[:3]))
    assert (shown == colour).all(axis=1).any()
    assert not (pixels(confusion_picture(SOUND, NAMES)) == colour).all(axis=1).any()


def test_a_matrix_is_normalised_by_truth() -> None:
    more_of_one = [SOUND[0], [30 * count for count in SOUND[1]], SOUND[2]]
    labels: list[str] = []

    def noted(label: str) -> str:
        labels.append(label)
        return label

    confusion_picture(more_of_one, NAMES, say=noted)
    assert "share of each true class, %" in labels
    plain, repeated = pixels(confusion_picture(SOUND, NAMES)), pixels(confusion_picture(more_of_one, NAMES))
    # Only the column of all pixels, at the right, differs.
    assert 0 < (plain != repeated).any(axis=1).mean() < 0.01


def test_an_empty_row_and_column_for_no_class_is_left_out() -> None:
    with_none = [*[[*row, 0] for row in SOUND], [0, 0, 0, 0]]
    assert confusion_picture(with_none, NAMES) == confusion_picture(SOUND, NAMES)
    with_none[3][1] = 7
    assert confusion_picture(with_none, NAMES) != confusion_picture(SOUND, NAMES)


def test_a_class_that_does_not_occur_is_no_fault() -> None:
    assert confusion_picture([[3, 1], [0, 0]], ("a", "b")).startswith(b"\x89PNG")


def test_many_classes_fit_into_a_picture_of_bounded_size() -> None:
    many = [[int(row == column) for column in range(150)] for row in range(150)]
    with Image.open(io.BytesIO(confusion_picture(many, [f"class {index}" for index in range(150)]))) as shown:
        assert max(shown.size) < 8000


@pytest.mark.parametrize("counts", [[[1, 2]], [[1, 2], [3]], [[1]]], ids=str)
def test_a_matrix_that_does_not_fit_is_refused(counts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        confusion_picture(counts, ("a", "b"))


def test_iou_is_drawn_by_class_in_the_classes_colours() -> None:
    scored = [(at, {"road": at / 100, "rare": None}) for at in (10, 50, 90)]
    shown = pixels(iou_picture(scored, {"road": (255, 0, 200)}, boundaries=[40]))
    assert (shown == (255, 0, 200)).all(axis=1).any()


def test_labels_are_chinese_where_a_font_has_the_letters(caplog: pytest.LogCaptureFixture) -> None:
    if not cjk_families():
        pytest.skip("no font with Chinese letters is installed (Debian's package fonts-noto-cjk)")
    say = labels_in(Words("zh"))
    with caplog.at_level(logging.WARNING, logger="matplotlib"):
        confusion_picture(SOUND, NAMES, say=say)
    assert say("prediction") == "预测"
    assert caplog.records == []


def test_labels_are_english_where_no_font_has_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapsage_kaggle.display.plots.cjk_families", tuple)
    assert labels_in(Words("zh"))("prediction") == "prediction"
