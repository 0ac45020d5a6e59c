"""The supervisor's judgement: how a child is started, how its end is read, and what follows."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsage_kaggle.clock import SessionClock, boot_time_s
from mapsage_kaggle.events import Event, EventLog, read_events
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.processes import ProcessId
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.spec import ask_stop, drop_requests
from mapsage_kaggle.training import session
from mapsage_kaggle.training import supervisor as supervise
from mapsage_kaggle.training.fallback import (
    MAX_CRASHES,
    VALIDATION_RUNGS,
    Kind,
    MemoryFallback,
    Next,
    Outcome,
    decide_next,
)
from mapsage_kaggle.training.follow import Follower
from mapsage_kaggle.training.session import SessionRun, _wait
from mapsage_kaggle.training.supervisor import HANG_FACTOR, Launch, Supervisor, _Watch

HOUR_S = 3600.0
KINDS: tuple[Kind, ...] = ("done", "memory", "refused", "error", "crashed", "hung", "killed")
FAILURES: tuple[Kind, ...] = ("error", "crashed", "hung")


def after(kind: Kind, ladder: MemoryFallback | None = None, **options: Any) -> Next:
    """Return what follows an end of this kind."""
    can_recompute = options.pop("can_recompute", True)
    time_left_s = options.pop("time_left_s", HOUR_S)
    adapt = options.pop("adapt", True)
    outcome = Outcome(kind=kind, message="What happened.", **options)
    return decide_next(
        ladder or MemoryFallback(micro_batch=4),
        outcome,
        can_recompute=can_recompute,
        time_left_s=time_left_s,
        adapt=adapt,
    )


# --- what follows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_running_out_of_memory_ends_it_where_nothing_is_to_be_adapted(stage: str) -> None:
    assert after("memory", adapt=False, data={"stage": stage}).ladder is None
    assert after("memory", data={"stage": stage}).ladder is not None


@pytest.mark.parametrize("kind", ["done", "killed", "refused"])
def test_what_would_end_the_same_way_again_is_not_tried_again(kind: Kind) -> None:
    assert after(kind) == Next(ladder=None, message="What happened.")


def test_out_of_memory_halves_the_micro_batch_down_to_one_then_recomputes_then_ends() -> None:
    ladder, steps = MemoryFallback(micro_batch=5), []
    while (found := after("memory", ladder)).ladder is not None:
        assert found.wait_s == 0.0
        assert "Out of memory" in found.message
        ladder = found.ladder
        steps.append((ladder.micro_batch, ladder.with_cp))
    assert steps == [(2, False), (1, False), (1, True)]
    assert "smaller crop" in found.message
    assert "What happened." in found.message


LAST_RUNG = MemoryFallback(micro_batch=1, with_cp=True, validation_rung=1)


@pytest.mark.parametrize("ladder", [MemoryFallback(micro_batch=4), LAST_RUNG])
def test_memory_that_runs_out_late_costs_no_level_but_then_early_it_does(
    ladder: MemoryFallback,
) -> None:
    late = after("memory", replace(ladder, crashes=2), iteration=700, trained=300, proven=650, gained=250)
    assert late.ladder == ladder
    assert late.wait_s == 0.0
    early = after("memory", ladder, iteration=700, trained=50, proven=680, gained=30)
    assert early == after("memory", ladder)
    assert early.ladder != ladder


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_memory_that_runs_out_late_and_with_nothing_to_go_on_from_costs_a_rung(stage: str) -> None:
    ladder = MemoryFallback(micro_batch=4)
    gained = {"training": 0, "validation": 250}[stage]
    found = after("memory", ladder, trained=300, proven=None, gained=gained, data={"stage": stage})
    assert found.ladder == (
        MemoryFallback(micro_batch=2, above=4)
        if stage == "training"
        else MemoryFallback(micro_batch=4, validation_rung=1)
    )


def test_a_model_that_cannot_recompute_ends_with_one_image() -> None:
    assert after("memory", MemoryFallback(micro_batch=1), can_recompute=False).ladder is None


TOO_FEW = "ValueError: Expected more than 1 value per channel when training, got input size [1, 8, 1, 1]"


def refused(ladder: MemoryFallback, *, can_recompute: bool = True) -> Next:
    outcome = Outcome(kind="refused", message=TOO_FEW)
    return decide_next(ladder, outcome, can_recompute=can_recompute, time_left_s=HOUR_S)


def test_where_one_image_is_too_few_for_batch_norm_blocks_are_recomputed_with_two() -> None:
    one = after("memory", MemoryFallback(micro_batch=2)).ladder
    assert one is not None
    found = refused(one).ladder
    assert found is not None
    assert (found.micro_batch, found.with_cp) == (2, True)
    end = after("memory", found)
    assert end.ladder is None
    assert "too few for BatchNorm" in end.message


def test_between_too_few_images_and_too_many_there_may_be_a_rung() -> None:
    one = after("memory", MemoryFallback(micro_batch=3)).ladder
    assert one is not None
    assert one.micro_batch == 1
    three = refused(one).ladder
    assert three is not None
    two = after("memory", three).ladder
    assert two is not None
    assert (two.micro_batch, two.with_cp) == (2, True)
    assert after("memory", two).ladder is None


def test_recomputing_that_shows_one_image_to_be_too_few_is_kept_with_two() -> None:
    ladder: MemoryFallback | None = MemoryFallback(micro_batch=2)
    for _ in range(2):
        assert ladder is not None
        ladder = after("memory", ladder).ladder
    assert ladder is not None
    assert (ladder.micro_batch, ladder.with_cp) == (1, True)
    found = refused(ladder).ladder
    assert found is not None
    assert (found.micro_batch, found.with_cp) == (2, True)


def test_batch_norm_that_refuses_ends_it_where_nothing_else_can_be_tried() -> None:
    assert refused(MemoryFallback(micro_batch=1)) == Next(ladder=None, message=TOO_FEW)
    one = after("memory", MemoryFallback(micro_batch=2)).ladder
    assert one is not None
    end = refused(one, can_recompute=False)
    assert end.ladder is None
    assert "Fewer than 2 images" in end.message


def test_out_of_memory_in_validation_leaves_training_as_it_is() -> None:
    ladder, rungs = MemoryFallback(micro_batch=4), []
    while (found := after("memory", ladder, data={"stage": "validation"})).ladder is not None:
        ladder = found.ladder
        assert (ladder.micro_batch, ladder.with_cp) == (4, False)
        rungs.append(ladder.validation_rung)
    assert rungs == list(range(1, len(VALIDATION_RUNGS)))
    assert "mode='slide'" in found.message


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_tried_again_three_times_each_later_than_the_last(kind: Kind) -> None:
    ladder, waits_s = MemoryFallback(micro_batch=2, with_cp=True, validation_rung=1), []
    while (found := after(kind, ladder)).ladder is not None:
        ladder = found.ladder
        waits_s.append(found.wait_s)
        assert (ladder.micro_batch, ladder.with_cp, ladder.validation_rung) == (2, True, 1)
    assert waits_s == [5.0, 10.0, 20.0]
    assert len(waits_s) == MAX_CRASHES
    assert "without progress" in found.message


@pytest.mark.parametrize("kind", FAILURES)
def test_a_checkpoint_in_between_makes_the_tries_count_anew(kind: Kind) -> None:
    found = after(kind, MemoryFallback(micro_batch=4, crashes=MAX_CRASHES), proven=8)
    assert found.ladder == MemoryFallback(micro_batch=4, crashes=1)


def test_a_smaller_micro_batch_makes_the_tries_count_anew() -> None:
    found = after("memory", MemoryFallback(micro_batch=4, crashes=2))
    assert found.ladder == MemoryFallback(micro_batch=2, crashes=0, above=4)


@pytest.mark.parametrize(("left_s", "again"), [(65.0, True), (64.0, False), (-5.0, False)])
def test_nothing_is_started_that_has_no_time(left_s: float, again: bool) -> None:
    found = after("crashed", time_left_s=left_s)
    assert (found.ladder is not None) is again
    assert again or "no time left" in found.message


@given(
    kinds=st.lists(st.sampled_from([kind for kind in KINDS if kind != "done"]), min_size=40, max_size=40),
    stage=st.sampled_from(["", "validation"]),
    micro_batch=st.integers(1, 64),
)
def test_without_progress_every_chain_of_failures_ends(
    kinds: list[Kind], stage: str, micro_batch: int
) -> None:
    ladder = MemoryFallback(micro_batch=micro_batch)
    for kind in kinds:
        found = after(kind, ladder, data={"stage": stage})
        assert found.message
        if found.ladder is None:
            return
        assert 1 <= found.ladder.micro_batch <= ladder.micro_batch
        assert found.ladder.with_cp >= ladder.with_cp
        ladder = found.ladder
    raise AssertionError(f"40 children were started one after another, and none got anywhere: {ladder}")


# --- how a child is started ------------------------------------------------------------------------------


def launch(**options: Any) -> Launch:
    return Launch(spec=Path("/t/spec.json"), work_dir=Path("/w"), scratch=Path("/t"), **options)


def test_the_child_is_torchrun_s_with_as_many_workers_as_ranks() -> None:
    command = launch(num_workers=2).command()
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nproc-per-node=2", "--max-restarts=0", "--standalone", "--nnodes=1"} <= set(command)
    assert command[-3:] == ["-m", "mapsage_kaggle.engine.worker", "/t/spec.json"]


def test_one_machine_needs_no_name_of_its_own() -> None:
    assert "--local-addr=127.0.0.1" in launch().command()
    if Path("/sys/class/net/lo").exists():
        assert launch().environment({})["GLOO_SOCKET_IFNAME"] == "lo"


def test_several_machines_meet_where_they_are_told() -> None:
    several = launch(num_workers=2, nnodes=2, node_rank=1, rdzv_endpoint="10.0.0.1:29401")
    command = several.command()
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29401"} <= set(command)
    assert "--standalone" not in command
    assert "GLOO_SOCKET_IFNAME" not in several.environment({})


def test_a_meeting_point_without_a_port_gets_torchrun_s_usual_one() -> None:
    assert "--master-port=29500" in launch(nnodes=2, rdzv_endpoint="10.0.0.1").command()


def test_threads_are_pinned_whatever_the_environment_says() -> None:
    env = launch(threads=3).environment({"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "64"})
    assert {env[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}


def test_the_rest_of_the_environment_is_handed_on() -> None:
    assert launch().environment({"MY_OWN": "1"})["MY_OWN"] == "1"
    assert launch().environment()["PATH"] == os.environ["PATH"]


def test_import_paths_come_before_those_that_are_there() -> None:
    env = launch(import_paths=(Path("/a"), Path("/b"))).environment({"PYTHONPATH": "/c"})
    assert env["PYTHONPATH"].split(os.pathsep) == ["/a", "/b", "/c"]
    assert launch(import_paths=(Path("/a"),)).environment({})["PYTHONPATH"] == "/a"


def test_no_gpu_is_visible_where_none_is_used() -> None:
    assert launch().environment({"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""
    assert launch(gpus=True).environment({"CUDA_VISIBLE_DEVICES": "1"})["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in launch(gpus=True).environment({})


def test_deterministic_matrix_products_are_asked_for_before_cuda_starts() -> None:
    assert launch(deterministic=True).environment({})["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in launch().environment({})


def test_what_libraries_cache_stays_out_of_the_output() -> None:
    env = launch().environment({})
    assert {env["MPLCONFIGDIR"], env["TORCH_HOME"]} == {"/t/matplotlib", "/t/torch"}


# --- how its end is read ---------------------------------------------------------------------------------


def watch(*events: Event, hang_after_s: float = 600.0) -> _Watch:
    found = _Watch(0, hang_after_s)
    for event in events:
        found.see(event)
    return found


def event(name: str, iteration: int = 0, /, **data: Any) -> Event:
    return Event(event=name, iteration=iteration, data=data)


@pytest.mark.parametrize("code", [0, 1, -9, None])
def test_the_child_s_own_word_counts_and_torchrun_s_exit_code_does_not(code: int | None) -> None:
    stop = event("stop", 12, reason="deadline", message="Time is up.", timings_s={"saving": 1.0})
    outcome = watch(event("checkpoint", 12), stop).outcome(code)
    assert (outcome.kind, outcome.reason, outcome.message) == ("done", "deadline", "Time is up.")
    assert (outcome.iteration, outcome.proven) == (12, 12)
    assert outcome.data["timings_s"] == {"saving": 1.0}


def test_workers_that_saved_because_torchrun_was_killed_are_a_crash_and_go_on() -> None:
    orphaned = event("stop", 12, reason="user", orphaned=True, message="The supervising command is gone.")
    outcome = watch(event("checkpoint", 12), orphaned).outcome(-9)
    assert (outcome.kind, outcome.proven) == ("crashed", 12)
    assert "torchrun ended before its workers" in outcome.message
    # A machine whose workers followed the word of machine 0 ends as they did.
    assert watch(orphaned).outcome(0).kind == "done"


@pytest.mark.parametrize("code", [0, 1, -9])
def test_a_child_that_said_nothing_has_crashed_whatever_its_exit_code(code: int) -> None:
    outcome = watch(event("start", pid=1), event("iteration", 3, iteration_s=0.1)).outcome(code)
    assert outcome.kind == "crashed"
    assert f"exit code {code}" in outcome.message
    assert (outcome.iteration, outcome.proven) == (3, None)


@pytest.mark.parametrize(
    ("events", "stage"),
    [
        ([event("iteration", 3)], "training"),
        ([event("iteration", 3), event("validation_start", 3)], "validation"),
        ([event("validation_start", 3), event("iteration", 4)], "training"),
    ],
)
def test_a_child_that_the_kernel_killed_for_memory_has_run_out_of_it(events: list[Event], stage: str) -> None:
    assert watch(*events).outcome(1).kind == "crashed"
    outcome = watch(*events).outcome(1, out_of_memory=True)
    assert (outcome.kind, outcome.data["stage"]) == ("memory", stage)
    followed = decide_next(MemoryFallback(micro_batch=4), outcome, can_recompute=True, time_left_s=HOUR_S)
    assert followed.ladder == (
        MemoryFallback(micro_batch=4, validation_rung=1)
        if stage == "validation"
        else MemoryFallback(micro_batch=2, above=4)
    )


def test_what_the_child_said_counts_more_than_that_the_kernel_killed_something() -> None:
    failure, stop = event("failure", 5, kind="error", message="Bang."), event("stop", 5, reason="deadline")
    assert watch(failure).outcome(1, out_of_memory=True).kind == "error"
    assert watch(stop).outcome(0, out_of_memory=True).kind == "done"


@pytest.mark.parametrize(
    ("told", "kind"), [("memory", "memory"), ("refused", "refused"), ("error", "error"), ("novel", "error")]
)
def test_a_failure_that_the_child_told_of_has_its_kind(told: str, kind: str) -> None:
    outcome = watch(event("failure", 5, kind=told, message="Bang.", stage="validation")).outcome(1)
    assert (outcome.kind, outcome.message) == (kind, "Bang.")
    assert outcome.data["stage"] == "validation"


def test_the_first_failure_counts_and_not_those_of_ranks_that_miss_the_other() -> None:
    peer, first, later = (event("failure", kind=kind, message=kind) for kind in ("peer", "memory", "error"))
    assert watch(first, peer).outcome(1).kind == "memory"
    assert watch(peer, first).outcome(1).kind == "memory"
    assert watch(peer, first, later).outcome(1).kind == "memory"
    assert watch(peer).outcome(1).kind == "error"


def test_a_child_that_ended_in_order_although_we_were_ending_it_is_done() -> None:
    found = watch(event("stop", 4, reason="user"))
    found.ended_by_us = "killed"
    assert found.outcome(-15).kind == "done"


def test_a_child_that_we_ended_is_told_as_such() -> None:
    for ended, kind, words in (
        ("hung", "hung", "said nothing"),
        ("killed", "killed", "before it had saved"),
        ("late", "hung", "time was up"),
    ):
        found = watch(event("iteration", 7, iteration_s=0.1))
        found.ended_by_us = ended  # type: ignore[assignment]
        outcome = found.outcome(-9)
        assert (outcome.kind, outcome.iteration) == (kind, 7)
        assert words in outcome.message


def test_a_child_that_saved_only_because_it_was_ended_as_hung_is_started_again() -> None:
    found = watch(event("checkpoint", 9), event("stop", 9, reason="user"))
    found.ended_by_us = "hung"
    outcome = found.outcome(0)
    assert (outcome.kind, outcome.reason, outcome.proven) == ("hung", "", 9)
    followed = decide_next(MemoryFallback(micro_batch=4), outcome, can_recompute=True, time_left_s=HOUR_S)
    assert followed.ladder == MemoryFallback(micro_batch=4, crashes=1)
    asked = found.outcome(0, stop_asked=True)
    assert (asked.kind, asked.reason) == ("done", "user")


@pytest.mark.parametrize("reason", ["completed", "deadline"])
def test_a_child_that_ended_by_itself_while_we_took_it_for_hung_is_done(reason: str) -> None:
    found = watch(event("stop", 9, reason=reason))
    found.ended_by_us = "hung"
    assert (found.outcome(0).kind, found.outcome(0).reason) == ("done", reason)


def test_a_child_that_had_to_be_told_that_time_was_up_ends_at_the_deadline() -> None:
    found = watch(event("checkpoint", 9), event("stop", 9, reason="user", message="On request."))
    found.ended_by_us = "late"
    outcome = found.outcome(0)
    assert (outcome.kind, outcome.reason) == ("done", "deadline")
    assert "time was up" in outcome.message
    assert found.outcome(0, stop_asked=True).reason == "user"


def test_a_child_that_has_not_begun_to_train_when_time_is_up_has_lost_nothing() -> None:
    found = watch(event("start", pid=1))
    found.ended_by_us = "late"
    outcome = found.outcome(-9)
    assert (outcome.kind, outcome.reason) == ("done", "deadline")
    assert outcome.message == "The session's time was up before training began."


def test_a_child_that_did_not_save_when_time_was_up_is_not_started_again() -> None:
    found = watch(event("iteration", 7, iteration_s=0.1))
    found.ended_by_us = "late"
    outcome = found.outcome(-9)
    assert outcome.reason == "deadline"
    followed = decide_next(MemoryFallback(micro_batch=4), outcome, can_recompute=True, time_left_s=HOUR_S)
    assert followed == Next(ladder=None, message=outcome.message)


def test_what_a_child_has_trained_itself_is_known() -> None:
    assert watch(event("iteration", 12), event("iteration", 30)).outcome(1).trained == 19
    begun = (event("training", 10), event("iteration", 11))
    assert watch(*begun, event("failure", 25, kind="memory")).outcome(1).trained == 15
    assert watch(*begun, event("stop", 40, reason="user")).outcome(0).trained == 30
    for untrained in ((), (event("training", 10),), (event("training", 10), event("failure", 10))):
        assert watch(*untrained).outcome(1).trained == 0


def test_how_much_of_that_is_proven_is_known() -> None:
    began = (event("training", 10), event("checkpoint", 10), event("iteration", 150))
    assert watch(*began).outcome(1, out_of_memory=True).gained == 0
    assert watch(*began, event("checkpoint", 120)).outcome(1, out_of_memory=True).gained == 110
    assert watch(event("checkpoint", 120)).outcome(1).gained == 0


def test_workers_are_known_by_their_start() -> None:
    started = [event("start", pid=pid, pid_started_s=pid / 2) for pid in (11, 12)]
    assert watch(*started).workers == {ProcessId(11, 5.5), ProcessId(12, 6.0)}


# --- hanging ---------------------------------------------------------------------------------------------


def test_the_first_iteration_may_take_twice_as_long() -> None:
    found = watch(hang_after_s=600.0)
    assert found.patience_s() == 1200.0
    found.see(event("iteration", 1, iteration_s=0.5))
    assert found.patience_s() == 600.0


def test_slow_iterations_are_waited_for() -> None:
    assert watch(event("iteration", 1, iteration_s=100.0)).patience_s() == 100.0 * HANG_FACTOR


def test_an_iteration_without_a_time_leaves_the_patience() -> None:
    assert watch(event("iteration", 1, iteration_s=None), hang_after_s=7.0).patience_s() == 7.0


def test_every_event_ends_the_silence() -> None:
    found = watch()
    now = time.monotonic()
    assert found.silent_s(now + 30.0) >= 30.0
    found.see(event("warning"))
    assert found.silent_s(time.monotonic()) < found.silent_s(now + 30.0)


# --- a supervisor and a child that is a few lines of Python -------------------------------------------------

CHILD = """
import json, os, signal, sys, time
from mapsage_kaggle.processes import process_start_s

