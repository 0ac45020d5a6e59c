"""The view of a session that trains, which can be shown again after a reload."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.display.live import DisplaySurface, LiveView
from mapsage_kaggle.display.widgets import TrainingSurface
from mapsage_kaggle.machine import GpuGauge

if TYPE_CHECKING:
    from mapsage_kaggle.notebook.session import NotebookSession
    from mapsage_kaggle.records import SessionRecord


class View:
    """A live view and the surface that it draws on; ``known`` is passed to the live view."""

    def __init__(self, session: NotebookSession, **known: Any) -> None:
        words = session._words
        self.surface: TrainingSurface | DisplaySurface = (
            TrainingSurface(words, on_save=session.save, on_stop=session.stop)
            if session._widgets
            else DisplaySurface()
        )
        self.display()
        self.live = LiveView(
            self.surface, words, gpu_load=GpuGauge() if session.machine.gpus else None, **known
        )

    def display(self) -> None:
        """Show it in the output of the running cell."""
        self.surface.display()

    def close_after(self, wait: Callable[[], SessionRecord | None]) -> None:
        """Show the final state once ``wait`` has returned, in a thread."""

        def close() -> None:
            reason = "failed"
            with suppress(Exception):  # else it would say for good that it trains
                record = wait()
                if record is not None and record.stop_reason != "running":
                    reason = record.stop_reason
            self.live.close(reason=reason)
            self.surface.close()

        threading.Thread(target=close, name="mapsage-view-end", daemon=True).start()
