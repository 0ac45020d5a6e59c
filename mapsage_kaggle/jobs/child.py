"""Work with a trained model, each piece in a child of its own: evaluate, average, predict, export.

All of these commands have one shape. :func:`open_subject` finds the config, the checkpoint and the data,
judges the checkpoint without running anything in it, and makes the config ready for one device.
:func:`run_child` starts ``mapsage_kaggle.engine.jobs.<entry>`` with a JSON document and stays with it: its
progress comes back as events, its errors as the ``MapsageError`` that it raised, and Ctrl-C is passed
on. A new command needs a module in ``engine/jobs`` with ``run(job, emit)`` (see
:mod:`mapsage_kaggle.engine.jobs.child`), and here or above a function such as :func:`evaluate`::

    subject = open_subject(ModelOptions(config=config, checkpoint=file))
    result = run_child("predict", {**subject.job(), "images": [...], "out": str(out)}, subject, on_event)

where the child begins with ``load_model(Config.fromfile(job["config"]), Path(job["checkpoint"]),
sha256=job["sha256"], device=job["device"])`` of :mod:`mapsage_kaggle.engine.jobs.inference`.

This process loads no torch.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mapsage_kaggle import errors
from mapsage_kaggle.errors import Interrupted, JobError, MachineError, MapsageError
from mapsage_kaggle.jobs.subject import ModelSource
from mapsage_kaggle.messages import Message, from_said
from mapsage_kaggle.processes import POLL_S, Child, child_environment, module_command

OnEvent = Callable[[Mapping[str, Any]], None]

INTERRUPT_GRACE_S = 15.0
"""How long a child may take to end after Ctrl-C before it is killed; nothing is lost by that."""
_LOG_LINES = 12


# -- the child


def run_child(
    entry: str,
    job: Mapping[str, Any],
    subject: ModelSource,
    on_event: OnEvent | None = None,
    *,
    limit_s: float = math.inf,
    on_wait: Callable[[float], None] = lambda elapsed_s: None,
) -> dict[str, Any]:
    """Run ``mapsage_kaggle.engine.jobs.<entry>`` in a child, and return what it returned.

    Args:
        entry: The module's name.
        job: Its document. ``config`` is added: the file with the effective config.
        subject: What it works with.
        on_event: Told of every event that is not the result.
        limit_s: How long it may take; then it is ended.
        on_wait: Told again and again how many seconds have gone by.

    Raises:
        Interrupted: By Ctrl-C. The child was interrupted too, and has ended.
        MapsageError: What the child raised.
        MachineError: Scratch space cannot be written.
        JobError: It failed in another way, or took too long; the message names the log.
    """
    scratch = subject.paths.temp
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{entry}-", dir=scratch))
        config = folder / f"{subject.options.config.stem}.py"
        config.write_text(subject.cfg.pretty_text, encoding="utf-8")
        file, log = folder / "job.json", folder / "log.txt"
        file.write_text(json.dumps({**job, "config": str(config)}, indent=2), encoding="utf-8")
    except OSError as error:
        raise MachineError(
            Message("The scratch folder {path} cannot be written: {why}.", scratch, error.strerror or error),
            "Make room there.",
        ) from error
    try:
        outcome = _run(entry, file, log, subject, on_event or (lambda event: None), limit_s, on_wait)
    except BaseException as error:
        keeps = isinstance(error, JobError)  # its message names the log
        if not keeps:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _run(
    entry: str,
    file: Path,
    log: Path,
    subject: ModelSource,
    on_event: OnEvent,
    limit_s: float,
    on_wait: Callable[[float], None],
) -> dict[str, Any]:
    options, paths = subject.options, subject.paths
    env = child_environment(
        threads=options.threads or len(os.sched_getaffinity(0)),
        scratch=paths.temp,
        gpus=options.device != "cpu",
        passed=options.pass_env,
    )
    with log.open("wb") as stream:
        child = Child(
            module_command(*subject.code.start("mapsage_kaggle.engine.jobs.child"), entry, str(file)),
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
        )
    assert child.stdin is not None
    assert child.stdout is not None
    events: list[Mapping[str, Any]] = []
    reader = threading.Thread(target=_read, args=(child.stdout, events), name="child-events", daemon=True)
    reader.start()
    try:
        last = _stay_with(reader, events, on_event, limit_s, on_wait)
    except BaseException:
        child.send_signal(signal.SIGINT)
        raise
    finally:
        child.end(patience_s=INTERRUPT_GRACE_S)
        child.stdin.close()
    if last is not None and last["event"] == "result":
        result: dict[str, Any] = last["result"]
        return result
    if last is not None:
        raise _raised(entry, last, log)
    raise JobError(
        Message(
            "The child that was to {work} ended without a word (exit code {code}).{log}",
            entry,
            child.returncode,
            _tail(log),
        ),
        Message("The whole log is in {path}.", log),
    )


def _read(stream: IO[bytes], events: list[Mapping[str, Any]]) -> None:
    with stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # cut off by the child's end
            if isinstance(event, dict) and "event" in event:
                events.append(from_said(event))


def _stay_with(
    reader: threading.Thread,
    events: list[Mapping[str, Any]],
    on_event: OnEvent,
    limit_s: float,
    on_wait: Callable[[float], None],
) -> Mapping[str, Any] | None:
    """Pass events on until the child has ended; return its last word: the result or the failure.

    Raises:
        JobError: It takes too long.
    """
    begin_s = time.monotonic()
    last: Mapping[str, Any] | None = None
    num_read = 0
    while True:
        ended = not reader.is_alive()
        while num_read < len(events):
            event = events[num_read]
            events[num_read] = {}
            num_read += 1
            if event["event"] in ("result", "failed"):
                last = event
            else:
                on_event(event)
        if ended:
            return last
        reader.join(POLL_S)
        elapsed_s = time.monotonic() - begin_s
        if elapsed_s > limit_s:
            raise JobError(Message("It took more than {seconds} s.", f"{limit_s:.0f}"), "")
        on_wait(elapsed_s)


def _raised(entry: str, event: Mapping[str, Any], log: Path) -> MapsageError:
    """Return the error that a child told of, of the kind that it was there."""
    kind = getattr(errors, str(event["kind"]), JobError)
    if kind is JobError:
        return JobError(
            Message("{work} failed: {problem}.", entry, event["problem"]),
            Message("The whole log is in {path}.", log),
        )
    error: MapsageError = kind(event["problem"], event["remedy"], event.get("lines", ()))
    return error


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LOG_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines) + "\n" if lines else ""


@contextmanager
def as_interrupted(what: str) -> Iterator[None]:
    """Turn Ctrl-C within it into :class:`Interrupted`, which says what can be gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("Interrupted.", what) from None
