"""The training child: one process per GPU, started with the path of its spec, by torchrun where several."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path

import cv2
import torch

from mapsage_kaggle.engine.deterministic import only_deterministic
from mapsage_kaggle.engine.faults import (
    end_data_workers_without_shared_memory,
    failure_kind,
    failure_message,
)
from mapsage_kaggle.engine.problems import known_problem
from mapsage_kaggle.engine.ranks import follow_rank_0, join, num_machines
from mapsage_kaggle.engine.reading import EVENTS_VARIABLE
from mapsage_kaggle.engine.safety import expect, install_safe_loading, load_ahead
from mapsage_kaggle.engine.session import WorkerSession, emit_failure
from mapsage_kaggle.errors import EXIT_DONE, EXIT_TRAINING, EXIT_USAGE, MapsageError
from mapsage_kaggle.machine import keep_freed_memory
from mapsage_kaggle.messages import Message
from mapsage_kaggle.processes import process_start_s
from mapsage_kaggle.spec import SUPERVISOR_VARIABLE, ChildSpec


def main(arguments: list[str]) -> int:
    """Train until the end, the deadline or a stop request; return the exit code."""
    spec = ChildSpec.read(Path(arguments[0]))
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    os.environ[EVENTS_VARIABLE] = str(spec.work_dir / "events.jsonl")
    torch.set_num_threads(spec.threads)
    cv2.setNumThreads(0)
    if not torch.cuda.is_available():
        keep_freed_memory()
    end_data_workers_without_shared_memory()
    session = WorkerSession(spec, rank=rank, world_size=world_size)
    supervisor = int(os.environ.get(SUPERVISOR_VARIABLE, 0))
    session.control.install_signal_handlers()
    session.control.end_with_supervisor()
    session.emit(
        "start",
        0,
        rank=rank,
        pid=os.getpid(),
        pid_started_s=process_start_s(),
        world_size=world_size,
        torch=torch.__version__,
        supervisor=supervisor,
        supervisor_started_s=process_start_s(supervisor),
    )
    try:
        session.open()
        _train(spec, session, scratch=Path(arguments[0]).parent)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the supervisor must learn of it
        trace = traceback.format_exc()
        print(trace, file=sys.stderr, flush=True)
        has_begun = session.has_begun
        kind = failure_kind(error, has_trained=session.has_trained, has_begun=has_begun)
        if not has_begun:
            error = _explained(error, spec)
        message = failure_message(error)
        if session.stage == "validation":
            # An error of the kit's own names its file.
            images = "" if isinstance(error, MapsageError) else ", ".join(session.validated_images)
            message = (
                Message(
                    "In the validation at iteration {iteration}, with {images}: {why}",
                    session.iteration,
                    images,
                    message,
                )
                if images
                else Message("In the validation at iteration {iteration}: {why}", session.iteration, message)
            )
        code = EXIT_USAGE if kind == "refused" and not has_begun else EXIT_TRAINING
        code = error.exit_code if isinstance(error, MapsageError) else code
        emit_failure(session, kind=kind, message=message, trace=trace[-4000:], exit_code=code)
        return code
    finally:
        session.close()
    return EXIT_DONE


def _explained(error: BaseException, spec: ChildSpec) -> BaseException:
    """Return an error in building with its remedy, where one is known, else as it is."""
    from mmengine.config import Config

    from mapsage_kaggle.engine.matching import nothing_matches, says_nothing_matches

    if says_nothing_matches(error):
        return nothing_matches(Config.fromfile(spec.config)) or error
    return error if isinstance(error, MapsageError) else known_problem(error) or error


def _train(spec: ChildSpec, session: WorkerSession, *, scratch: Path) -> None:
    if spec.checkpoint is not None and spec.checkpoint_sha256 and num_machines() == 1:
        load_ahead(spec.checkpoint, spec.checkpoint_sha256)
    # Imported here, so that an import that fails is reported like any other failure.
    from mmengine.config import Config

    from mapsage_kaggle.engine.runner import build_runner, format_configs_once
    from mapsage_kaggle.engine.trackers import go_on

    format_configs_once(spec.config.read_text(encoding="utf-8"))
    install_safe_loading()
    cfg = Config.fromfile(spec.config)
    join(cfg)
    spec = session.spec = follow_rank_0(spec, cfg, scratch)
    if spec.checkpoint is not None and spec.checkpoint_sha256:
        expect(spec.checkpoint, spec.checkpoint_sha256)
    if spec.deterministic:
        only_deterministic()
    text, before = cfg.pretty_text, go_on(cfg, spec)
    runner = build_runner(cfg, session)
    # What is stored is the person's own: a program without the kit could not build the kit's tracker.
    for key, value in before.items():
        if value is None:
            runner.cfg.pop(key, None)
        else:
            runner.cfg[key] = value
    if before:
        runner.dump_config()
    session.attach(runner, text)
    runner.train()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*MultiScaleDeformableAttention.*")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Leave without running other libraries' exit handlers: everything is saved, and a CUDA or
    # data-worker teardown that hangs must not keep the session alive.
    os._exit(code)
