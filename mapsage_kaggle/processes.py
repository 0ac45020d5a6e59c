"""Processes: how they are started, told apart, and ended with all that they have started.

A number is given to another process once its owner is gone. So a process is a :class:`ProcessId`, its
number and when it started; and a child of this process is a :class:`Child`, whose number and group are
its own until it has been waited for.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

from mapsage_kaggle.kit import copy_kit, own_home
from mapsage_kaggle.paths import KagglePaths

if TYPE_CHECKING:
    import psutil

POLL_S = 0.1
_SHORT_POLL_S = 0.02
"""For children that may be done at once."""
SECRET_NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$)|_SECRETS?_", re.IGNORECASE)
"""Of environment variables that hold credentials: Kaggle's, trackers', clouds'."""

_MAX_WORDS = 15
"""Lines of what a child said last that its error quotes."""


_Result = TypeVar("_Result")


def in_background(work: Callable[[], _Result]) -> Future[_Result]:
    """Do something in a thread that this process does not wait for when it ends."""
    future: Future[_Result] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future


# -- any process


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, distinguished from others that get the same pid."""

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the process that has a pid now; None where none has."""
        started_s = process_start_s(pid)
        return None if started_s is None else cls(pid, started_s)

    @classmethod
    def stated(cls, data: Mapping[str, Any], key: str = "pid") -> ProcessId | None:
        """Return the process that an event states as ``key`` and ``<key>_started_s``, if it does."""
        pid, started_s = data.get(key), data.get(f"{key}_started_s")
        if not isinstance(pid, int) or not isinstance(started_s, float):
            return None
        return cls(pid, started_s)

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended and that nobody has waited for does not."""
        import psutil

        process = self._find()
        with suppress(psutil.NoSuchProcess):
            return process is not None and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; does nothing where it has ended, even if its pid was reused."""
        import psutil

        process = self._find()
        if process is not None:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.send_signal(number)

    def descendants(self) -> set[ProcessId]:
        """Return the processes that it has started, and those that they have."""
        import psutil

        process = self._find()
        with suppress(psutil.NoSuchProcess):
            below = process.children(recursive=True) if process is not None else []
            return {found for child in below if (found := ProcessId.of(child.pid)) is not None}
        return set()

    def _find(self) -> psutil.Process | None:
        import psutil

        try:
            process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None
        return process if process_start_s(self.pid) == self.started_s else None


def kill_trees(roots: Iterable[ProcessId]) -> None:
    """Kill processes and all that they have started; they are stopped first, so that they start no more."""
    found, waiting = set[ProcessId](), set(roots)
    while waiting:
        found |= waiting
        for process in waiting:
            process.signal(signal.SIGSTOP)
        waiting = {below for process in waiting for below in process.descendants()} - found
    for process in found:
        process.signal(signal.SIGKILL)


