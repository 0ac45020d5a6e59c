"""A chain of sessions as a person runs it: each goes on where the last one ended, or says why not."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import warm
from support.standin import StandIn, differences

from mapsage_kaggle import machine
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.checkpoints.scan import scan
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.events import Event, EventLog, read_events
from mapsage_kaggle.paths import KagglePaths, WorkDir, predictions_below
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.spec import ask_stop
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.prepare import discover, prepare
from mapsage_kaggle.training.session import SessionRun
from mapsage_kaggle.training.supervisor import Supervisor

pytestmark = pytest.mark.slow(scope_s=60)

MAX_ITERS = 16
# Validation at 5 gives the best score of all, so that every later session has a worse one.
SCORES = {5: 60.0, 10: 40.0, 15: 50.0, 16: 30.0}
PLANTED = '''
"""Scores that are known beforehand, and a session whose time is up at a chosen iteration."""
from dataclasses import replace
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS

@METRICS.register_module()
class PlannedScore(BaseMetric):
    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {"mIoU": self.scores[TimeIsUp.iteration]}

@HOOKS.register_module()
class TimeIsUp(Hook):
    def __init__(self, at):
        self.at = at

    def before_val(self, runner):
        TimeIsUp.iteration = runner.iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            control = runner.session.control
            control.clock = replace(control.clock, started_s=control.clock.started_s - 3600.0)
'''
EXTRA = f"""
custom_imports["imports"].append("planted")
val_evaluator = dict(_delete_=True, type="PlannedScore", scores={SCORES})
custom_hooks.append(dict(type="TimeIsUp", at=TIME_IS_UP))
"""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What one session printed and left."""

    code: int
    output: str
    record: SessionRecord
    events: list[Event]
    files: dict[str, int]

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.event == kind]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Four sessions of one run, and the stand-in with the last one's output attached."""

    run: StandIn
    sessions: list[Session]


