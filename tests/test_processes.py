"""Processes: told apart by more than their number, and ended with all that they have started."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapsage_kaggle import processes
from mapsage_kaggle.config.modules import CodePlaces
from mapsage_kaggle.processes import Child, ChildError, ProcessId, outlive, run, run_for_json

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]

STARTS_A_TREE = """
import subprocess, sys, time
sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
below = [subprocess.Popen(sleeps), subprocess.Popen(sleeps, start_new_session=True)]
with open(sys.argv[1] + ".tmp", "w") as file:
    file.write(" ".join(str(process.pid) for process in below))
import os; os.rename(sys.argv[1] + ".tmp", sys.argv[1])
"""


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30.0
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def tree(pids: Path) -> list[ProcessId]:
    """Return the processes that ``STARTS_A_TREE`` has started, once it has."""
    wait_for(pids.exists)
    found = [ProcessId.of(int(pid)) for pid in pids.read_text().split()]
    return [process for process in found if process is not None]


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


# -- one process


def test_a_process_that_runs_is_alive_until_it_has_ended() -> None:
    child = Child(SLEEPS)
    found = ProcessId.of(child.pid)
    assert found is not None
    assert found.alive
    child.kill()
    wait_for(child.ended)
    assert not found.alive  # nobody has waited for it yet
    child.wait()
    assert not found.alive
    assert ProcessId.of(child.pid) is None


def test_a_number_that_another_process_has_now_is_not_the_process_that_had_it() -> None:
    child = Child(SLEEPS)
    now = ProcessId.of(child.pid)
    assert now is not None
    before = ProcessId(child.pid, now.started_s - 1.0)
    assert not before.alive
    assert before.descendants() == set()
    before.signal(signal.SIGKILL)
    outlive(before, 0.0)
    assert now.alive
    now.signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_a_signal_to_a_process_that_has_gone_is_none() -> None:
    child = Child(SLEEPS)
    found = ProcessId.of(child.pid)
    child.end()
    assert found is not None
    found.signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"pid": 7, "pid_started_s": 1.5}, ProcessId(7, 1.5)),
        ({"pid": 7}, None),
        ({"pid": "7", "pid_started_s": 1.5}, None),
        ({"pid": 7, "pid_started_s": None}, None),
        ({}, None),
    ],
)
def test_an_event_states_a_process_by_number_and_start(
    data: dict[str, object], expected: ProcessId | None
) -> None:
    assert ProcessId.stated(data) == expected


def test_a_process_that_takes_too_long_to_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    child = Child(python(STARTS_A_TREE + "time.sleep(600)", tmp_path / "pids"))
    below = tree(tmp_path / "pids")
    root = ProcessId.of(child.pid)
    assert root is not None
    assert set(below) <= root.descendants()
    threading.Thread(target=child.wait).start()
    outlive(root, 0.0)
    wait_for(lambda: not any(process.alive for process in (root, *below)))


# -- children


def test_a_child_that_has_ended_keeps_its_number_until_it_is_waited_for() -> None:
    child = Child(python("pass"))
    wait_for(child.ended)
    assert child.returncode is None
    os.kill(child.pid, 0)
    assert child.wait() == 0
    assert child.ended()


def test_what_somebody_else_has_waited_for_counts_as_ended() -> None:
    child = Child(python("pass"))
    os.waitpid(child.pid, 0)
    assert child.ended()


def test_ending_a_child_ends_all_that_it_started_in_whatever_group(tmp_path: Path) -> None:
    child = Child(python(STARTS_A_TREE + "time.sleep(600)", tmp_path / "pids"))
    below = tree(tmp_path / "pids")
    child.end()
    assert child.returncode == -signal.SIGKILL
    wait_for(lambda: not any(process.alive for process in below))


def test_what_a_child_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    child = Child(python(STARTS_A_TREE + "below[1].kill()", tmp_path / "pids"))
    below = tree(tmp_path / "pids")
    child.end(patience_s=30.0)
    assert child.returncode == 0
    wait_for(lambda: not any(process.alive for process in below))


# -- to the end


def test_a_command_is_run_to_its_end() -> None:
    done = run(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), timeout_s=60)
    assert (done.code, done.output, done.errors) == (3, "out\n", "err\n")


def test_both_streams_come_in_their_order_where_one_is_asked_for() -> None:
    code = "import os; os.write(1, b'a'); os.write(2, b'b'); os.write(1, b'c')"
    assert run(python(code), timeout_s=60, one_stream=True).output == "abc"


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = STARTS_A_TREE + "print('last words', file=sys.stderr, flush=True); time.sleep(600)"
    with pytest.raises(ChildError, match="took too long\nlast words") as caught:
        run(python(code, tmp_path / "pids"), timeout_s=2.0)
    assert caught.value.timed_out
    below = tree(tmp_path / "pids")
    wait_for(lambda: not any(process.alive for process in below))


def test_ctrl_c_ends_a_command_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[ProcessId] = []

    def interrupted(seconds: float) -> None:
        if (tmp_path / "pids").exists():
            found.extend(tree(tmp_path / "pids"))
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(processes.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(python(STARTS_A_TREE + "time.sleep(600)", tmp_path / "pids"), timeout_s=600)
    assert len(found) == 2
    wait_for(lambda: not any(process.alive for process in found))


def test_the_last_line_is_the_document() -> None:
    code = "print('a greeting'); print('{\"a\": [1]}')"
    assert run_for_json(python(code), timeout_s=60) == {"a": [1]}


@pytest.mark.parametrize(
    ("code", "exit_code", "last_word"),
    [
        ("raise ValueError('no such layer')", 1, "ValueError: no such layer"),
        ("import sys; print('{}'); sys.exit(4)", 4, "exit code 4"),
        ("pass", 0, "exit code 0"),
        ("print('{} and more')", 0, "no JSON document: '{} and more'"),
    ],
)
def test_a_child_without_a_document_is_an_error_with_its_last_words(
    code: str, exit_code: int, last_word: str
) -> None:
    with pytest.raises(ChildError) as caught:
        run_for_json(python(code), timeout_s=60)
    assert (caught.value.code, caught.value.last_word) == (exit_code, last_word)
    assert not caught.value.timed_out


def test_an_error_quotes_the_last_fifteen_lines() -> None:
    code = "import sys; [print(n, file=sys.stderr) for n in range(40)]; sys.exit(1)"
    with pytest.raises(ChildError) as caught:
        run_for_json(python(code), timeout_s=60)
    assert caught.value.words == tuple(str(n) for n in range(25, 40))


# -- an interpreter that is ready


SAYS = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ.get("SAID"), "torch" in sys.modules, os.getppid(), flush=True)
print("complaint", file=sys.stderr)
os.environ["LEFT_BEHIND"] = "1"
sys.exit(int(sys.argv[1]))
"""
WAITS = """
import os, sys, time
print(os.getpid(), flush=True)
sys.stdin.buffer.read() if sys.argv[1:] == ["for-the-end"] else time.sleep(600)
"""


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[processes.WarmPython]:
    for name, code in (("says", SAYS), ("waits", WAITS)):
        (tmp_path / f"{name}.py").write_text(code)
    processes.warm_up(tmp_path, threads=1)
    assert processes._warm is not None
    yield processes._warm
    processes.cool_down()


