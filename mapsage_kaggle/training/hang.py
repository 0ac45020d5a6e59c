"""What a silent child was doing: the stacks of all its processes, and a sentence on its ranks.

On :data:`~mapsage_kaggle.spec.STACKS_SIGNAL` a rank and its data workers dump their stacks to standard error,
which is the log: by faulthandler, which works even where Python code does not run. They are asked one by one,
so that the log says whose each is. py-spy, where installed, dumps those that do not answer.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mapsage_kaggle.events import Event
from mapsage_kaggle.machine import ask_load
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.processes import ChildError, ProcessId, run
from mapsage_kaggle.spec import STACKS_SIGNAL

LEAST_S, MOST_S = 1.0, 30.0
"""How long a child is observed, at least and at most."""
ANSWER_S = 2.0
"""How long a process may take to write its stacks."""
MAX_PLACES = 8
"""The most ranks that the sentence covers."""
_FRAME = re.compile(r'^ +File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)
_FRAME_OF_PY_SPY = re.compile(r"^ +(?P<function>.+) \((?P<file>[^()]+):(?P<line>\d+)\)$", re.MULTILINE)
_LIBRARY = sysconfig.get_paths()["stdlib"]
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or a device",
    "T": "stopped",
    "Z": "ended",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    file: str
    line: int
    function: str

    @property
    def is_ours(self) -> bool:
        """Whether it is in neither the standard library nor torch, and so tells what was going on."""
        in_python = self.file.startswith(_LIBRARY) and "-packages" not in self.file
        return not (in_python or "/torch/" in self.file or self.file.startswith("<"))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Use:
    """CPU time and disk traffic of a process so far."""

    state: str
    cpu_s: float
    read_bytes: int
    written_bytes: int


def explain_silence(
    found: Sequence[ProcessId],
    ranks: Mapping[ProcessId, int],
    log: Path,
    *,
    last: Event | None,
    silent_s: float,
) -> str:
    """Write what a child's processes are doing to its log, and return a sentence on where its ranks are.

    ``found`` are the child's processes; ``ranks`` has the rank of each worker, among them or not.

    Raises:
        OSError: The log cannot be read.
    """
    begin = time.monotonic()
    others = sorted(set(found) - ranks.keys(), key=lambda process: process.pid)
    processes = [*sorted(ranks, key=lambda process: ranks[process]), *others]
    before = {process: _use_of(process.pid) for process in processes}
    told = f"{last.event} at iteration {last.iteration}" if last is not None else "none"
    _write(log, f"== Nothing was heard for {silent_s:.0f} s; the last event: {told} ==", *_devices())
    frames: dict[ProcessId, list[_Frame]] = {}
    for process in processes:
        name = (
            f"rank {ranks[process]}, process {process.pid}" if process in ranks else f"process {process.pid}"
        )
        _write(log, f"== {name} ==")
        if time.monotonic() - begin < MOST_S:
            frames[process] = _stack_of(process, log)
    time.sleep(max(0.0, LEAST_S - (time.monotonic() - begin)))
    seconds = time.monotonic() - begin
    uses = {process: _use_of(process.pid) for process in processes}
    lines = [f"== What they did in {seconds:.1f} s =="]
    lines += [_used(process, before[process], uses[process]) for process in processes]
    _write(log, *lines)
    places = [
        _place(rank, frames.get(process, []), uses[process], list(frames.values()))
        for process, rank in sorted(ranks.items(), key=lambda item: item[1])[:MAX_PLACES]
    ]
    if not places:
        return Message("No rank had begun. The stacks of all its processes are in {path}.", log.name)
    return Message(
        "{places}. The stacks of all its processes are in {path}.", joined_by("; ", places), log.name
    )


def _place(rank: int, stack: Sequence[_Frame], use: _Use | None, others: Sequence[Sequence[_Frame]]) -> str:
    """Return where a rank is, and what it waits for as far as the stack shows."""
    if not stack:
        state = _STATES.get(use.state, use.state) if use is not None else "ended"
        return Message("rank {rank} did not answer ({state})", rank, state)
    place = _text(stack)
    if any("/torch/distributed/" in frame.file for frame in stack[:6]):
        return Message("rank {rank} waited for other ranks in {place}", rank, place)
    if any(frame.file.endswith("/torch/utils/data/dataloader.py") for frame in stack[:12]):
        loading = [_text(other) for other in others if _is_loading(other)]
        if loading:
            return Message("rank {rank} waited for data, and a data worker was in {place}", rank, loading[0])
        return Message("rank {rank} waited for data in {place}", rank, place)
    return Message("rank {rank} was in {place}", rank, place)


def _is_loading(stack: Sequence[_Frame]) -> bool:
    """Tell whether a process is a data worker that is loading a sample."""
    worker = next((index for index, frame in enumerate(stack) if frame.function == "_worker_loop"), 0)
    return any(frame.is_ours for frame in stack[:worker])


def _text(stack: Sequence[_Frame]) -> str:
    frame = next((frame for frame in stack if frame.is_ours), stack[0])
    return f"{frame.function} ({Path(frame.file).name}:{frame.line})"


def _stack_of(process: ProcessId, log: Path) -> list[_Frame]:
    """Have a process dump its stacks to the log; return its main thread's, innermost frame first."""
    if _answers(process.pid):
        begin, text = log.stat().st_size, ""
        process.signal(STACKS_SIGNAL)
        end = time.monotonic() + ANSWER_S
        while time.monotonic() < end:
            time.sleep(0.1)
            before, text = text, _read_from(log, begin)
            if text and text == before:
                break
        # faulthandler dumps the newest thread first.
        blocks = [
            block for block in re.split(r"^(?:Current thread|Thread) 0x", text, flags=re.MULTILINE) if block
        ]
        found = [_frames(_FRAME, block) for block in blocks]
        if any(found):
            return [stack for stack in found if stack][-1]
    program = shutil.which("py-spy")
    if program is None:
        return []
    try:
        answer = run([program, "dump", "--pid", str(process.pid)], timeout_s=5.0)
    except (ChildError, OSError) as error:
        _write(log, f"py-spy: {error}")
        return []
    _write(log, answer.output + answer.errors)
    main = answer.output.rpartition('"MainThread"')[2].partition("\nThread ")[0]
    return _frames(_FRAME_OF_PY_SPY, main)


