"""Samples that cannot be read: storage that does not answer, and damaged files."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine import reading
from mapsage_kaggle.engine.faults import failure_kind, failure_message
from mapsage_kaggle.engine.reading import ReadableDataset, StorageError, name_of
from mapsage_kaggle.engine.sampling import Draw, PositionalDataset
from mapsage_kaggle.errors import TrainingError


class Shelf:
    """Four samples, of which some fail: with an error each time, or as often as is said."""

    def __init__(self, failures: dict[int, list[BaseException]]) -> None:
        self.failures = failures
        self.metainfo = {"classes": ("a",)}

    def __len__(self) -> int:
        return 4

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_path": f"{index}.png"}

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = np.random.randint(1 << 30)
        if self.failures.get(index):
            error = self.failures[index]
            raise error.pop(0)
        labels = torch.full((1, 2, 2), index)
        return {"inputs": draw, "data_samples": SimpleNamespace(gt_sem_seg=SimpleNamespace(data=labels))}


def stale(times: int) -> list[BaseException]:
    return [OSError(errno.ESTALE, "Stale file handle") for _ in range(times)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(reading.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("choice", ["skip", "fail"])
def test_a_moment_without_an_answer_changes_no_sample(
    choice: str, waits: list[float], warned: Callable[[], list[dict[str, Any]]]
) -> None:
    whole = PositionalDataset(Shelf({}), on_bad_image=choice)[Draw(9, 2, 77)]
    found = PositionalDataset(Shelf({2: stale(3)}), on_bad_image=choice)[Draw(9, 2, 77)]
    assert found["inputs"] == whole["inputs"]
    assert waits == [0.5, 2.0, 8.0]
    messages = [warning["message"] for warning in warned()]
    assert messages == ["2.png could not be read (Stale file handle); it is tried again."] * 3
    assert Words("zh").translate(messages[0]) == "2.png 读取失败（Stale file handle），将重试。"


@pytest.mark.parametrize("choice", ["skip", "fail"])
@pytest.mark.parametrize("wrapper", [PositionalDataset, ReadableDataset])
def test_storage_that_stays_away_is_no_damaged_image(wrapper: Any, choice: str, waits: list[float]) -> None:
    data = wrapper(Shelf({2: stale(9)}), on_bad_image=choice)
    with pytest.raises(StorageError, match=r"2.png could not be read in 4 tries") as caught:
        data[Draw(9, 2, 77) if wrapper is PositionalDataset else 2]
    # The supervisor starts again after an ``error``; after ``refused`` it would not.
    assert failure_kind(caught.value, has_trained=False) == "error"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file"), OSError("truncated"), ValueError("x")]
)
def test_what_is_the_file_s_fault_is_not_tried_again(error: Exception, waits: list[float]) -> None:
    with pytest.raises(TrainingError, match=r"Sample 2 \(2.png\) cannot be loaded"):
        PositionalDataset(Shelf({2: [error]}))[Draw(9, 2, 77)]
    assert waits == []


def test_a_data_worker_s_error_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PATIENCE_S", ())
    loader = DataLoader(ReadableDataset(Shelf({0: stale(9)})), num_workers=1, collate_fn=list)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"0.png") as caught:
        next(iter(loader))
    assert failure_kind(caught.value, has_trained=True) == "error"
    assert failure_message(caught.value).endswith("0.png could not be read in 1 tries: Stale file handle.")
    assert "\n" not in failure_message(caught.value)


def test_a_damaged_validation_image_is_told_by_its_name() -> None:
    with pytest.raises(TrainingError, match=r"Sample 1 \(1.png\) cannot be loaded: broken"):
        ReadableDataset(Shelf({1: [ValueError("broken")]}))[1]


def test_a_damaged_mask_is_told_by_its_name_beside_the_image_s() -> None:
    for why, named in (("broken", r"1\.png, masks/1\.png"), ("1.png is broken", r"1\.png")):
        data = Shelf({1: [ValueError(why)]})
        data.get_data_info = lambda index: {"img_path": f"{index}.png", "seg_map_path": f"masks/{index}.png"}
        with pytest.raises(TrainingError, match=rf"Sample 1 \({named}\) cannot be loaded: {why}"):
            ReadableDataset(data)[1]


def test_a_damaged_validation_image_counts_for_nothing_where_that_is_asked_for(
    warned: Callable[[], list[dict[str, Any]]],
) -> None:
    shelf = Shelf({3: [ValueError("broken")] * 9, 0: [ValueError("broken too")] * 9})
    data = ReadableDataset(shelf, on_bad_image="skip", ignore_index=7)
    labels = [data[index]["data_samples"].gt_sem_seg.data.unique().tolist() for index in range(4)]
    assert labels == [[7], [1], [2], [7]]
    assert [warning["file"] for warning in warned()] == ["0.png", "3.png", "0.png"]
    message = warned()[1]["message"]
    assert message == "3.png cannot be loaded, and is left out: broken."
    assert Words("zh").translate(message) == "3.png 无法加载，已跳过：broken。"
    assert (len(data), data.metainfo, name_of(data, 2)) == (4, {"classes": ("a",)}, "2.png")


def test_a_data_set_of_damaged_images_only_is_no_data_set() -> None:
    shelf = Shelf({index: [ValueError("broken")] * 9 for index in range(4)})
    with pytest.raises(TrainingError, match="samples in a row cannot be loaded"):
        ReadableDataset(shelf, on_bad_image="skip")[0]