def tell(event, iteration=0, **data):
    line = json.dumps({"event": event, "time_s": time.time(), "iteration": iteration, **data})
    with open("events.jsonl", "a") as log:
        log.write(line + "\\n")

def end(*_):
    tell("stop", 5, reason="user")
    os._exit(0)

signal.signal(signal.SIGTERM, end)
tell("start", pid=os.getpid(), pid_started_s=process_start_s())
tell("iteration", 5, iteration_s=0.01)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretence(Launch):
    """A launch of a few lines instead of torchrun."""

    lines: str

    def command(self) -> list[str]:
        code = f"import os; os.chdir({str(self.work_dir)!r})\n{CHILD}\n{self.lines}"
        return [sys.executable, "-c", code]


def pretence(folder: Path, lines: str) -> Pretence:
    return Pretence(spec=folder / "spec.json", work_dir=folder, scratch=folder, lines=lines)


def clock() -> SessionClock:
    return SessionClock(started_s=boot_time_s(), limit_s=HOUR_S, reserve_s=0.0)


class Time:
    """A session's time that stands still until it is set to be over, at once or when a file is there."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self.clock = SessionClock(started_s=1000.0, limit_s=HOUR_S, reserve_s=0.0, now=lambda: self._now_s)

    def is_over(self) -> None:
        self._now_s += 2 * HOUR_S


def when_there(file: Path, do: Callable[[], None]) -> None:
    """Do something as soon as a file is there, in a thread."""

    def wait() -> None:
        end = time.monotonic() + 60.0
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.02)
        do()

    threading.Thread(target=wait, daemon=True).start()


HANGS = "time.sleep(60)"


def test_a_child_that_hangs_and_saves_when_it_is_ended_has_hung(tmp_path: Path) -> None:
    outcome = Supervisor(tmp_path, clock(), hang_after_s=0.5).run(pretence(tmp_path, HANGS))
    assert (outcome.kind, outcome.iteration) == ("hung", 5)
    assert "said nothing for" in outcome.message


def test_a_child_that_goes_on_past_the_limit_is_ended_at_the_deadline(tmp_path: Path) -> None:
    time_s = Time()
    when_there(tmp_path / "ready", time_s.is_over)
    outcome = Supervisor(tmp_path, time_s.clock).run(pretence(tmp_path, f"open('ready', 'w'); {HANGS}"))
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "deadline", 5)


# --- requests --------------------------------------------------------------------------------------------

CRASHES = "os._exit(1)"
OBEYS = """
while not os.path.exists("stop_request.json"):
    time.sleep(0.01)
