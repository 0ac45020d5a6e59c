"""What a training child learns, keeps, and makes of what hooks want to keep."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from torch.utils.data import DataLoader

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.checkpoints.proving import SaveFailed
from mapsage_kaggle.clock import boot_time_s
from mapsage_kaggle.engine import worker
from mapsage_kaggle.engine.control import Control
from mapsage_kaggle.engine.loop import ValidationAborted, ValidationPulse
from mapsage_kaggle.engine.reading import EVENTS_VARIABLE
from mapsage_kaggle.engine.safety import load_ahead, load_local
from mapsage_kaggle.engine.session import WorkerSession, _gpu_s_this_week
from mapsage_kaggle.engine.snapshot import keep_loadable
from mapsage_kaggle.errors import CheckpointError, TrainingError
from mapsage_kaggle.events import read_events
from mapsage_kaggle.pace import week_start_s
from mapsage_kaggle.records import Exactness, Learned, SessionRecord
from mapsage_kaggle.spec import ChildSpec, ask_save, ask_stop

# --- what is learned -----------------------------------------------------------------------------------


def test_what_memory_allows_is_learned_once_an_iteration_is_done(spec: ChildSpec) -> None:
    session = WorkerSession(replace(spec, rung=Learned(micro_batch=1)), rank=0, world_size=1)
    before = Learned(threads=1, micro_batch=2, with_cp=True)
    assert session.checkpoints.learned(before) == replace(before, pace={})
    session.checkpoints.has_trained = True
    assert session.checkpoints.learned(before) == Learned(threads=1, micro_batch=1, pace={})


@pytest.fixture
def spec(tmp_path: Path) -> ChildSpec:
    return ChildSpec(
        config=tmp_path / "config.py", work_dir=tmp_path, clock_started_s=boot_time_s(), limit_s=900.0,
        reserve_s=9.0, action="fresh", run_id="r", fingerprint="f",
    )  # fmt: skip


# --- a failure -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "error", "said"),
    [
        ("before", ValueError("Bang."), "ValueError: Bang."),
        (
            "within",
            ValueError("Bang."),
            "In the validation at iteration 4, with tiles/7.png: ValueError: Bang.",
        ),
        ("between", ValueError("Bang."), "In the validation at iteration 4: ValueError: Bang."),
        ("within", TrainingError("8.png is none."), "In the validation at iteration 4: 8.png is none."),
    ],
)
def test_an_error_in_validation_is_told_with_the_image(
    spec: ChildSpec, monkeypatch: pytest.MonkeyPatch, at: str, error: Exception, said: str
) -> None:
    def train(spec: ChildSpec, session: WorkerSession, *, scratch: Path) -> None:
        session.iteration, session.has_begun = 4, True
        if at != "before":
            batch = {"data_samples": [SimpleNamespace(img_path="tiles/7.png")]}
            session.validation_begins()
            ValidationPulse(session).before_val_iter(None, 0, batch)
            if at == "between":
                ValidationPulse(session).after_val_iter(None, 0, batch)
        raise error

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(Control, "install_signal_handlers", lambda control: None)
    monkeypatch.setenv(EVENTS_VARIABLE, "")  # which main sets
    file = spec.work_dir / "spec.json"
    spec.write(file)
    SessionRecord(run_id="r", fingerprint="f").write(spec.work_dir / "session.json")
    assert worker.main([str(file)]) == 5
    (failure,) = [item for item in read_events(spec.work_dir / "events.jsonl") if item.event == "failure"]
    assert failure.data["message"] == said


# --- memory ----------------------------------------------------------------------------------------------


def test_the_peak_of_memory_is_that_since_the_last_event(
    spec: ChildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = WorkerSession(spec, rank=0, world_size=1)
    wrapper = SimpleNamespace(get_lr=lambda: {"lr": [0.1]})
    runner: Any = SimpleNamespace(optim_wrapper=wrapper, max_iters=9, val_interval=0, val_loop=None)
    session.attach(runner, "")
    told: list[Any] = []
    monkeypatch.setattr(
        session, "emit", lambda kind, iteration, **data: told.append(data.get("memory_bytes"))
    )
    times = {"data_s": 0.1, "compute_s": 0.1, "optimizer_s": 0.0, "hooks_s": 0.0}
    for iteration, (peak, is_due) in enumerate(
        [(5, True), (9, False), (3, True), (2, True), (None, True)], 1
    ):
        session.progress._last_told = 0.0 if is_due else math.inf
        session.iteration_done(iteration, {}, **times, peak_bytes=peak)
    assert told == [5, 9, 2, None]


# --- the best score --------------------------------------------------------------------------------------


@pytest.fixture
def validated(
    spec: ChildSpec, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[WorkerSession]:
    """Return a session that keeps the best mIoU, or another metric, with a model of two weights."""
    hub = MessageHub("a run")
    wanted = getattr(request, "param", "mIoU")
    session = WorkerSession(replace(spec, save_best=(wanted,)), rank=0, world_size=1)
    SessionRecord(run_id="r", fingerprint="f").write(session.files.session)
    loop = SimpleNamespace(evaluator=SimpleNamespace(metrics=[]))
    runner: Any = SimpleNamespace(message_hub=hub, val_loop=loop, model=torch.nn.Linear(1, 2))

    def state(_runner: Any, iteration: int, **_: Any) -> dict[str, Any]:
        parts = {"state_dict": {"w": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": []}}
        return {"meta": {"iter": iteration}, **parts, "param_schedulers": [], "message_hub": hub.state_dict()}

    monkeypatch.setattr("mapsage_kaggle.engine.checkpointing.snapshot", state)
    session.open()
    session.attach(runner, "")
    yield session
    session.close()


def best_of(session: WorkerSession) -> tuple[Any, Any, Any]:
    assert session.checkpoints.store is not None
    session.checkpoints.wait()
    hub = session._runner.message_hub
    kept = session.checkpoints.store.best()
    return hub.get_info("best_score"), hub.get_info("best_ckpt"), kept and kept.value


def test_nan_is_never_the_best_score(validated: WorkerSession) -> None:
    validated.validation_done(4, {"mIoU": math.nan})
    assert best_of(validated) == (None, None, None)
    validated.validation_done(8, {"mIoU": 30.0})
    validated.validation_done(12, {"mIoU": math.nan})
    assert best_of(validated) == (30.0, "best_mIoU_iter_8.pth", 30.0)


def test_a_score_beats_one_that_was_noted_as_nan(validated: WorkerSession) -> None:
    validated._runner.message_hub.update_info("best_score", math.nan)
    validated.validation_done(8, {"mIoU": 30.0})
    assert best_of(validated) == (30.0, "best_mIoU_iter_8.pth", 30.0)


def test_a_noted_score_whose_file_is_not_here_is_none_to_beat(validated: WorkerSession) -> None:
    runner: Any = validated._runner
    runner.hooks = []
    runner.message_hub.update_info("best_score", 60.0)
    runner.message_hub.update_info("best_ckpt", "best_mIoU_iter_2.pth")
    validated.checkpoints.loaded(runner)
    validated.validation_done(8, {"mIoU": 30.0})
    assert best_of(validated) == (30.0, "best_mIoU_iter_8.pth", 30.0)


def test_the_best_file_holds_its_own_score(validated: WorkerSession) -> None:
    validated.validation_done(8, {"mIoU": 30.0})
    best_of(validated)
    held = load_checkpoint(validated.files.path / "best_mIoU_iter_8.pth")["message_hub"]["runtime_info"]
    assert (held["best_score"], held["best_ckpt"]) == (30.0, "best_mIoU_iter_8.pth")


def test_a_best_score_whose_file_could_not_be_written_is_none_to_beat(
    validated: WorkerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated.validation_done(4, {"mIoU": 20.0})
    store = validated.checkpoints.store
    assert store is not None
    save = store.save

    def fail(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("best"):
            raise SaveFailed(f"{name} could not be written: No space left on device.")
        return save(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", fail)
        validated.validation_done(8, {"mIoU": 40.0})
    assert best_of(validated) == (20.0, "best_mIoU_iter_4.pth", 20.0)
    validated.validation_done(12, {"mIoU": 30.0})
    assert best_of(validated) == (30.0, "best_mIoU_iter_12.pth", 30.0)


@pytest.mark.parametrize("validated", ["auto"], indirect=True)
def test_auto_means_the_first_metric_and_which_way_that_goes(validated: WorkerSession) -> None:
    validated.validation_done(4, {"val/loss": 0.5, "mIoU": 20.0})
    validated.validation_done(8, {"val/loss": 0.75, "mIoU": 30.0})
    assert best_of(validated) == (0.5, "best_val_loss_iter_4.pth", 0.5)
    validated.validation_done(12, {"val/loss": 0.25, "mIoU": 10.0})
    assert best_of(validated) == (0.25, "best_val_loss_iter_12.pth", 0.25)


# --- what hooks want to keep -----------------------------------------------------------------------------


class OfTheUser:
    """A class that no loader of the kit will import."""


def checkpoint(**more: Any) -> dict[str, Any]:
    hub = {"log_scalars": {}, "runtime_info": {"iter": 3}, "resumed_keys": {}}
    return {"meta": {"iter": 3}, "state_dict": {"w": torch.ones(2)}, "message_hub": hub, **more}


KEPT = {
    "ema": {"w": torch.ones(2), "steps": torch.tensor(3)},
    "counts": {"seen": 7, "names": ["a", "b"], "at": (1, 2.5, None, True)},
    "figures": np.arange(6.0).reshape(2, 3),
    "best": np.float64(0.5),
    "dtype": torch.float16,
}


@pytest.mark.parametrize("name", KEPT)
def test_what_the_loader_knows_stays_and_comes_back(name: str, tmp_path: Path) -> None:
    state = checkpoint(mine=KEPT[name])
    assert keep_loadable(state) == ()
    torch.save(state, tmp_path / "iter_3.pth")
    loaded = load_checkpoint(tmp_path / "iter_3.pth")["mine"]
    assert repr(loaded) == repr(KEPT[name])


@pytest.mark.parametrize(
    "value", [OfTheUser(), [1, {"deep": OfTheUser()}], lambda: 0], ids=["object", "within", "code"]
)
def test_what_it_does_not_know_is_taken_out_and_named(value: Any, tmp_path: Path) -> None:
    state = checkpoint(mine=value, other={"kept": 1})
    state["message_hub"]["runtime_info"]["note"] = value
    state["meta"]["dataset_meta"] = value
    assert sorted(keep_loadable(state)) == ["message_hub.note", "meta.dataset_meta", "mine"]
    torch.save(state, tmp_path / "iter_3.pth")
    assert load_checkpoint(tmp_path / "iter_3.pth")["other"] == {"kept": 1}


# --- loading ahead ---------------------------------------------------------------------------------------


def test_what_is_loaded_ahead_is_given_once_and_then_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "iter_1.pth"
    torch.save({"meta": {"iter": 1}, "state_dict": {"weight": torch.ones(3)}}, file)
    load_ahead(file, hashlib.sha256(file.read_bytes()).hexdigest())
    first = load_local(str(file))
    second = load_local(str(file))
    assert first is not second
    assert torch.equal(first["state_dict"]["weight"], second["state_dict"]["weight"])


def test_what_goes_wrong_ahead_is_raised_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "iter_1.pth"
    torch.save({"meta": {"iter": 1}, "state_dict": {}}, file)
    load_ahead(file, "0" * 64)
    with pytest.raises(CheckpointError, match="expected 0000"):
        load_local(str(file))


# --- validation loops of a person's own ------------------------------------------------------------------


def test_a_validation_in_any_loop_tells_that_it_goes_on_and_can_be_left(spec: ChildSpec) -> None:
    from mmengine.evaluator import Evaluator
    from mmengine.runner import ValLoop

    class OwnLoop(ValLoop):
        def run(self) -> Any:
            for index in range(len(self.dataloader)):
                self.runner.call_hook("before_val_iter", batch_idx=index, data_batch=None)
                seen.append(index)
                self.runner.call_hook("after_val_iter", batch_idx=index, data_batch=None, outputs=None)

    seen: list[int] = []
    session = WorkerSession(spec, rank=0, world_size=1)
    pulse, told, stop_at = ValidationPulse(session), [], [99]
    session.validating = told.append  # type: ignore[method-assign]
    session.control.stop_asked = lambda: len(seen) >= stop_at[0]  # type: ignore[method-assign]
    runner = SimpleNamespace(
        call_hook=lambda name, **what: getattr(pulse, name)(runner, **what), logger=None, val_evaluator=None
    )
    loader = DataLoader(range(3), collate_fn=list)  # type: ignore[arg-type]
    loop = OwnLoop(runner, loader, Evaluator([]))
    loop.run()
    assert (seen, told) == ([0, 1, 2], [1, 2, 3])
    stop_at[0] = 4
    with pytest.raises(ValidationAborted):
        loop.run()
    assert seen == [0, 1, 2, 0]


# --- requests --------------------------------------------------------------------------------------------


def test_a_save_is_made_once_and_a_stop_stays_until_the_session_ends(spec: ChildSpec) -> None:
    session = WorkerSession(spec, rank=0, world_size=1)

    def decide() -> tuple[str, bool]:
        decision = session.control.decide(validation_due=False, save_due=False)
        return decision.stop, decision.save

    assert decide() == ("", False)
    ask_save(session.files)
    assert decide() == ("", True)
    assert decide() == ("", False)
    ask_save(session.files)
    ask_stop(session.files)
    assert [decide()[0] for _ in range(2)] == ["user", "user"]
    session.files.stop_request.write_text("")  # as ``touch`` makes it
    assert decide()[0] == "user"


# --- without a supervisor --------------------------------------------------------------------------------

HANGING_WORKER = """
import time
from pathlib import Path
from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.engine.control import Control
from mapsage_kaggle.pace import Pace

