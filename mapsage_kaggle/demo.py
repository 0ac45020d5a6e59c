"""The whole chain on this machine: generated scenes, the real notebook, three sessions out of time.

Nothing in here stands in for the kit: papermill runs the notebook as Kaggle does, in a folder that looks
like ``/kaggle``, and what one session leaves is mounted read-only as the input of the next.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display.history import PastSession, read_sessions, series
from mapsage_kaggle.display.text import headline, progress_text, table
from mapsage_kaggle.errors import EXIT_DONE, EXIT_TRAINING, TrainingError, UsageError
from mapsage_kaggle.events import Event, EventTail
from mapsage_kaggle.paths import ROOT_VARIABLE, WorkDir, bundled, remove_tree
from mapsage_kaggle.processes import Child, ProcessId, module_command, run
from mapsage_kaggle.records import SessionRecord

CONFIG = "demo.py"
SCENES = {"train": 48, "val": 12, "size": 256, "seed": 0}
NUM_SESSIONS = 3
MAX_TRIES = 3
MAX_SESSIONS = 6
"""Where a machine turns slower midway, a session gets less far than planned, and another follows."""
MIN_ITERATIONS = 20
"""From fewer nothing can be learned about a machine's speed."""
MIOU_WANTED = 0.5
RESERVE_S = 10.0
SLUG, OWNER = "mapsage-train", "someone"
MARKER = "made-by-mapsage-demo.txt"
PROGRESS_S = 5.0
END_PATIENCE_S = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What things cost on this machine, in seconds; measured, since the limits are made from it.

    Attributes:
        overhead_s: A session's, before its first iteration and after its last.
        iteration_s: One iteration, its share of validation included.
    """

    overhead_s: float
    iteration_s: float

    def limit_s(self, iterations: int) -> float:
        """Return the session limit with which about so many iterations get done."""
        return math.ceil(self.overhead_s + iterations * self.iteration_s + RESERVE_S)


class StandIn:
    """A stand-in for ``/kaggle`` below a scratch folder, at the same place in every session."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out / "kaggle"
        self.input = self.root / "input"
        self.working = self.root / "working"

    def begin(self, data: Path, output: Path | None, *, nested: bool) -> None:
        """Lay out a session's folders: the data set, and the last session's output, both read-only.

        Kaggle has two layouts; the nested one names kind and owner.
        """
        remove_tree(self.root)
        for folder in (self.input, self.working, self.root / "temp"):
            folder.mkdir(parents=True)
        self._mount(data, "datasets" if nested else "", data.name)
        if output is not None:
            self._mount(output, "notebooks" if nested else "", SLUG)

    def _mount(self, source: Path, kind: str, slug: str) -> None:
        target = self.input / kind / OWNER / slug if kind else self.input / slug
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target)
        for path in [target, *target.rglob("*")]:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))

    def end(self, index: int) -> Path:
        """Keep a session's output, as Kaggle does, and return where."""
        output = self.out / f"session_{index}"
        remove_tree(output)
        self.working.rename(output)
        return output

    def environment(self) -> dict[str, str]:
        """Return the environment of a batch run in here; what Jupyter writes lands in here, too."""
        jupyter = self.out / "jupyter"
        return {
            # On a machine with other work to do, threads that spin while they wait make an iteration three
            # times as long; on an idle one it makes no difference.
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            ROOT_VARIABLE: str(self.root),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "JUPYTER_PATH": str(jupyter),
            "JUPYTER_DATA_DIR": str(jupyter / "data"),
            "JUPYTER_CONFIG_DIR": str(jupyter / "config"),
            "JUPYTER_RUNTIME_DIR": str(jupyter / "runtime"),
            "IPYTHONDIR": str(jupyter / "ipython"),
            "MPLCONFIGDIR": str(jupyter / "matplotlib"),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }


def demo(out: Path) -> int:
    """Run the chain below ``out`` and tell what came of it.

    Returns:
        0 if the chain got to its end, each session but the last was ended by its own limit, and the best
        validation mIoU is above ``MIOU_WANTED``; else 5.

    Raises:
        UsageError: ``out`` holds something that the demo did not make.
        TrainingError: A session failed.
    """
    began = time.monotonic()
    out = out.absolute()
    _clear(out)
    kaggle = StandIn(out)
    _write_kernel(out / "jupyter")
    data = _draw_scenes(out)
    kaggle.begin(data, None, nested=False)
    speed = _calibrate(kaggle)
    work_dir, speed = _run_chain(kaggle, data, speed)
    for _ in range(MAX_TRIES - 1):
        if len(read_sessions([work_dir])) >= NUM_SESSIONS:
            break
        _say("The machine has become faster than it was measured to be; once more from the beginning.")
        work_dir, speed = _run_chain(kaggle, data, speed)
    return _conclude(work_dir, time.monotonic() - began)


