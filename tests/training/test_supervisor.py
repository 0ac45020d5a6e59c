"""The supervisor: how a child is started, watched and ended, and how its end is read."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.clocks import HOUR_S, Time

from mapsage_kaggle.clock import SessionClock, boot_time_s
from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.processes import ProcessId
from mapsage_kaggle.spec import ask_stop, drop_requests
from mapsage_kaggle.training import supervisor as supervise
from mapsage_kaggle.training.fallback import (
    MemoryFallback,
    Next,
    decide_next,
)
from mapsage_kaggle.training.follow import Follower
from mapsage_kaggle.training.supervisor import Launch, Supervisor, _Watch

# --- how a child is started ------------------------------------------------------------------------------


def launch(**options: Any) -> Launch:
    return Launch(spec=Path("/t/spec.json"), work_dir=Path("/w"), scratch=Path("/t"), **options)


def test_the_child_is_torchrun_s_with_as_many_workers_as_ranks() -> None:
    command = launch(num_workers=2).command()
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nproc-per-node=2", "--max-restarts=0", "--standalone", "--nnodes=1"} <= set(command)
    assert command[-5:-3] == ["-m", "mapsage_kaggle.engine.start"]
    assert command[-2:] == ["mapsage_kaggle.engine.worker", "/t/spec.json"]


def test_the_only_worker_needs_no_torchrun() -> None:
    command = launch().command()
    assert command[:3] == [sys.executable, "-m", "mapsage_kaggle.engine.start"]
    assert command[-2:] == ["mapsage_kaggle.engine.worker", "/t/spec.json"]


def test_one_machine_needs_no_name_of_its_own() -> None:
    assert {"--local-addr=127.0.0.1", "--nproc-per-node=2"} <= set(launch(num_workers=2).command())
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


def test_machines_meet_at_an_ipv6_address_too() -> None:
    command = launch(nnodes=2, rdzv_endpoint="[fd00::1]:29401").command()
    assert {"--master-addr=fd00::1", "--master-port=29401"} <= set(command)


def test_threads_are_pinned_whatever_the_environment_says() -> None:
    env = launch(threads=3).environment({"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "64"})
    assert {env[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}


def test_the_rest_of_the_environment_is_handed_on() -> None:
    assert launch().environment({"MY_OWN": "1"})["MY_OWN"] == "1"
    assert launch().environment()["PATH"] == os.environ["PATH"]


def test_credentials_reach_a_training_only_where_they_are_passed() -> None:
    environ = {"KAGGLE_KEY": "secret", "WANDB_API_KEY": "secret"}
    assert environ.keys() & launch().environment(environ).keys() == set()
    assert environ.keys() & launch(passed=("WANDB_API_KEY",)).environment(environ).keys() == {"WANDB_API_KEY"}


def test_no_gpu_is_visible_where_none_is_used() -> None:
    assert launch().environment({"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""
    assert launch(gpus=True).environment({"CUDA_VISIBLE_DEVICES": "1"})["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in launch(gpus=True).environment({})


def test_the_gpu_s_memory_grows_in_segments_unless_a_person_says_otherwise() -> None:
    name = "PYTORCH_CUDA_ALLOC_CONF"
    assert launch(gpus=True).environment({})[name] == "expandable_segments:True"
    assert name not in launch().environment({})
    assert launch(gpus=True).environment({name: "backend:native"})[name] == "backend:native"
    assert name not in launch(gpus=True).environment({"PYTORCH_ALLOC_CONF": "backend:native"})


def test_deterministic_matrix_products_are_asked_for_before_cuda_starts() -> None:
    assert launch(deterministic=True).environment({})["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in launch().environment({})


def test_what_libraries_cache_stays_out_of_the_output() -> None:
    env = launch().environment({})
    assert {env["MPLCONFIGDIR"], env["TORCH_HOME"]} == {"/t/matplotlib", "/t/torch"}


# --- how its end is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "kind"),
    [("memory", "memory"), ("precision", "precision"), ("refused", "refused"), ("peer", "error")],
)
def test_what_a_child_says_of_its_failure_is_believed(told: str, kind: str) -> None:
    failure = Event(event="failure", iteration=5, data={"kind": told, "message": "Why."})
    found = watch(failure).outcome(1)
    assert (found.kind, found.message) == (kind, "Why.")


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
    asked = watch(orphaned).outcome(-9, stop_asked=True)
    assert (asked.kind, asked.reason, asked.iteration) == ("done", "user", 12)


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


def test_workers_that_saved_as_their_torchrun_was_killed_for_memory_have_lost_nothing() -> None:
    outcome = watch(event("stop", 12, reason="user", orphaned=True)).outcome(-9, out_of_memory=True)
    assert (outcome.kind, outcome.message) == (
        "crashed",
        "torchrun ended before its workers (exit code -9); they have saved.",
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
    assert (found.outcome(-15).kind, found.outcome(-15).reason) == ("done", "user")


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
    for untrained in (
        (),
        (event("training", 0),),
        (event("training", 10),),
        (event("training", 10), event("failure", 10)),
    ):
        assert watch(*untrained).outcome(1).trained == 0


def test_how_much_of_that_is_proven_is_known() -> None:
    began = (event("training", 10), event("checkpoint", 10), event("iteration", 150))
    assert watch(*began).outcome(1, out_of_memory=True).gained == 0
    assert watch(*began, event("checkpoint", 120)).outcome(1, out_of_memory=True).gained == 110
    assert watch(event("checkpoint", 120)).outcome(1).gained == 0


def test_workers_are_known_by_their_start() -> None:
    started = [event("start", pid=pid, pid_started_s=pid / 2, rank=pid - 11) for pid in (11, 12)]
    assert watch(*started).workers == {ProcessId(11, 5.5): 0, ProcessId(12, 6.0): 1}


# --- hanging ---------------------------------------------------------------------------------------------


def test_the_first_iteration_may_take_twice_as_long() -> None:
    found = watch(hang_after_s=600.0)
    assert found.patience_s() == 1200.0
    found.see(event("iteration", 1, iteration_s=0.5))
    assert found.patience_s() == 600.0


def test_slow_iterations_are_waited_for() -> None:
    assert watch(event("iteration", 1, iteration_s=100.0)).patience_s() == 20 * 100.0


def test_an_iteration_without_a_time_leaves_the_patience() -> None:
    assert watch(event("iteration", 1, iteration_s=None), hang_after_s=7.0).patience_s() == 7.0


@pytest.mark.parametrize(("name", "ends"), [("validating", True), ("warning", False), ("upload", False)])
def test_only_what_the_child_alone_says_ends_the_silence(name: str, ends: bool) -> None:
    found = watch()
    now = time.monotonic() + 30.0
    before = found.silent_s(now)
    found.see(event(name))
    assert (found.silent_s(now) < before) is ends


# --- a supervisor and a child that is a few lines of Python ----------------------------------------------

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


def when_there(file: Path, do: Callable[[], None]) -> None:
    """Do something as soon as a file is there, in a thread."""

    def wait() -> None:
        end = time.monotonic() + 60.0
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.02)
        do()

    threading.Thread(target=wait, daemon=True).start()


HANGS = "time.sleep(60)"
CRASHES = "os._exit(1)"


def test_a_child_that_hangs_and_saves_when_it_is_ended_has_hung(tmp_path: Path) -> None:
    outcome = Supervisor(tmp_path, clock(), hang_after_s=0.5).run(pretence(tmp_path, HANGS))
    assert (outcome.kind, outcome.iteration) == ("hung", 5)
    assert "said nothing for" in outcome.message


def test_a_child_that_goes_on_past_the_limit_is_ended_at_the_deadline(tmp_path: Path) -> None:
    time_s = Time()
    when_there(tmp_path / "ready", time_s.is_over)
    outcome = Supervisor(tmp_path, time_s.clock).run(pretence(tmp_path, f"open('ready', 'w'); {HANGS}"))
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "deadline", 5)


def test_where_the_kernel_does_not_count_what_it_kills_a_crash_is_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "oom_kills", lambda: None)
    assert Supervisor(tmp_path, clock()).run(pretence(tmp_path, CRASHES)).kind == "crashed"


def test_the_first_process_that_the_kernel_kills_for_memory_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([0, 1])
    monkeypatch.setattr(supervise, "oom_kills", lambda: next(counts))
    assert Supervisor(tmp_path, clock()).run(pretence(tmp_path, CRASHES)).kind == "memory"


class Ended:
    """A torchrun that has ended."""

    stdin = None

    def ended(self) -> bool:
        return True

    def wait(self) -> None:
        pass


@pytest.mark.parametrize(
    ("ended_by_us", "patience_s"), [("", 60.0), ("killed", 60.0), ("hung", 0.0), ("late", 0.0)]
)
def test_workers_that_torchrun_leaves_have_a_minute_to_save_but_for_those_that_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by_us: Any, patience_s: float
) -> None:
    waited: list[tuple[ProcessId, float]] = []
    monkeypatch.setattr(supervise, "outlive", lambda *what: waited.append(what))
    found = watch(event("start", pid=11, pid_started_s=5.5))
    found.ended_by_us = ended_by_us
    Supervisor(tmp_path, clock())._end(Ended(), found)  # type: ignore[arg-type]
    assert waited == [(ProcessId(11, 5.5), patience_s)]


class Deaf(Ended):
    """A torchrun that goes on whatever it is asked for."""

    def ended(self) -> bool:
        return False


def test_a_child_that_was_asked_to_stop_has_three_minutes_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(1.0)

    monkeypatch.setattr(supervise, "time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=sleep))
    supervisor, found = Supervisor(tmp_path, clock()), watch()
    supervisor.request_stop()
    supervisor._stay_with(Deaf(), found)  # type: ignore[arg-type]
    assert (found.ended_by_us, len(slept)) == ("killed", 181)


# --- requests --------------------------------------------------------------------------------------------

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


def test_pictures_are_packed_while_a_child_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapsage_kaggle.training.output.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("mapsage_kaggle.training.output.SETTLED_S", 0.0)
    for number in range(150):
        (tmp_path / f"{number}.png").touch()
    Supervisor(tmp_path, clock(), hang_after_s=0.5).run(pretence(tmp_path, HANGS))
    assert list(tmp_path.glob("*.png")) == []
    assert (tmp_path / "pictures_001.zip").is_file()
