"""What the supervisor passes to a training child: a JSON file in scratch space, requests in the work dir."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.paths import WorkDir, replace_file
from mapsage_kaggle.records import Learned

SUPERVISOR_VARIABLE = "MAPSAGE_SUPERVISOR_PID"
"""The environment variable by which a training process learns who supervises it, and tells others."""
STACKS_SIGNAL = signal.SIGUSR1
"""At which a training process writes where it is to standard error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildSpec:
    """Everything a worker needs beyond the effective config.

    Attributes:
        work_dir: Where checkpoints, events and the record go.
        clock_started_s: The session's start, in :func:`mapsage_kaggle.clock.boot_time_s` seconds.
        action: ``resume``, ``weights-only`` or ``fresh``.
        checkpoint: What to load, for the first two.
        checkpoint_sha256: What was verified; a file with another hash is not loaded.
        expect_iteration: For ``resume``, the iteration that must come out of it.
        threads: Per worker; pinned, since one thread more changes the bits of a gradient.
        save_interval: Iterations between checkpoints, 0 for none by iteration.
        save_every_s: Seconds between checkpoints, 0 for none by time.
        budget_bytes: What the work dir may hold in checkpoints.
        save_best: Metrics whose best checkpoint is kept.
        best_rules: ``greater`` or ``less`` by metric, where the config says so.
        deterministic: Whether torch must use deterministic algorithms.
        extend: The schedulers are to be rebuilt for a new end.
        take_up: Whether a run that was stopped early is continued all the same.
        on_changed_data: ``go-on`` or ``fail``, where the training data are not those of the checkpoint.
        validation_rung: How far validation goes to save memory, see
            :data:`mapsage_kaggle.training.fallback.VALIDATION_RUNGS`.
        restarted: Another child has trained, or tried to, in this session before.
        track: The tracker that is asked for; empty for none but the config's own.
        launched_s: How old the session was when the child was launched; None where nobody says.
        rung: What the record says was learned of memory, once the child has trained.
        pace: What an earlier session measured, by the names of :meth:`mapsage_kaggle.pace.Pace.learned`.
    """

    config: Path
    work_dir: Path
    clock_started_s: float
    limit_s: float
    reserve_s: float
    action: str
    run_id: str
    fingerprint: str
    checkpoint: Path | None = None
    checkpoint_sha256: str | None = None
    expect_iteration: int | None = None
    threads: int = 1
    save_interval: int = 0
    save_every_s: float = 300.0
    budget_bytes: int = 4_000_000_000
    save_best: tuple[str, ...] = ()
    best_rules: Mapping[str, str] = field(default_factory=dict)
    deterministic: bool = False
    extend: bool = False
    take_up: bool = False
    on_changed_data: str = "go-on"
    validation_rung: int = 0
    restarted: bool = False
    track: str = ""
    launched_s: float | None = None
    rung: Learned = field(default_factory=Learned)
    pace: Mapping[str, float] = field(default_factory=dict)

    def clock(self) -> SessionClock:
        return SessionClock(started_s=self.clock_started_s, limit_s=self.limit_s, reserve_s=self.reserve_s)

    def write(self, path: Path) -> None:
        document = {**dataclasses.asdict(self), "rung": self.rung.to_json()}
        replace_file(path, json.dumps(document, indent=2, default=str))  # paths as texts

    @classmethod
    def read(cls, path: Path) -> ChildSpec:
        document: dict[str, Any] = json.loads(path.read_bytes())
        for key in ("config", "work_dir", "checkpoint"):
            document[key] = Path(document[key]) if document[key] else None
        document["save_best"] = tuple(document["save_best"])
        document["rung"] = Learned.from_json(document["rung"])
        return cls(**document)


def ask_stop(files: WorkDir) -> None:
    """Ask the training in a work dir, also one that is about to start, to save and end."""
    replace_file(files.stop_request, json.dumps({"action": "stop"}))


def ask_save(files: WorkDir) -> None:
    replace_file(files.save_request, json.dumps({"action": "save"}))


def drop_requests(files: WorkDir) -> None:
    """Delete the requests; only where a session begins or has ended, so that none is lost."""
    files.stop_request.unlink(missing_ok=True)
    files.save_request.unlink(missing_ok=True)