def _run_chain(kaggle: StandIn, data: Path, speed: Speed) -> tuple[Path, Speed]:
    """Run one session after the other, and return the last one's work dir and what was learned."""
    output: Path | None = None
    before: SessionRecord | None = None
    for index in range(1, MAX_SESSIONS + 1):
        kaggle.begin(data, output, nested=index % 2 == 1)
        limit_s = _plan_limit(speed, before, index)
        _say(f"Session {index}: the notebook in batch mode, session limit {format_duration(limit_s)}")
        _run_notebook(kaggle, before, limit_s)
        output = kaggle.end(index)
        session = _session(_work_dir(output))
        before, speed = session.record, _learn(speed, session)
        if before.stop_reason != "deadline":
            break
    assert output is not None
    return _work_dir(output), speed


# -- one session


def _run_notebook(kaggle: StandIn, before: SessionRecord | None, limit_s: float) -> None:
    """Run the notebook by papermill, and show the training events meanwhile."""
    parameters: list[tuple[str, Any]] = [
        ("CONFIG", CONFIG),
        ("SESSION_LIMIT", f"{limit_s:.0f}s"),
        ("RESERVE", f"{RESERVE_S:.0f}s"),
        ("GPUS", 0),
    ]
    if before is not None:
        parameters += [("RESUME", "require"), ("EXPECT_ITERATION", before.end_iteration)]
    source, target = bundled("notebooks") / "mapsage_train.ipynb", kaggle.working / "__notebook__.ipynb"
    command = module_command("papermill", "--no-progress-bar", str(source), str(target))
    for name, value in parameters:
        command += ["-p", name, str(value)]
    log = kaggle.out / "papermill.log"
    with log.open("ab") as stream:
        child = Child(
            command, cwd=kaggle.working, env=kaggle.environment(), stdout=stream, stderr=subprocess.STDOUT
        )
    watch = _Watch(_work_dir(kaggle.working))
    try:
        while not child.ended():
            watch.look()
            time.sleep(0.2)
        watch.look()
    finally:
        _end(child, watch.workers)
    if child.returncode != 0:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:])
        raise TrainingError(f"The notebook ended with an error:\n{last}\n", f"The whole of it is in {log}.")


class _Watch:
    """Prints what a session's events say while the notebook runs."""

    def __init__(self, work_dir: Path) -> None:
        self._tail = EventTail(WorkDir(work_dir).events)
        self._last_shown_s = -math.inf
        self._max_iters = 0
        self.workers: set[ProcessId] = set()

    def look(self) -> None:
        for event in self._tail.read_new():
            line = self._line(event)
            if line:
                _say(f"  {line}")

    def _line(self, event: Event) -> str:
        if event.event == "start":
            worker = ProcessId.stated(event.data)
            if worker is not None:
                self.workers.add(worker)
        elif event.event == "training":
            self._max_iters = int(event.data.get("max_iters", 0))
        elif event.event == "resume":
            return f"[{event.iteration}] {event.data.get('verdict', '')}"
        elif event.event == "iteration":
            now = time.monotonic()
            if now - self._last_shown_s < PROGRESS_S:
                return ""
            self._last_shown_s = now
            return progress_text(event, self._max_iters)
        return "" if event.event == "checkpoint" else headline(event)


def _end(child: Child, workers: set[ProcessId]) -> None:
    """Leave nothing running. A worker whose kernel is gone sees that, saves and ends by itself."""
    if not child.ended():
        child.send_signal(signal.SIGINT)
    child.end(patience_s=20.0)
    give_up = time.monotonic() + END_PATIENCE_S
    while any(worker.alive for worker in workers) and time.monotonic() < give_up:
        time.sleep(0.2)


# -- how long a session may be


def _calibrate(kaggle: StandIn) -> Speed:
    """Measure this machine with a few iterations outside the chain."""
    _say("Measuring this machine ...")
    work_dir = kaggle.out / "calibration"
    command = module_command(
        "mapsage_kaggle", "train", str(bundled("configs") / CONFIG),
        "--work-dir", str(work_dir), "--resume", "never", "--gpus", "0",
        "--session-limit", "10m", "--reserve", "1m",
        "--set", "train_cfg.max_iters=16", "--set", "train_cfg.val_interval=16",
    )  # fmt: skip
    began = time.monotonic()
    done = run(command, timeout_s=None, env=kaggle.environment())
    wall_s = time.monotonic() - began
    if done.code != 0:
        raise TrainingError(f"Training does not work here:\n{done.errors or done.output}")
    session = _session(work_dir)
    [stop] = session.of("stop")
    pace = stop.data["pace"]
    trained_s = sum(
        session.record.timings_s.get(name, 0.0) for name in ("forward_backward", "optimizer", "validation")
    )
    # A notebook's session has more around its training than the command has: a kernel, the proof of the
    # installation, the look at the data set, the inspection of a checkpoint.
    overhead_s = 2.2 * (wall_s - trained_s) + 5.0
    return Speed(overhead_s=overhead_s, iteration_s=pace["iteration_s"] + pace["validation_s"] / 60)


