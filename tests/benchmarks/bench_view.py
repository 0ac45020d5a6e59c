"""What the notebook's training view costs the training: CPU time of its threads, per second and step.

Both sides in one run: a real training that is supervised without a view, and the same with the view
that a notebook shows (widgets on a kernel's wire are replaced by their HTML and PNG, which is where
the work is). Prints iterations' mean seconds of both, and the share of one core that the view took.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

from mapsage_kaggle.training.handle import train
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.prepare import discover, prepare

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.standin import StandIn

from mapsage_kaggle.display.live import LiveView, TrainingPanel
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.events import ProgressSink, read_events
from mapsage_kaggle.paths import KagglePaths

ITERATIONS = 1200


class Wire:
    """Renders what a browser would be sent, and counts it."""

    def __init__(self) -> None:
        self.num_updates = self.sent_bytes = 0
        self.cost_s = 0.0

    def show(self, panel: TrainingPanel) -> None:
        self.num_updates += 1
        self.sent_bytes += len(panel.html) + len(panel.events_html)
        if threading.current_thread() is not threading.main_thread():
            self.cost_s = time.thread_time()

    def show_chart(self, png: bytes) -> None:
        self.sent_bytes += len(png)


def run(root: Path, *, view: bool) -> tuple[float, float, float, Wire]:
    """Return mean seconds an iteration, the view's CPU seconds, seconds in all, and what was sent."""
    stand_in = StandIn.with_scenes(root, max_iters=ITERATIONS, val_interval=200)
    options = Options(
        config=stand_in.config(), session_limit_s=900.0, reserve_s=10.0, gpus=0, threads=1, save_every_s=0.0
    )
    prepared = prepare(discover(options, paths=KagglePaths.below(root)))
    wire = Wire()
    live = LiveView(wire, Words(), max_iters=ITERATIONS) if view else None
    sinks: list[ProgressSink] = [live] if live is not None else []
    begin_s = time.monotonic()
    train(prepared, sinks=sinks)
    if live is not None:
        live.close()
    events = [item for item in read_events(stand_in.work_dir.events) if item.event == "iteration"]
    pace_s = [float(item.data["iteration_s"]) for item in events[len(events) // 4 :]]
    return sum(pace_s) / len(pace_s), wire.cost_s, time.monotonic() - begin_s, wire


def main() -> None:
    """Measure both and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        without_s, _, _, _ = run(Path(folder) / "without", view=False)
        with_s, cost_s, all_s, wire = run(Path(folder) / "with", view=True)
    print(f"iteration without the view   {1000 * without_s:8.2f} ms")
    print(f"iteration with the view      {1000 * with_s:8.2f} ms")
    share = 100 * cost_s / all_s
    print(f"the view's CPU time          {cost_s:8.3f} s in {all_s:.0f} s, {share:.2f} % of a core")
    print(f"                             {1000 * cost_s / ITERATIONS:8.4f} ms a step")
    print(f"updates                      {wire.num_updates:8d}, {wire.num_updates / all_s:.2f} a second")
    sent_kb = wire.sent_bytes / 1e3
    print(f"sent to the browser          {sent_kb:8.0f} kB, {sent_kb / all_s:.1f} kB/s")


if __name__ == "__main__":
    main()
