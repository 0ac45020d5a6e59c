"""What is told of a child that says nothing: where its ranks are, and whom they wait for."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapsage_kaggle.events import Event
from mapsage_kaggle.processes import ProcessId
from mapsage_kaggle.training import hang
from mapsage_kaggle.training.hang import explain_silence

ANSWERS = "import faulthandler\nimport signal\nfaulthandler.register(signal.SIGUSR1)\n"
TORCH = "/x/site-packages/torch"
LAST = Event(event="iteration", iteration=7)


class Process:
    """A process that runs a file of Python code, its standard error in a log."""

    def __init__(self, folder: Path, name: str, code: str) -> None:
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        ready = folder / f"{file.stem}-ready"
        file.write_text(f"{code.replace('READY()', f'open({str(ready)!r}, chr(119))')}\n")
        with (folder / "train.log").open("ab") as log:
            self.popen = subprocess.Popen([sys.executable, str(file)], stderr=log)
        end = time.monotonic() + 60.0
        while not ready.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        found = ProcessId.of(self.popen.pid)
        assert found is not None
        self.id = found


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.popen.kill()
        process.popen.wait()


def explained(folder: Path, *ranks: Process, others: tuple[Process, ...] = ()) -> str:
    found = {process.id: rank for rank, process in enumerate(ranks)}
    return explain_silence(
        [process.id for process in (*ranks, *others)], found, folder / "train.log", last=LAST, silent_s=12.0
    )


HANGS = ANSWERS + "import time\ndef reads_the_disk():\n    READY()\n    time.sleep(60)\nreads_the_disk()"


def test_the_sentence_names_each_rank_and_where_it_was(tmp_path: Path, started: list[Process]) -> None:
    started += [Process(tmp_path, "first", HANGS), Process(tmp_path, "second", HANGS)]
    told = explained(tmp_path, *started)
    assert told == (
        "rank 0 was in reads_the_disk (first.py:7); rank 1 was in reads_the_disk (second.py:7). "
        "The stacks of all its processes are in train.log."
    )


def test_the_log_has_the_stack_of_each_process_below_its_name(tmp_path: Path, started: list[Process]) -> None:
    started.append(Process(tmp_path, "first", HANGS))
    explained(tmp_path, *started)
    log = (tmp_path / "train.log").read_text()
    pid = started[0].id.pid
    assert "== Nothing was heard for 12 s; the last event: iteration at iteration 7 ==" in log
    assert "/dev/shm: " in log
    assert log.index(f"== rank 0, process {pid} ==") < log.index("in reads_the_disk")
    did = rf"process {pid}: sleeping, 0\.\d\d s on the CPU, disk: \d+ bytes read, \d+ written"
    assert re.search(did, log)


def test_a_process_that_the_signal_would_end_is_left_alone(tmp_path: Path, started: list[Process]) -> None:
    deaf = HANGS.removeprefix(ANSWERS)
    started.append(Process(tmp_path, "deaf", deaf))
    assert explained(tmp_path, *started).startswith("rank 0 did not answer (sleeping).")
    assert started[0].popen.poll() is None


def test_py_spy_is_asked_for_what_does_not_answer(
    tmp_path: Path, started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = 'Process 7\nThread 7 (idle): "MainThread"\n    step (own.py:3)\n    <module> (own.py:9)'
    program = tmp_path / "bin" / "py-spy"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{dump}\nEND\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    started.append(Process(tmp_path, "deaf", HANGS.removeprefix(ANSWERS)))
    assert explained(tmp_path, *started).startswith("rank 0 was in step (own.py:3).")
    assert dump in (tmp_path / "train.log").read_text()


def test_of_a_child_whose_ranks_are_not_known_the_log_tells_all_the_same(
    tmp_path: Path, started: list[Process]
) -> None:
    started.append(Process(tmp_path, "helper", HANGS))
    assert explained(tmp_path, others=tuple(started)).startswith("No rank had begun. ")
    assert "in reads_the_disk" in (tmp_path / "train.log").read_text()


def frames(*lines: str) -> list[hang._Frame]:
    return hang._frames(hang._FRAME, "".join(f'  File "{line}\n' for line in lines))


OWN = '/code/own.py", line 3 in step'


def test_a_rank_in_a_collective_is_told_to_wait_for_the_others() -> None:
    stack = frames(f'{TORCH}/distributed/distributed_c10d.py", line 9 in all_reduce', OWN)
    assert hang._place(1, stack, None, []) == "rank 1 waited for other ranks in step (own.py:3)"


def test_a_rank_that_waits_for_data_names_the_data_worker_that_is_busy() -> None:
    loader = f'{TORCH}/utils/data/dataloader.py", line 5 in _try_get_data'
    loop = f'{TORCH}/utils/data/_utils/worker.py", line 349 in _worker_loop'
    idle = frames('/usr/lib/queues.py", line 1 in get', loop)
    idle[0] = hang._Frame(file=f"{hang._LIBRARY}/queues.py", line=1, function="get")
    busy = frames('/code/transforms.py", line 8 in transform', loop)
    waits = frames(loader, OWN)
    assert hang._place(0, waits, None, [waits, idle]) == "rank 0 waited for data in step (own.py:3)"
    assert hang._place(0, waits, None, [waits, idle, busy]) == (
        "rank 0 waited for data, and a data worker was in transform (transforms.py:8)"
    )
