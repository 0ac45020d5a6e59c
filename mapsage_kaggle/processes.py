"""Processes: how they are started, looked at and ended."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

POLL_S = 0.1


def child_environment(
    *,
    threads: int,
    import_paths: Sequence[Path],
    scratch: Path,
    gpus: bool,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of a child that loads torch.

    Args:
        threads: Of its numerical libraries.
        import_paths: Folders that must be importable, first ones first.
        scratch: For what libraries cache, which must not go into the user's home.
        gpus: Whether it may see them.
        environ: What to start from; by default this process's own.
    """
    env = dict(os.environ if environ is None else environ)
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    paths = [str(path) for path in import_paths]
    env["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [env.get("PYTHONPATH")])])
    env["PYTHONUNBUFFERED"] = "1"
    env["MPLBACKEND"] = "Agg"
    env["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    env["TORCH_HOME"] = str(scratch / "torch")
    env.setdefault("XDG_CACHE_HOME", str(scratch / "cache"))
    if not gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def outlive(pid: int, patience_s: float) -> None:
    """Wait until a worker is gone; kill it, and what it started, when it takes too long."""
    for seconds in (patience_s, 10.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not alive(pid):
                return
            time.sleep(POLL_S)
        signal_group(pid, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)  # it need not lead a group


def descendants(pid: int) -> set[int]:
    """Return the processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        children.setdefault(int(parent), []).append(int(folder.name))
    found, waiting = set[int](), [pid]
    while waiting:
        started = children.get(waiting.pop(), [])
        found.update(started)
        waiting += started
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def process_start_s(pid: int | Literal["self"] = "self", *, proc: Path = Path("/proc")) -> float | None:
    """Return when a process started, in :func:`boot_time_s` seconds; None where that cannot be read.

    Source: field 22 of ``/proc/<pid>/stat``, in clock ticks since boot (``man 5 proc``).
    """
    try:
        stat = (proc / str(pid) / "stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return how many processes the kernel has killed so far because memory had run out.

    Of this process's memory cgroup, which is the container's on Kaggle; where that does not count, of
    the machine. None where neither is to be read.

    Source: ``oom_kill`` in ``memory.events`` (Linux, admin-guide/cgroup-v2), in ``memory.oom_control``
    (cgroup-v1/memory), and in ``/proc/vmstat``.
    """
    for file in (*_memory_accounts(root), root / "proc/vmstat"):
        try:
            found = re.search(r"^oom_kill (\d+)$", file.read_text(encoding="ascii"), re.MULTILINE)
        except OSError:
            continue
        if found is not None:
            return int(found[1])
    return None


def _memory_accounts(root: Path) -> Iterator[Path]:
    """Yield the files that may count for this process's cgroup, and for the one that is mounted on top."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        yield mount / place.lstrip("/") / name
        yield mount / name  # in a container the mount may be its own cgroup
