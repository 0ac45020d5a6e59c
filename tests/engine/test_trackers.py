"""A tracker draws a run from its beginning, each step once, and never ends a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from support.curves import tensorboard_curves

from mapsage_kaggle.config.tracking import JOURNAL
from mapsage_kaggle.engine.trackers import Tracker, go_on, read_journal
from mapsage_kaggle.events import read_events
from mapsage_kaggle.spec import ChildSpec


def tracker(folder: Path, start: int, kind: str = "TensorboardVisBackend") -> Tracker:
    return Tracker(inner={"type": kind}, save_dir=str(folder / "run" / "tensorboard"), start=start)


def draw(found: Tracker, *steps: int, name: str = "loss") -> None:
    for step in steps:
        found.add_scalars({name: 1.0 / step, "text": "no number"}, step)


def test_what_is_beyond_the_checkpoint_is_drawn_by_the_next_session_alone(tmp_path: Path) -> None:
    draw(tracker(tmp_path, 0), 1, 2, 3, 4)  # and is killed
    second = tracker(tmp_path, 2)
    draw(second, 3, 4, 5)
    second.close()
    assert tensorboard_curves(tmp_path) == {"loss": [1, 2, 3, 4, 5]}


def test_a_validation_that_was_drawn_and_is_owed_all_the_same_is_drawn_once(tmp_path: Path) -> None:
    first = tracker(tmp_path, 0)
    draw(first, 2)
    draw(first, 2, name="mIoU")
    second = tracker(tmp_path, 2)
    draw(second, 2, name="mIoU")
    second.close()
    assert tensorboard_curves(tmp_path) == {"loss": [2], "mIoU": [2]}


def test_a_value_keeps_the_time_at_which_it_was_drawn(tmp_path: Path) -> None:
    draw(tracker(tmp_path, 0), 1)
    journal = tmp_path / "run" / "tensorboard" / JOURNAL
    [before] = read_journal(journal)
    draw(tracker(tmp_path, 1), 2)
    assert read_journal(journal)[0] == before


@pytest.mark.parametrize("rest", ['{"step": 3, "ti', "[]\n", '{"step": "3"}\n', "\0\n"])
def test_a_line_that_is_none_is_left_out_of_a_journal(tmp_path: Path, rest: str) -> None:
    row = '{"step": 1, "time_s": 5.0, "values": {"loss": 0.5}}\n'
    (tmp_path / JOURNAL).write_text(row + rest)
    assert [row["step"] for row in read_journal(tmp_path / JOURNAL)] == [1]


@VISBACKENDS.register_module(name="Unreachable", force=True)
class Unreachable:
    def __init__(self, save_dir: str) -> None:
        raise ConnectionError("the service does not answer")


def test_a_tracker_that_fails_is_told_of_once_and_asked_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPSAGE_EVENTS", str(tmp_path / "events.jsonl"))
    found = tracker(tmp_path, 0, "Unreachable")
    found.add_config(Config({"a": 1}))
    draw(found, 1, 2)
    found.close()
    [event] = read_events(tmp_path / "events.jsonl")
    assert event.data["message"] == (
        "Unreachable is told no more (the service does not answer); training goes on."
    )


def test_rows_are_kept_for_the_next_session_though_the_tracker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPSAGE_EVENTS", str(tmp_path / "events.jsonl"))
    draw(tracker(tmp_path, 0, "Unreachable"), 1, 2)
    second = tracker(tmp_path, 2)
    draw(second, 3)
    second.close()
    assert tensorboard_curves(tmp_path) == {"loss": [1, 2, 3]}


def test_the_journal_is_there_at_every_moment_of_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tracker(tmp_path, 0), 1, 2)
    folder = tmp_path / "run" / "tensorboard"
    (folder / "left").mkdir()

    def killed(place: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mapsage_kaggle.engine.trackers.remove_tree", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(tracker(tmp_path, 2), 3)
    assert [row["step"] for row in read_journal(folder / JOURNAL)] == [1, 2]


def test_a_row_that_a_full_disk_cut_off_spoils_no_other(tmp_path: Path) -> None:
    found = tracker(tmp_path, 0)
    draw(found, 1)
    journal = tmp_path / "run" / "tensorboard" / JOURNAL
    with journal.open("a") as stream:
        stream.write('\n{"step": 2, "ti')
    draw(found, 3)
    assert [row["step"] for row in read_journal(journal)] == [1, 3]


@VISBACKENDS.register_module(name="WandbVisBackend", force=True)
class Online:
    """A run that the service knows up to iteration 4."""

    drawn: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **options: Any) -> None:
        self.experiment = self
        self.run = SimpleNamespace(resumed=True, summary={"iteration": 4})

    def log(self, values: dict[str, Any]) -> None:
        self.drawn.append(values)


def test_a_score_at_the_iteration_that_the_service_knows_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(Online, "drawn", [])
    draw(tracker(tmp_path, 0), 2, 4)
    journal = tmp_path / "run" / "tensorboard" / JOURNAL
    online = tracker(tmp_path, 4, "WandbVisBackend")
    draw(online, 4)  # again, in a session that trains it anew
    draw(online, 4, name="mIoU")
    draw(online, 5)
    assert [(row["iteration"], "mIoU" in row) for row in Online.drawn] == [(4, True), (5, False)]
    assert [row["step"] for row in read_journal(journal)] == [2, 4, 4, 5]


def test_what_the_service_knows_of_an_iteration_that_is_trained_anew_is_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(Online, "drawn", [])
    draw(tracker(tmp_path, 0), 2, 3, 4)  # saved at 2, and killed
    online = tracker(tmp_path, 2, "WandbVisBackend")
    draw(online, 3, 4)
    draw(online, 4, name="mIoU")
    draw(online, 5)
    assert [(row["iteration"], "mIoU" in row) for row in Online.drawn] == [(4, True), (5, False)]


def spec(**options: Any) -> ChildSpec:
    required: dict[str, Any] = {"clock_started_s": 0.0, "limit_s": 1.0, "reserve_s": 0.0, "fingerprint": ""}
    return ChildSpec(
        config=Path("c.py"), work_dir=Path("/w"), action="fresh", run_id="abc", **required, **options
    )


def test_the_trackers_of_a_config_go_on_and_other_backends_stay_as_they_are() -> None:
    others = [{"type": "LocalVisBackend"}, {"type": "MLflowVisBackend", "exp_name": "x"}]
    own = {"type": "WandbVisBackend", "init_kwargs": {"project": "mine"}}
    cfg = Config({"visualizer": {"type": "SegLocalVisualizer", "vis_backends": [*others, own]}})
    go_on(cfg, spec(track="tensorboard", expect_iteration=7))
    *kept, wandb, tensorboard = cfg.visualizer.vis_backends
    assert kept == others
    assert (wandb.name, wandb.save_dir, wandb.start) == ("WandbVisBackend", "/w/trackers/abc/wandb", 7)
    assert wandb.inner == own
    assert tensorboard.inner == {"type": "TensorboardVisBackend"}
    assert cfg.default_hooks.logger == {"type": "LoggerHook", "log_metric_by_epoch": False}


def test_a_config_without_trackers_stays_without() -> None:
    cfg = Config({"visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]}})
    assert go_on(cfg, spec()) == {}
    assert cfg.visualizer.vis_backends == [{"type": "LocalVisBackend"}]