clock = SessionClock(started_s=0.0, limit_s=1.0, reserve_s=0.0)
stop, save = Path("none"), Path("none")
Control(clock=clock, pace=Pace(), stop_request=stop, save_request=save).end_with_supervisor(0.5)
print("ready", flush=True)
time.sleep(50)  # a collective whose other ranks are gone
"""


def test_a_worker_that_hangs_ends_some_time_after_its_supervisor() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING_WORKER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    assert process.poll() is None, "as long as its supervisor is there it may take any time"
    begin = time.monotonic()
    _, trace = process.communicate(timeout=40)  # closes its standard input
    assert time.monotonic() - begin < 30.0
    assert process.returncode == 1
    assert "Timeout" in trace


def test_of_the_run_s_sessions_this_week_those_on_a_gpu_count_for_the_quota() -> None:
    began_s = week_start_s(1_760_000_000.0)

    def earlier(device: str, *, started_s: float, ended_s: float) -> Mapping[str, Any]:
        times = {"started_s": started_s, "ended_s": ended_s}
        record = SessionRecord(run_id="r", fingerprint="f", exactness=Exactness(device=device), **times)
        return record.to_json()

    record = SessionRecord(
        run_id="r",
        fingerprint="f",
        previous=(
            earlier("Tesla T4", started_s=began_s - 50.0, ended_s=began_s + 100.0),
            earlier("CPU", started_s=began_s + 200.0, ended_s=began_s + 900.0),
            earlier("Tesla T4", started_s=began_s + 1000.0, ended_s=began_s + 1007.0),
        ),
    )
    assert _gpu_s_this_week(record, 1_760_000_000.0) == 107.0
