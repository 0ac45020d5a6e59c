"""What fails in a cell or behind it: it is shown, and the notebook ends well all the same."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from support.machines import GOOD
from support.notebooks import ROOT

from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.display import evaluated
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel
from mapsage_kaggle.notebook.session import NotebookSession
from mapsage_kaggle.notebook.view import View
from mapsage_kaggle.paths import KagglePaths
from mapsage_kaggle.training.options import Options

CELLS = "mapsage_kaggle.notebook.session"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Panel | str]:
    """Return what the cells show and say."""
    told: list[Panel | str] = []
    monkeypatch.setattr(f"{CELLS}.show", told.append)
    monkeypatch.setattr(f"{CELLS}.say", told.append)
    return told


@pytest.fixture
def cells(tmp_path: Path) -> NotebookSession:
    return NotebookSession(
        Options(config=ROOT / "configs" / "demo.py", work_dir=tmp_path),
        paths=KagglePaths.below(tmp_path),
        machine=GOOD,
        clock=SessionClock(started_s=0.0, limit_s=43_200.0, reserve_s=600.0, now=lambda: 60.0),
        words=Words("zh"),
    )


@pytest.fixture
def evaluating(cells: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> NotebookSession:
    """Return a session that has trained, and whose evaluation goes well."""
    cells.handle = SimpleNamespace(running=False, wait=lambda: SimpleNamespace(best="it"))  # type: ignore[assignment]
    found = SimpleNamespace(to_json=dict, examples=())
    monkeypatch.setattr(f"{CELLS}._evaluate_best", lambda session: found)
    monkeypatch.setattr(evaluated, "confusion_of", lambda document, words: b"")
    monkeypatch.setattr(evaluated, "evaluation_panel", lambda *arguments: Panel(title="scores"))
    return cells


def failing(error: Exception) -> Any:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    return fail


def test_an_evaluation_whose_report_cannot_be_drawn_shows_its_scores(
    evaluating: NotebookSession, shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("mapsage_kaggle.display.report.write_report", failing(full))
    evaluating.evaluate()
    panel, said = shown
    assert panel.title == "scores"
    assert said == "无法绘制报告：OSError：[Errno 28] No space left on device。"


def test_an_evaluation_whose_figure_cannot_be_drawn_is_shown_as_failed(
    evaluating: NotebookSession, shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluated, "confusion_of", failing(ValueError("no axis")))
    evaluating.evaluate()
    assert [panel.lead for panel in shown] == ["评估失败；训练及其检查点不受影响。no axis"]


def test_a_view_whose_training_ends_by_an_odd_error_says_that_it_failed(
    cells: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(View, "display", lambda view: None)
    view = View(cells, start_iteration=0, max_iters=24)
    view.close_after(failing(OSError(28, "No space left on device")))
    view.live._thread.join(5.0)
    panel = view.live.panel()
    assert (panel.tone, panel.state) == ("bad", cells._words("failed"))


def test_the_outcome_of_a_training_that_ends_by_an_odd_error_is_shown(
    cells: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: SimpleQueue[Panel] = SimpleQueue()
    place = SimpleNamespace(replace=placed.put)
    place.display = lambda: place
    monkeypatch.setattr("mapsage_kaggle.notebook.session.Place", lambda panel: place)
    monkeypatch.setattr(NotebookSession, "_widgets", True)
    cells.handle = SimpleNamespace(running=True, wait=failing(OSError(28, "Full")))  # type: ignore[assignment]
    cells.what_next()
    panel = placed.get(timeout=5.0)
    assert (panel.tone, panel.lead) == ("bad", "OSError: [Errno 28] Full")