def _plan_limit(speed: Speed, before: SessionRecord | None, index: int) -> float:
    """Return a limit with which this session does its share: a quarter of the run, then half the rest.

    A quarter, so that a machine that turns out faster than measured does not get to the end. The last
    one gets far more time than it needs, and ends because the run is complete.
    """
    done, total = (before.end_iteration, before.max_iters) if before is not None else (0, _max_iters())
    left, sessions_left = total - done, NUM_SESSIONS - index + 1
    if sessions_left > 1:
        return speed.limit_s(left // (sessions_left if index > 1 else 4))
    return 2.0 * speed.limit_s(left) + 60.0


def _learn(speed: Speed, session: PastSession) -> Speed:
    stops, starts = session.of("stop"), session.of("training")
    done = session.record.end_iteration - session.record.start_iteration
    if not stops or not starts or done < MIN_ITERATIONS:
        return Speed(overhead_s=1.3 * speed.overhead_s + 5.0, iteration_s=speed.iteration_s)
    trained_s = stops[-1].time_s - starts[-1].time_s
    # A resumed session has a checkpoint to inspect and a model to build for that, and the kit's own
    # margin at a session's end is overhead, too.
    overhead_s = session.record.timings_s["session"] - trained_s
    return Speed(overhead_s=1.1 * overhead_s + 12.0, iteration_s=trained_s / done)


def _max_iters() -> int:
    from mapsage_kaggle.config.reading import read_config

    return int(read_config(bundled("configs") / CONFIG)["train_cfg"]["max_iters"])


# -- before and after


def _clear(out: Path) -> None:
    """Make ``out`` empty, if it is the demo's."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UsageError(
            f"{out} holds something that the demo did not make.", "Name another folder with --out."
        )
    remove_tree(out)
    out.mkdir(parents=True)
    (out / MARKER).write_text("The demo removes this folder when it runs again.\n", encoding="utf-8")


def _write_kernel(jupyter: Path) -> None:
    """Describe a kernel ``python3`` that is this interpreter, for this folder alone."""
    folder = jupyter / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    document = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(document), encoding="utf-8")


def _draw_scenes(out: Path) -> Path:
    from mapsage_kaggle.data.scenes import generate_scenes

    folder = out / "earthvqa-scenes"
    _say(f"Drawing {SCENES['train'] + SCENES['val']} scenes ...")
    generate_scenes(folder, **SCENES)
    return folder


def _work_dir(working: Path) -> Path:
    return working / "work_dirs" / Path(CONFIG).stem


def _session(work_dir: Path) -> PastSession:
    return read_sessions([work_dir])[-1]


def _conclude(work_dir: Path, wall_s: float) -> int:
    sessions = read_sessions([work_dir])
    rows = [_row(session) for session in sessions]
    _say("")
    _say(table(rows, ("session", "from", "to", "stopped", "time", "loss", "mIoU %")))
    records = [session.record for session in sessions]
    best = records[-1].best.value if records[-1].best is not None else None
    problems = _problems(records, best)
    _say("")
    _say(f"record  {WorkDir(work_dir).session}")
    _say(f"report  {WorkDir(work_dir).report}")
    if problems:
        for problem in problems:
            _say(f"✗ {problem}")
        return EXIT_TRAINING
    _say(
        f"✓ {records[-1].end_iteration} iterations in {len(records)} sessions, best mIoU "
        f"{(best or 0.0):.1f} % (above {100 * MIOU_WANTED:.0f} % was asked), {format_duration(wall_s)} in all"
    )
    return EXIT_DONE


def _row(session: PastSession) -> tuple[Any, ...]:
    record = session.record
    losses = series([session], "iteration", "loss").values
    scores = series([session], "validation", "metrics", "mIoU").values
    return (
        record.session_index,
        record.start_iteration,
        record.end_iteration,
        record.stop_reason,
        format_duration(record.timings_s.get("session") or 0.0),
        f"{losses[0]:.2f} → {losses[-1]:.2f}" if losses else None,
        f"{scores[0]:.1f} → {scores[-1]:.1f}" if scores else None,
    )


def _problems(records: Sequence[SessionRecord], best: float | None) -> list[str]:
    found = []
    reasons = [record.stop_reason for record in records]
    if reasons[-1] != "completed":
        found.append(f"The run did not get to its end: {records[-1].stop_reason}. {records[-1].message}")
    if len(records) < NUM_SESSIONS or any(reason != "deadline" for reason in reasons[:-1]):
        found.append(
            f"{NUM_SESSIONS} sessions were to be ended by their time limits, but: {', '.join(reasons)}."
        )
    for one, other in pairwise(records):
        if other.start_iteration != one.end_iteration:
            found.append(
                f"Session {other.session_index} went on at {other.start_iteration}, not {one.end_iteration}."
            )
    if best is None or best < 100 * MIOU_WANTED:
        found.append(f"mIoU is {best} %, and above {100 * MIOU_WANTED:.0f} % was asked.")
    return found


def _say(line: str) -> None:
    print(line, flush=True)