def _frames(pattern: re.Pattern[str], text: str) -> list[_Frame]:
    return [
        _Frame(file=found["file"], line=int(found["line"]), function=found["function"])
        for found in pattern.finditer(text)
    ]


def _answers(pid: int) -> bool:
    """Tell whether a process handles the signal, which would kill it otherwise."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) & 1 << (STACKS_SIGNAL - 1))


def _use_of(pid: int) -> _Use | None:
    """Return a process's use so far; None where it has ended. Source: ``man 5 proc``."""
    folder = Path(f"/proc/{pid}")
    moved: dict[str, int] = {}
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        with suppress(PermissionError):
            moved = {
                name: int(number)
                for name, number in re.findall(r"^(\w+): (\d+)$", (folder / "io").read_text(), re.MULTILINE)
            }
    except (OSError, ValueError, IndexError):
        return None
    return _Use(
        state=fields[0],
        cpu_s=cpu_s,
        read_bytes=moved.get("read_bytes", 0),
        written_bytes=moved.get("write_bytes", 0),
    )


def _used(process: ProcessId, before: _Use | None, after: _Use | None) -> str:
    if before is None or after is None:
        return f"process {process.pid}: ended"
    return (
        f"process {process.pid}: {_STATES.get(after.state, after.state)}, "
        f"{after.cpu_s - before.cpu_s:.2f} s on the CPU, disk: {after.read_bytes - before.read_bytes} bytes "
        f"read, {after.written_bytes - before.written_bytes} written"
    )


def _devices() -> list[str]:
    """Return a line on each GPU's load, and one on free shared memory."""
    lines = []
    for index, load in enumerate(ask_load()):
        busy = "?" if load.busy is None else f"{100 * load.busy:.0f}"
        lines.append(
            f"GPU {index}: {busy} % busy, {load.used_bytes / 1e9:.1f} of {load.total_bytes / 1e9:.1f} GB used"
        )
    with suppress(OSError):
        shared = shutil.disk_usage("/dev/shm")
        lines.append(f"/dev/shm: {shared.free / 1e6:.0f} of {shared.total / 1e6:.0f} MB free")
    return lines


def _write(log: Path, *lines: str) -> None:
    with suppress(OSError), log.open("a", encoding="utf-8") as stream:  # a full disk, say
        stream.write("\n".join(lines) + "\n")


def _read_from(log: Path, begin: int) -> str:
    with log.open("rb") as stream:
        stream.seek(begin)
        return stream.read(1 << 20).decode("utf-8", "replace")