def module(tmp_path: Path, name: str, *arguments: str) -> list[str]:
    """Return a command of the engine that runs a module of this test."""
    places = CodePlaces(last=(tmp_path,))
    return processes.module_command(*places.start(name), *arguments)


def test_a_warm_run_gives_what_one_of_its_own_gives(
    warm: processes.WarmPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for code in (3, 0):
        env = processes.clean_environment() | {"SAID": f"said {code}"}
        done = run(module(tmp_path, "says", str(code)), timeout_s=60, env=env)
        seen = f"['{code}'] {tmp_path} said {code} True {warm.pid}\n"
        assert (done.code, done.output, done.errors) == (code, seen, "complaint\n")
    done = run(python("import os; print(os.environ.get('LEFT_BEHIND'), os.getppid())"), timeout_s=60)
    assert done.output == f"None {os.getpid()}\n"  # not the engine's: a child of its own


def test_a_warm_run_that_takes_too_long_is_ended_and_the_next_is_cold(
    warm: processes.WarmPython, tmp_path: Path
) -> None:
    assert run(module(tmp_path, "says", "0"), timeout_s=60).code == 0  # so that it is ready
    with pytest.raises(ChildError) as caught:
        run(module(tmp_path, "waits"), timeout_s=0.5)
    assert caught.value.timed_out
    assert warm.ended()
    assert f"False {os.getpid()}\n" in run(module(tmp_path, "says", "0"), timeout_s=60).output


def test_code_that_goes_before_what_is_installed_takes_a_child_of_its_own(
    warm: processes.WarmPython, tmp_path: Path
) -> None:
    command = processes.module_command(*CodePlaces(first=(tmp_path,)).start("says"), "0")
    assert f"False {os.getpid()}\n" in run(command, timeout_s=60).output
    with (tmp_path / "log.txt").open("wb") as log:
        child = processes.start(command, warm.environment, log)
    child.end()
    assert child.stdin is not None
    child.stdin.close()
    assert child is not warm


def test_where_a_fork_lost_the_gpu_a_child_of_its_own_runs(
    warm: processes.WarmPython, tmp_path: Path
) -> None:
    (tmp_path / "lost.py").write_text(
        f"import sys; sys.exit({processes.WARM_NO_FORK} if 'torch' in sys.modules else 7)"
    )
    assert run(module(tmp_path, "lost"), timeout_s=60).code == 7
    assert warm.ended()


def test_one_that_could_not_import_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "says.py").write_text(SAYS)
    processes.warm_up(tmp_path)
    assert f"False {os.getpid()}\n" in run(module(tmp_path, "says", "0"), timeout_s=60).output
    processes.cool_down()


def test_a_warm_one_becomes_the_child_and_ends_with_its_parent(
    warm: processes.WarmPython, tmp_path: Path
) -> None:
    env = {**warm.environment, "WANDB_API_KEY": "k", "MAPSAGE_SUPERVISOR": "1"}
    with (tmp_path / "log.txt").open("wb") as log:
        child = processes.start(module(tmp_path, "waits", "for-the-end"), env, log)
    assert child is warm
    wait_for(lambda: (tmp_path / "log.txt").read_text() == f"{warm.pid}\n")
    assert child.stdin is not None
    child.stdin.close()
    assert child.ends_within(30.0)
    assert child.wait() == 0


@pytest.mark.parametrize(
    "more", [{"CUDA_VISIBLE_DEVICES": "1"}, {"OMP_NUM_THREADS": "7"}, {"LD_PRELOAD": "x"}]
)
def test_what_imports_read_in_another_environment_takes_a_child_of_its_own(
    more: dict[str, str], warm: processes.WarmPython, tmp_path: Path
) -> None:
    with (tmp_path / "log.txt").open("wb") as log:
        child = processes.start(module(tmp_path, "waits"), {**warm.environment, **more}, log)
    assert child.stdin is not None
    child.stdin.close()
    child.end()
    assert child is not warm
    assert warm.ended()