def session(run: StandIn, *arguments: str, time_is_up: int = 0, **faults: Any) -> Session:
    code = run.root / "code"
    code.mkdir(exist_ok=True)
    (code / "planted.py").write_text(PLANTED)
    done = run.train(*arguments, config_extra=EXTRA.replace("TIME_IS_UP", str(time_is_up)), **faults)
    folder = run.work_dir.path
    return Session(
        code=done.returncode,
        output=done.stdout + done.stderr,
        record=run.record(),
        events=run.events(),
        files={path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()},
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Return a run of 16 iterations: stopped at 7, out of time at 10, completed, and started once more."""
    run = StandIn.with_scenes(
        tmp_path_factory.mktemp("chain") / "kaggle", max_iters=MAX_ITERS, val_interval=5
    )
    sessions = [session(run, stop=7)]
    run.hand_over("first-output")
    sessions.append(session(run, time_is_up=10))
    run.hand_over("notebooks/alice/second")
    sessions.append(session(run))
    run.hand_over("notebooks/alice/third")
    sessions.append(session(run))
    run.hand_over("fourth-output")
    return Chain(run=run, sessions=sessions)


# --- going on --------------------------------------------------------------------------------------------


def test_every_session_of_the_chain_ends_in_good_order(chain: Chain) -> None:
    assert [item.code for item in chain.sessions] == [0] * 4, "\n".join(
        item.output for item in chain.sessions
    )
    assert [item.record.exit_code for item in chain.sessions] == [0] * 4
    reasons = [item.record.stop_reason for item in chain.sessions]
    assert reasons == ["user", "deadline", "completed", "completed"]


def test_each_session_goes_on_at_the_next_iteration(chain: Chain) -> None:
    spans = [(item.record.start_iteration, item.record.end_iteration) for item in chain.sessions]
    assert spans == [(0, 7), (7, 10), (10, 16), (16, 16)]
    firsts = [item.of("iteration")[0].iteration for item in chain.sessions[:3]]
    assert firsts == [1, 8, 11]


def test_the_records_are_one_run_with_all_of_its_past(chain: Chain) -> None:
    records = [item.record for item in chain.sessions]
    assert len({record.run_id for record in records}) == 1
    assert len({record.fingerprint for record in records}) == 1
    assert [record.session_index for record in records] == [1, 2, 3, 4]
    past = [item["end_iteration"] for item in records[-1].previous]
    assert past == [7, 10, 16]
    history = scan_history(chain)
    assert [path.name for path in history if path.suffix == ".jsonl"] == [
        f"events_00{n}.jsonl" for n in (1, 2, 3)
    ]


def test_pictures_of_the_first_and_the_newest_validation_travel_along(chain: Chain) -> None:
    scored = [event.iteration for item in chain.sessions for event in item.of("validation")]
    found = predictions_below(scan_history(chain)[0].parent.with_name("predictions"))
    assert len(found) == 2  # as many as there are to validate
    assert all(sorted(item.predictions) == [min(scored), max(scored)] for item in found)
    assert all(item.image and item.truth for item in found)
    palette = chain.sessions[0].of("training")[0].data["palette"]
    assert palette == {
        name: list(colour) for name, colour in zip(EARTHVQA_CLASSES, EARTHVQA_PALETTE, strict=True)
    }


def scan_history(chain: Chain) -> list[Path]:
    folder = chain.run.root / "input" / "fourth-output" / "work_dirs" / "small" / "history"
    return sorted(folder.iterdir())


def test_the_learning_rate_goes_on_where_it_was(chain: Chain) -> None:
    # Warm-up over 5 iterations, then mmengine's PolyLR: a straight line to 0 in its last step, at 15.
    told = [event for item in chain.sessions for event in item.of("iteration") if event.iteration > 5]
    assert {event.iteration for event in told} >= {8, 11}
    for event in told:
        expected = 3e-3 * max(0.0, 1 - (event.iteration - 5) / (MAX_ITERS - 5 - 1))
        assert event.data["lr"] == pytest.approx(expected), event


def test_validation_comes_at_the_multiples_of_its_interval_and_at_the_end(chain: Chain) -> None:
    at = [[event.iteration for event in item.of("validation")] for item in chain.sessions]
    assert at == [[5], [], [10, 15, 16], []]


def test_a_validation_that_does_not_fit_is_owed_and_comes_first_in_the_next_session(chain: Chain) -> None:
    second, third = chain.sessions[1:3]
    assert second.record.owed_validation == 10
    assert third.of("resume")[0].data["owed"] == 10
    kinds = [event.event for event in third.events if event.event in ("validation", "iteration")]
    assert kinds[0] == "validation"
    assert third.record.owed_validation is None


def test_the_log_has_the_lines_that_a_person_looks_for_and_one_verdict(chain: Chain) -> None:
    for item, iteration in ((chain.sessions[1], 7), (chain.sessions[2], 10)):
        lines = item.output.splitlines()
        where = [index for index, line in enumerate(lines) if line.startswith("load checkpoint from ")]
        assert len(where) == 1
        assert f"iter_{iteration}.pth" in lines[where[0]]
        rest = lines[where[0] + 1 :]
        assert rest[0] == f"resumed epoch: 0, iter: {iteration}"
        assert rest[1].startswith("resume optimizer: ")
        assert "AdamW" in rest[1]
        assert [line.startswith("resume lr_scheduler: ") for line in rest[2:5]] == [True, True, False]
        assert len([line for line in lines if line == item.of("resume")[0].data["verdict"]]) == 1


def test_the_best_checkpoint_is_carried_along_and_no_worse_one_takes_its_place(chain: Chain) -> None:
    for item in chain.sessions:
        assert item.record.best is not None
        assert (item.record.best.iteration, item.record.best.value) == (5, 60.0)
        assert [name for name in item.files if name.startswith("best_")] == ["best_mIoU_iter_5.pth"]
    shas = {item.record.best.sha256 for item in chain.sessions if item.record.best}
    assert len(shas) == 1


def test_a_session_at_the_end_already_trains_nothing_and_hands_over_all_the_same(chain: Chain) -> None:
    third, last = chain.sessions[2:]
    assert last.of("start") == []
    assert last.record.checkpoint is not None
    assert third.record.checkpoint is not None
    assert last.record.checkpoint.sha256 == third.record.checkpoint.sha256
    assert {"iter_16.pth", "last_checkpoint", "manifest.json", "session.json"} <= set(last.files)
    assert "complete already" in last.record.message


def test_an_output_can_be_attached_as_it_is(chain: Chain) -> None:
    for place in (chain.run.root / "input").glob("*-output"):
        files = list(place.rglob("*"))
        assert len(files) < 400
        assert not [path for path in files if path.is_symlink() or path.name.startswith(".")]
        last = next(path for path in files if path.name == "last_checkpoint")
        assert (last.parent / last.read_text().strip()).is_file()
        assert "/" not in last.read_text()


def test_a_checkpoint_is_in_mmengine_s_own_format(chain: Chain) -> None:
    found = [
        item for item in scan(chain.run.root / "input").files if item.kind == "iter" and item.iteration == 16
    ]
    checkpoint = load_checkpoint(found[0].path)
    assert {"meta", "state_dict", "optimizer", "param_schedulers", "message_hub"} <= set(checkpoint)
    assert checkpoint["meta"]["iter"] == 16
    assert checkpoint["message_hub"]["runtime_info"]["best_score"] == 60.0


# --- refusing --------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(chain: Chain, tmp_path: Path) -> Iterator[WorkDir]:
    """Return a fresh work dir for a session with the chain's outputs attached."""
    del chain
    yield WorkDir(tmp_path / "work")


def assert_refused(done: Any, work_dir: WorkDir, code: int) -> str:
    """Check the exit code, the record, and that nothing else was written; return the message."""
    assert done.returncode == code, done.stdout + done.stderr
    record = SessionRecord.read(work_dir.session)
    assert (record.stop_reason, record.exit_code) == ("refused", code)
    assert {path.name for path in work_dir.path.iterdir()} <= {
        "session.json",
        "work_dir.lock",
        "events.jsonl",
    }
    assert not [event for event in read_events(work_dir.events) if event.event == "start"]
    message = done.stderr.strip()
    assert message.startswith("mapsage-kaggle: ")
    assert "Traceback" not in message
    assert "\n\n" not in message
    assert message.removeprefix("mapsage-kaggle: ") == record.message
    return str(record.message)


@pytest.fixture(scope="module")
def nothing_attached(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn.with_scenes(tmp_path_factory.mktemp("nothing") / "kaggle", train=2, val=1)


def test_require_with_nothing_to_resume_is_refused(nothing_attached: StandIn, tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path / "work")
    done = nothing_attached.train("--resume", "require", "--work-dir", work_dir.path)
    message = assert_refused(done, work_dir, 3)
    assert str(nothing_attached.root / "input") in message


def test_a_config_that_asks_to_resume_is_refused_where_there_is_nothing(
    nothing_attached: StandIn, tmp_path: Path
) -> None:
    work_dir = WorkDir(tmp_path / "work")
    done = nothing_attached.train("--work-dir", work_dir.path, config_extra="resume = True")
    assert_refused(done, work_dir, 3)


def test_another_iteration_than_the_expected_one_is_refused(chain: Chain, elsewhere: WorkDir) -> None:
    done = chain.run.train("--expect-iteration", "12", "--work-dir", elsewhere.path)
    message = assert_refused(done, elsewhere, 3)
    assert "12" in message
    assert "16" in message


def test_a_changed_number_of_classes_is_refused_with_both_numbers(chain: Chain, elsewhere: WorkDir) -> None:
    done = chain.run.train(
        "--work-dir", elsewhere.path, config_extra='model["decode_head"]["num_classes"] = 6'
    )
    message = assert_refused(done, elsewhere, 3)
    assert "decode_head.conv_seg.weight is (8, 16, 1, 1), expected (6, 16, 1, 1)" in message
    assert "--resume never" in message


def test_another_backbone_is_refused(chain: Chain, elsewhere: WorkDir) -> None:
    wider = 'model["backbone"]["embed_dims"] = 16\nmodel["decode_head"]["in_channels"] = [16, 32, 64, 96]'
    done = chain.run.train("--work-dir", elsewhere.path, config_extra=wider)
    message = assert_refused(done, elsewhere, 3)
    assert "backbone.layers.0.0.projection.weight is (8, 3, 7, 7), expected (16, 3, 7, 7)" in message


EPOCHS = 'train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=3)'


@pytest.mark.parametrize(
    ("extra", "found"),
    [(EPOCHS, "by epochs"), ("train_cfg = None", "no training loop")],
)
def test_a_config_without_iterations_is_refused(
    nothing_attached: StandIn, tmp_path: Path, extra: str, found: str
) -> None:
    work_dir = WorkDir(tmp_path / "work")
    done = nothing_attached.train("--work-dir", work_dir.path, config_extra=extra)
    assert found in assert_refused(done, work_dir, 2)


def test_a_model_that_cannot_be_built_is_refused_where_a_checkpoint_must_be_judged(
    chain: Chain, elsewhere: WorkDir
) -> None:
    done = chain.run.train(
        "--work-dir", elsewhere.path, config_extra='model["backbone"]["type"] = "NoSuchNet"'
    )
    assert "NoSuchNet" in assert_refused(done, elsewhere, 2)


def test_no_data_set_is_refused(tmp_path: Path) -> None:
    run = StandIn(root=tmp_path / "kaggle")
    (run.root / "input" / "something").mkdir(parents=True)
    done = run.train()
    message = assert_refused(done, run.work_dir, 2)
    assert str(run.root / "input") in message


def test_a_working_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", train=2, val=1)
    # Read-only for root too, which mode bits are not.
    (run.root / "working").rmdir()
    (run.root / "working").symlink_to("/proc/self", target_is_directory=True)
    done = run.train()
    assert done.returncode == 4, done.stdout + done.stderr
    assert "working" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_work_dir_that_another_process_uses_is_left_alone(
    nothing_attached: StandIn, tmp_path: Path
) -> None:
    work_dir = WorkDir(tmp_path / "work")
    work_dir.path.mkdir()
    with work_dir.lock.open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = nothing_attached.train("--work-dir", work_dir.path)
    assert done.returncode == 4, done.stdout + done.stderr
    assert str(os.getpid()) in done.stderr
    assert str(work_dir.path) in done.stderr
    assert [path.name for path in work_dir.path.iterdir()] == ["work_dir.lock"]


def test_what_falls_due_within_a_gradient_accumulation_waits_for_its_end(tmp_path: Path) -> None:
    accumulated = "optim_wrapper = dict(accumulative_counts=3)"
    records = []
    for name, stop in (("whole", None), ("cut", 7)):
        run = StandIn.with_scenes(tmp_path / name, max_iters=13, val_interval=4, extra=accumulated)
        done = run.train(stop=stop)
        assert done.returncode == 0, done.stdout + done.stderr
        if stop is not None:
            # Asked for at 7, a stop comes at the end of the accumulation, and the validation at 8 with it.
            assert run.record().end_iteration == 9
            run.hand_over()
            done = run.train()
            assert done.returncode == 0, done.stdout + done.stderr
        records.append(run.record())
        validated = [event.iteration for event in run.events("validation")]
        assert validated == ([6, 9, 12, 13] if stop is None else [9, 12, 13])
    assert differences(*(StandIn(root=tmp_path / name).checkpoint(13) for name in ("whole", "cut"))) == []
    assert [record.stop_reason for record in records] == ["completed", "completed"]


def test_a_session_that_is_cut_off_as_it_begins_leaves_the_record_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", warm.python())
    monkeypatch.setattr(machine, "ask_torch", partial(machine.ask_torch, warm.python()))
    run = StandIn.with_scenes(tmp_path)
    options = Options(config=run.config(), resume="never", threads=1)
    paths = KagglePaths.below(run.root)

    def begin() -> None:
        prepared = prepare(discover(options, paths=paths))
        SessionRun(prepared, Supervisor(prepared.work_dir, prepared.clock)).begin()

    def cut_off(_session: object) -> None:
        raise SystemExit

    begin()
    ask_stop(run.work_dir)
    started_s = run.record().started_s
    last = Event(event="iteration", iteration=7, time_s=started_s + 60.0)
    EventLog(run.work_dir.events).append(last)
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(SessionRun, "_write_config", cut_off)
            begin()
        assert not run.work_dir.stop_request.exists(), "it was for the session before"
        before = run.record()
        assert (before.stop_reason, before.ended_s) == ("failed", pytest.approx(last.time_s))
    begin()
    assert run.record().stop_reason == "running"
    assert SessionRecord.read(run.work_dir.history / "session_001.json") == before
    assert [event.iteration for event in read_events(run.work_dir.history / "events_001.jsonl")] == [7]