end()
"""


def test_a_stop_asked_for_before_a_child_that_crashes_is_there_for_the_next(tmp_path: Path) -> None:
    supervisor, files = Supervisor(tmp_path, clock()), WorkDir(tmp_path)
    assert not supervisor.stopping
    ask_stop(files)
    assert supervisor.stopping
    assert supervisor.run(pretence(tmp_path, CRASHES)).kind == "crashed"
    assert supervisor.stopping
    outcome = supervisor.run(pretence(tmp_path, OBEYS))
    assert (outcome.kind, outcome.reason) == ("done", "user")


def test_a_stop_that_is_asked_for_here_reaches_each_child(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, clock())
    supervisor.request_stop()
    for _ in range(2):
        assert supervisor.run(pretence(tmp_path, OBEYS)).reason == "user"


def test_where_the_request_cannot_be_written_a_signal_asks_for_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(files: WorkDir) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(supervise, "ask_stop", full)
    supervisor = Supervisor(tmp_path, clock())
    when_there(tmp_path / "ready", supervisor.request_stop)
    outcome = supervisor.run(pretence(tmp_path, f"open('ready', 'w'); {HANGS}"))
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "user", 5)


def test_a_child_that_does_not_follow_the_stop_file_of_a_person_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "STOP_GRACE_S", 0.3)
    WorkDir(tmp_path).stop_request.touch()
    outcome = Supervisor(tmp_path, clock()).run(pretence(tmp_path, HANGS))
    assert outcome.kind == "killed"


def test_a_save_request_leaves_a_stop_request_as_it_is(tmp_path: Path) -> None:
    supervisor, follower, files = Supervisor(tmp_path, clock()), Follower(tmp_path), WorkDir(tmp_path)
    for ask_for_save in (supervisor.request_save, follower.save):
        ask_for_save()
        assert not supervisor.stopping
        follower.stop()
        ask_for_save()
        assert supervisor.stopping
        drop_requests(files)
        assert [file.name for file in tmp_path.iterdir()] == []


# --- one child after another -----------------------------------------------------------------------------


class Told(Supervisor):
    """A supervisor whose children end as it was told."""

    def __init__(self, folder: Path, clock: SessionClock, *outcomes: Outcome) -> None:
        super().__init__(folder, clock)
        self.outcomes = list(outcomes)

    def run(self, launch: Launch) -> Outcome:
        return self.outcomes.pop(0)


def session_of(supervisor: Supervisor, folder: Path, clock: SessionClock) -> Any:
    """Return a session that only starts children and waits between them."""
    session: Any = object.__new__(SessionRun)
    session.prepared = SimpleNamespace(
        start_iteration=0,
        patch=SimpleNamespace(max_iters=100),
        discovery=SimpleNamespace(choice=SimpleNamespace(inspection=None)),
        options=SimpleNamespace(on_memory="adapt"),
        clock=clock,
    )
    session.supervisor, session.files = supervisor, WorkDir(folder)
    session._log = EventLog(session.files.events)
    session.record = SessionRecord(run_id="r", fingerprint="f")
    session.ladder, session.steps, session.restarts, session.pace = MemoryFallback(micro_batch=4), [], 0, {}
    session._first_spec = session._next_spec = dict
    session._launch = lambda spec: launch()
    session._can_recompute = lambda: True
    return session


CRASH = Outcome(kind="crashed", message="Bang.", iteration=9, proven=8)
DONE = Outcome(kind="done", reason="completed", iteration=100)


def test_after_a_crash_another_child_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_wait", lambda seconds, supervisor: None)
    supervisor = Told(tmp_path, clock(), CRASH, DONE)
    assert session_of(supervisor, tmp_path, clock()).run_children()[0] == DONE


@pytest.mark.parametrize("how", ["button", "file", "twice Ctrl-C"])
def test_a_stop_that_is_asked_for_between_two_children_ends_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    supervisor = Told(tmp_path, clock(), CRASH)
    ask = {
        "button": supervisor.request_stop,
        "file": lambda: ask_stop(WorkDir(tmp_path)),
        "twice Ctrl-C": supervisor.kill,
    }[how]
    monkeypatch.setattr(session, "_wait", lambda seconds, supervisor: ask())
    outcome, message = session_of(supervisor, tmp_path, clock()).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "user", 8)
    assert message == "Bang. Stopped on request before it was tried again."


def test_a_stop_ends_the_wait_between_two_children(tmp_path: Path) -> None:
    supervisor, begin = Supervisor(tmp_path, clock()), time.monotonic()
    threading.Timer(0.2, ask_stop, [WorkDir(tmp_path)]).start()
    _wait(60.0, supervisor)
    assert time.monotonic() - begin < 30.0


def test_a_stop_that_is_asked_for_before_the_first_child_starts_none(tmp_path: Path) -> None:
    supervisor = Told(tmp_path, clock())
    supervisor.request_stop()
    outcome, message = session_of(supervisor, tmp_path, clock()).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "user", 0)
    assert "before training began" in message


def test_a_child_that_crashes_although_it_was_to_stop_has_failed_for_good(
    tmp_path: Path,
) -> None:
    supervisor = Told(tmp_path, clock())

    def crash(launch: Launch) -> Outcome:
        supervisor.request_stop()
        return CRASH

    supervisor.run = crash  # type: ignore[method-assign]
    assert session_of(supervisor, tmp_path, clock()).run_children() == (CRASH, "Bang.")


def test_a_session_whose_time_is_up_starts_no_child_and_ends_at_the_deadline(tmp_path: Path) -> None:
    over = SessionClock(started_s=boot_time_s() - 2 * HOUR_S, limit_s=HOUR_S, reserve_s=0.0)
    outcome, message = session_of(Told(tmp_path, over), tmp_path, over).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "deadline", 0)
    assert message == "The session's time was up before training began."


def test_out_of_memory_when_time_is_up_ends_at_the_deadline(tmp_path: Path) -> None:
    time_s = Time()
    supervisor = Told(tmp_path, time_s.clock)

    def run_out(launch: Launch) -> Outcome:
        time_s.is_over()
        return Outcome(kind="memory", message="Out.", iteration=9, proven=8)

    supervisor.run = run_out  # type: ignore[method-assign]
    outcome, message = session_of(supervisor, tmp_path, time_s.clock).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "deadline", 8)
    assert message == "Out. The session's time was up before it was tried again."


# --- sinks -----------------------------------------------------------------------------------------------


class Sink:
    """Keeps what it was told, or fails from the second event on as what it writes to does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[Event] = []
        self.error = error

    def handle(self, event: Event) -> None:
        self.events.append(event)
        if self.error is not None and len(self.events) > 1:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        BrokenPipeError(32, "Broken pipe"),
        UnicodeEncodeError("ascii", "…", 0, 1, "ordinal not in range"),
        ValueError("I/O operation on closed file."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_sink_that_fails_is_told_no_more_and_training_goes_on(tmp_path: Path, error: Exception) -> None:
    broken, whole = Sink(error), Sink()
    supervisor = Supervisor(tmp_path, clock(), [broken, whole])
    outcome = supervisor.run(pretence(tmp_path, "tell('iteration', 6); time.sleep(0.5); end()"))
    assert (outcome.kind, outcome.iteration) == ("done", 5)
    assert [event.event for event in broken.events] == ["start", "iteration"]
    kinds = [event.event for event in whole.events]
    assert sorted(kinds) == ["iteration", "iteration", "start", "stop", "warning"]
    (warning,) = [event for event in read_events(WorkDir(tmp_path).events) if event.event == "warning"]
    assert type(error).__name__ in warning.data["message"]
    supervisor.pass_on(("warning",))
    assert len(broken.events) == 2


# --- processes that are left -----------------------------------------------------------------------------

STARTS_A_WORKER = """
import subprocess
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open("pids.tmp", "w") as file:
    file.write(f"{worker.pid} {helper.pid}")
os.rename("pids.tmp", "pids")
"""


@pytest.mark.parametrize(
    "rest", ["time.sleep(60)", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"]
)
@pytest.mark.parametrize("how", ["killed", "late"])
def test_a_worker_that_has_not_said_that_it_is_there_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, rest: str
) -> None:
    monkeypatch.setattr(supervise, "TERMINATION_S", 1.0)
    pids, time_s = tmp_path / "pids", Time()
    supervisor = Supervisor(tmp_path, time_s.clock)
    when_there(pids, supervisor.kill if how == "killed" else time_s.is_over)
    supervisor.run(pretence(tmp_path, STARTS_A_WORKER + rest))
    left = [ProcessId.of(int(pid)) for pid in pids.read_text().split()]
    assert [process for process in left if process is not None and process.alive] == []
