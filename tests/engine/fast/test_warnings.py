"""A warning that many processes have reason for reaches the person once, whoever tells it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch.utils.data

from mapsage_kaggle.engine.fast import warnings as kit_warnings
from mapsage_kaggle.engine.fast.cache import DecodedCache
from mapsage_kaggle.engine.fast.warnings import warn_once
from mapsage_kaggle.engine.reading import EVENTS_VARIABLE


def test_what_differs_in_its_figures_only_is_told_once(warnings: Callable[[], list[str]]) -> None:
    for key, figure in (("disk", 1.5), ("disk", 1.4), ("memory", 1.3), ("disk", 1.2)):
        warn_once(key, f"{key}: {figure} GB")
    assert warnings() == ["disk: 1.5 GB", "memory: 1.3 GB"]


def test_another_session_is_told_anew(
    tmp_path: Path, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    warn_once("disk", "full")
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "second.jsonl"))
    warn_once("disk", "full")
    assert len(warnings()) == len((tmp_path / "second.jsonl").read_text().splitlines()) == 1


def _tell(number: int, ready: multiprocessing.synchronize.Barrier) -> None:
    ready.wait(60)
    warn_once("disk", f"{number} GB left")


def test_processes_that_meet_it_at_the_same_moment_tell_it_once(warnings: Callable[[], list[str]]) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(2):  # the second ones as workers that are started again
        ready = context.Barrier(4)
        workers = [context.Process(target=_tell, args=(number, ready)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert len(warnings()) == 1


def test_a_failure_that_only_a_later_worker_of_a_later_rank_meets_is_told(
    tmp_path: Path, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(id=3))
    monkeypatch.setenv("RANK", "1")
    image = tmp_path / "image.png"
    image.write_bytes(b"an image")
    monkeypatch.setattr("mapsage_kaggle.engine.fast.cache.now_s", lambda: image.stat().st_ctime + 60)
    cache = DecodedCache(tmp_path / "missing" / "decoded")
    cache.get(image, "image", lambda: np.zeros((2, 2), np.uint8))
    (message,) = warnings()
    assert "No such file or directory" in message


def test_events_that_cannot_be_written_end_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "missing" / "events.jsonl"))
    warn_once("disk", "full")


def test_without_a_session_nothing_is_told_and_it_is_told_in_one(
    warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.delenv(EVENTS_VARIABLE)
        warn_once("disk", "full")
    warn_once("disk", "full")
    assert warnings() == ["full"]


def test_a_warning_of_another_kind_in_the_events_is_no_obstacle(warnings: Callable[[], list[str]]) -> None:
    warn_once("memory", "full")
    kit_warnings._warned.clear()
    warn_once("disk", "full")
    warn_once("memory", "full")
    assert warnings() == ["full", "full"]