def outlive(process: ProcessId, patience_s: float) -> None:
    """Wait until a process is gone; kill it, and what it started, when it takes too long."""
    for seconds in (patience_s, 10.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not process.alive:
                return
            time.sleep(POLL_S)
        kill_trees([process])


def command_of(pid: int) -> str:
    """Return the command line of a process; empty where there is none to be read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


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


# -- children


def clean_environment(
    environ: Mapping[str, str] | None = None, *, passed: Collection[str] = (), credentials: bool = False
) -> dict[str, str]:
    """Return an environment for a child: without credentials, and with nothing attached to import.

    Of what is attached only the kit in use is importable, by a copy without what lies beside it: Python
    runs a ``sitecustomize`` of any folder that ``PYTHONPATH`` names.

    Args:
        environ: What to start from; by default this process's own.
        passed: Names that stay although they look like those of credentials.
        credentials: Whether all of these stay.
    """
    env = dict(os.environ if environ is None else environ)
    if not credentials:
        env = {name: value for name, value in env.items() if name in passed or not SECRET_NAMES.search(name)}
    paths = KagglePaths.from_environment(env)
    inputs = paths.input.resolve()
    home = own_home()
    if home.is_relative_to(inputs):
        home = copy_kit(home, paths.temp)
    kept = [
        place
        for place in env.get("PYTHONPATH", "").split(os.pathsep)
        if place and not Path(place).resolve().is_relative_to(inputs)
    ]
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(home), *kept]))
    return env


def child_environment(
    *,
    threads: int,
    scratch: Path,
    gpus: bool,
    passed: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of a child that loads torch.

    What libraries cache goes to ``scratch``, since it must not go into the user's home.
    """
    env = clean_environment(environ, passed=passed)
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    env["PYTHONUNBUFFERED"] = "1"
    env["MPLBACKEND"] = "Agg"
    env["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    env["TORCH_HOME"] = str(scratch / "torch")
    env.setdefault("XDG_CACHE_HOME", str(scratch / "cache"))
    if not gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(env):
        # Segments that grow leave no gaps that are too small for the next allocation.
        env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return env


class Child(subprocess.Popen[bytes]):
    """A child that leads a group of its own, so that a terminal's Ctrl-C reaches it through us alone.

    Its environment is :func:`clean_environment` by default, and its streams are closed.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        env = clean_environment() if env is None else env
        super().__init__(command, env=env, start_new_session=True, **{**streams, **options})

    def ended(self) -> bool:
        """Tell whether it has ended, without reaping it: until ``wait`` its pid is not reused."""
        if self.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody else in this process has waited for it
            self.wait()
            return True

    def ends_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() >= end:
                return False
            time.sleep(_SHORT_POLL_S)
        return True

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and to what it has started and left in its group."""
        if self.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def descendants(self) -> set[ProcessId]:
        found = ProcessId.of(self.pid) if self.returncode is None else None
        return found.descendants() if found is not None else set()

    def end(self, patience_s: float = 0.0) -> None:
        """Wait for its end for a while, then kill what is left of it and of all that it has started."""
        try:
            self.ends_within(patience_s)
        finally:
            if not self.ended():
                self.signal_group(signal.SIGSTOP)
                # pip may run where psutil is yet to be installed; of that, the group is all.
                with suppress(ModuleNotFoundError):
                    kill_trees(self.descendants())
            self.signal_group(signal.SIGKILL)
            self.wait()


def module_command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


class ChildError(Exception):
    """A child failed, or took too long.

    Attributes:
        code: Its exit code; None where it took too long and was ended.
        words: The last lines of its standard error, at most :data:`_MAX_WORDS`.
    """

    def __init__(self, code: int | None, words: Sequence[str]) -> None:
        super().__init__(code, words)
        self.code = code
        self.words = tuple(words)

    def __str__(self) -> str:
        end = "took too long" if self.code is None else f"exit code {self.code}"
        return "\n".join((end, *self.words))

    @property
    def timed_out(self) -> bool:
        return self.code is None

    @property
    def last_word(self) -> str:
        """The last line alone, which names an exception; its exit code where there is none."""
        return self.words[-1] if self.words else f"exit code {self.code}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A child that has ended by itself.

    Attributes:
        errors: What it printed on standard error; empty where that went to the output.
    """

    code: int
    output: str
    errors: str = ""


def run(
    command: Sequence[str],
    *,
    timeout_s: float | None,
    env: Mapping[str, str] | None = None,
    one_stream: bool = False,
) -> Finished:
    """Run a command to its end; it is ended with all that it has started by a time-out and by Ctrl-C.

    It is run by the interpreter that :func:`warm_up` has started, where there is one and it would do the
    same. With ``one_stream`` standard error goes to the output, in its order.

    Raises:
        ChildError: It took too long.
        OSError: There is no such program.
    """
    end = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    env = clean_environment() if env is None else env
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        streams = (output, output if one_stream else errors)
        try:
            code = _warm.run(command, env, streams, end) if _warm is not None else None
            if code is None:
                child = Child(command, env=env, stdout=streams[0], stderr=streams[1])
                try:
                    in_time = child.ends_within(end - time.monotonic())
                finally:
                    child.end()
                if not in_time:
                    raise TimeoutError
                code = child.returncode
        except TimeoutError:
            raise ChildError(None, _text(errors).strip().splitlines()[-_MAX_WORDS:]) from None
        return Finished(code=code, output=_text(output), errors=_text(errors))


def run_for_json(
    command: Sequence[str], *, timeout_s: float | None, env: Mapping[str, str] | None = None
) -> Any:
    """Run a command as :func:`run` does, and return the JSON document that is its last line.

    Raises:
        ChildError: It failed, took too long, or printed no such line.
    """
    finished = run(command, timeout_s=timeout_s, env=env)
    words = finished.errors.strip().splitlines()[-_MAX_WORDS:]
    lines = finished.output.strip().splitlines()
    if finished.code != 0 or not lines:
        raise ChildError(finished.code, words)
    try:
        return json.loads(lines[-1])
    except ValueError as error:
        raise ChildError(finished.code, [*words, f"no JSON document: {lines[-1][:200]!r}"]) from error


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", errors="replace")


# -- a child that is ready


WARM_NO_FORK = 203
"""The exit code of a fork that could not do what a child of its own can."""
_TORCHRUN = "torch.distributed.run"
_START = "mapsage_kaggle.engine.start"
_HOT = ("mapsage_kaggle.engine.", _TORCHRUN)
"""How the names of modules begin that gain by what is imported already."""
_LATE = re.compile("^MAPSAGE_SUPERVISOR|^GLOO_|^CUBLAS_|^WANDB_")
"""Environment variables that nothing reads when it is imported."""


class WarmPython(Child):
    """An interpreter that imports torch and the training stack while others still decide what to run.

    A session asks torch for GPUs, has a model built, and trains, each in a child; what they import takes
    most of its first minute. :mod:`mapsage_kaggle.engine.warm` imports it once.

    Attributes:
        environment: What it was started with.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self.environment = dict(env)
        self._control = ours
        self._turn = threading.Lock()
        with theirs:
            early = {**env, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # which begins nothing that a fork loses
            super().__init__(module_command("mapsage_kaggle.engine.warm"), env=early, stdin=theirs)

    def run(
        self, command: Sequence[str], env: Mapping[str, str], streams: tuple[IO[bytes], IO[bytes]], end: float
    ) -> int | None:
        """Run a command in a fork; return its exit code, or None where it takes a child of its own.

        Raises:
            TimeoutError: It has not ended at the time ``end``; nothing of it is left.
        """
        with self._turn:
            if not self._serves(command) or env.get("PYTHONPATH") != self.environment.get("PYTHONPATH"):
                return None
            answer = b""
            try:
                with suppress(ConnectionError):  # it has ended
                    self._send(command, env, streams, takes_over=False)
                    while not select.select([self._control], [], [], POLL_S)[0]:
                        if time.monotonic() >= end:
                            raise TimeoutError
                    answer = self._control.recv(64)
            except BaseException:
                self.end()
                raise
            if not answer or int(answer) == WARM_NO_FORK:
                self.end()
                return None
            return int(answer)

    def become(self, command: Sequence[str], env: Mapping[str, str], output: IO[bytes]) -> bool:
        """Make it the child that this command would start; tell whether it did.

        It does where the imports would have met the same environment; torchrun starts interpreters of its
        own. Its standard input goes on to end when this process does.
        """
        changed = {name for name, _ in env.items() ^ self.environment.items()}
        early = {name for name in changed if not (_LATE.search(name) or SECRET_NAMES.search(name))}
        with self._turn:
            if not self._serves(command) or (early and command[2] != _TORCHRUN):
                return False
            try:
                self._send(command, env, (output, output), takes_over=True)
            except OSError:
                return False
            self.stdin = os.fdopen(self._control.detach(), "wb", buffering=0)
        return True

    def end(self, patience_s: float = 0.0) -> None:
        super().end(patience_s)
        self._control.close()

    def _serves(self, command: Sequence[str]) -> bool:
        if self.ended() or command[0] != sys.executable or not command[2].startswith(_HOT):
            return False
        # Code that goes before what is installed must do so before anything is imported.
        return command[2] != _START or not json.loads(command[3])["first"]

    def _send(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        streams: tuple[IO[bytes], IO[bytes]],
        *,
        takes_over: bool,
    ) -> None:
        request = {"arguments": command[2:], "env": dict(env), "cwd": str(Path.cwd())}
        data = json.dumps({**request, "takes_over": takes_over}).encode() + b"\n"
        sent = socket.send_fds(self._control, [data], [stream.fileno() for stream in streams])
        self._control.sendall(data[sent:])


_warm: WarmPython | None = None


def has_gpu_device() -> bool:
    """Tell whether there may be a GPU, without a driver or torch being asked."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def warm_up(scratch: Path, *, threads: int | None = None) -> None:
    """Start the interpreter that :func:`run` and :func:`start` then make use of.

    Its environment is that of a training child: of one with as many threads as there are cores by default.
    """
    global _warm
    if _warm is None or _warm.ended():
        atexit.register(cool_down)
        threads = threads or len(os.sched_getaffinity(0))
        _warm = WarmPython(child_environment(threads=threads, scratch=scratch, gpus=has_gpu_device()))


def cool_down() -> None:
    """End the interpreter that was started, if it has not become a child."""
    global _warm
    warm, _warm = _warm, None
    if warm is not None:
        warm.end()


def start(command: Sequence[str], env: Mapping[str, str], output: IO[bytes]) -> Child:
    """Start a child whose output goes to one file, and whose standard input ends when this process does."""
    global _warm
    warm, _warm = _warm, None
    if warm is not None:
        if warm.become(command, env, output):
            return warm
        warm.end()
    return Child(command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)


# -- memory


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
