"""What this machine is, and whether a session can run on it.

:func:`survey` looks, within bounded time and without importing torch; :func:`preflight` judges what
was seen, and is pure.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mapsage_kaggle.kit import kit_commit, kit_files, kit_sha256, own_home
from mapsage_kaggle.paths import FULL, KagglePaths, on_kaggle
from mapsage_kaggle.processes import ChildError, command_of, has_gpu_device, in_background, run, run_for_json

STACK: Mapping[str, str] = {
    "onedl-mmengine": "0.10.12",
    "onedl-mmcv": "2.3.6",
    "onedl-mmsegmentation": "1.4.2",
}
"""The distributions that the engine is written against, and the versions it was tried with."""

UPSTREAM: Mapping[str, str] = {
    "mmengine": "mmengine",
    "mmengine-lite": "mmengine",
    "mmcv": "mmcv",
    "mmcv-full": "mmcv",
    "mmcv-lite": "mmcv",
    "mmsegmentation": "mmseg",
}
"""Other distributions of the same import names; whichever was installed last wins."""

RunType = Literal["batch", "interactive"]

_GROUPS = {"datasets": 2, "notebooks": 2, "models": 5, "competitions": 1}
"""Folders of the newer input layout, and how many levels below them a source lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One CUDA device.

    Attributes:
        memory_bytes: All of its memory.
        capability: Compute capability, such as ``(7, 5)``; None where only the driver was asked.
        supported: Whether this torch has kernels for it; None where torch could not be asked.
    """

    name: str
    memory_bytes: int
    capability: tuple[int, int] | None = None
    supported: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was seen of the machine.

    Attributes:
        on_kaggle: Kaggle itself, not a stand-in for its folders.
        run_type: ``batch`` where nobody can press a button.
        torch: Version, or None where it is not installed or cannot be imported.
        torch_problem: Why torch could not be asked; empty where it could.
        cudnn: Version, such as 91002; None without a GPU.
        num_cpus: Cores that this process may use.
        ram_bytes: Memory that this process may use.
        internet: Whether a public name resolves.
        working_free_bytes: Free space where the output goes; None where that cannot be read.
        temp_free_bytes: Free space of the scratch folder; None where that cannot be read.
        shared_bytes: What data workers may hand over in ``/dev/shm``; None where that cannot be read.
        working_problem: Why nothing can be written to the output; empty where it can.
        working_is_full: Whether that is for want of room.
        working_used_bytes: What the output holds already.
        working_num_files: How many files the output holds already.
        inputs: The sources attached, in either layout.
        installed: Version of each distribution of the stack, ours or upstream's, that is installed.
    """

    on_kaggle: bool
    run_type: RunType
    python: str
    torch: str | None = None
    torch_problem: str = ""
    cudnn: int | None = None
    gpus: tuple[Gpu, ...] = ()
    num_cpus: int
    ram_bytes: int
    internet: bool = False
    working_free_bytes: int | None = None
    temp_free_bytes: int | None = None
    shared_bytes: int | None = None
    working_problem: str = ""
    working_is_full: bool = False
    working_used_bytes: int = 0
    working_num_files: int = 0
    inputs: tuple[Path, ...] = ()
    installed: Mapping[str, str] = field(default_factory=dict)


def run_type(environ: Mapping[str, str] | None = None, *, in_kernel: bool | None = None) -> RunType:
    """Return whether somebody can press a button while a cell runs.

    Kaggle says so itself. Elsewhere it takes a Jupyter kernel with a front end: a notebook server
    names its session in the kernel's environment, and papermill and nbconvert start kernels
    without one. When in doubt it is ``batch``, which only means that training blocks its cell.
    """
    environ = os.environ if environ is None else environ
    stated_kind = environ.get("KAGGLE_KERNEL_RUN_TYPE", "").lower()
    if stated_kind:
        return "interactive" if stated_kind == "interactive" else "batch"
    if in_kernel is None:
        in_kernel = "ipykernel.kernelapp" in sys.modules
    if not in_kernel or _started_by_a_runner(environ.get("JPY_PARENT_PID", "")):
        return "batch"
    has_front_end = "JPY_SESSION_NAME" in environ or any(
        name.startswith(("COLAB_", "VSCODE_")) for name in environ
    )
    return "interactive" if has_front_end else "batch"


def _started_by_a_runner(pid: str) -> bool:
    """Tell whether a kernel's parent is papermill or nbconvert.

    A notebook that calls papermill hands its own session's name down in the environment.
    """
    command = command_of(int(pid)) if pid.isdigit() else ""
    return any(word in command for word in ("papermill", "nbconvert", "nbclient"))


def has_kernels_for(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    """Tell whether a torch built for ``archs`` can run on a device of the given compute capability.

    A binary (``sm_75``) runs on its own major version from its minor upwards; PTX (``compute_90``)
    on everything newer, too; a suffix as in ``sm_90a`` binds it to that one device. Source: CUDA C++
    Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch)
        if not match:
            continue
        kind, major, minor, suffix = match[1], int(match[2]), int(match[3]), match[4]
        if suffix:
            if capability == (major, minor):
                return True
        elif kind == "compute":
            if capability >= (major, minor):
                return True
        elif capability[0] == major and capability[1] >= minor:
            return True
    return False


def attached(folder: Path) -> Iterator[Path]:
    """Yield the sources attached below Kaggle's input folder, in either of its two layouts.

    What cannot be listed is left out: a mount can be missing for a while after it was attached.
    """
    for top in subfolders(folder):
        levels = _GROUPS.get(top.name, 0)
        below = subfolders(top) if levels else []
        # A source of the older layout may be called "models", too: it then has files at its top.
        if not below:
            yield top
            continue
        for _ in range(levels - 1):
            below = [deeper for path in below for deeper in subfolders(path)]
        yield from below


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder by name; one that cannot be listed has none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def survey(
    paths: KagglePaths,
    *,
    work_dir: Path | None = None,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = 90.0,
    ask: bool = True,
) -> Machine:
    """Look at this machine.

    torch is asked in a process of its own: importing it here would take the memory of a CUDA context, and a
    broken installation must not take the caller along. A cold start on Kaggle takes up to half a minute.
    Without ``ask`` it is asked only where there may be a GPU: nothing else of it is of use.
    """
    environ = os.environ if environ is None else environ
    output = paths.working if work_dir is None else work_dir
    # In the background: without a network that can take half a minute.
    lookup = in_background(lambda: socket.getaddrinfo("www.kaggle.com", None))
    torch: str | None
    if ask or has_gpu_device():
        torch, torch_problem, gpus, cudnn = ask_torch(timeout_s=timeout_s)
    else:
        torch, torch_problem, gpus, cudnn = _installed(("torch",)).get("torch"), "", (), None
    if not gpus:
        gpus = ask_driver()
    used_bytes, num_files = contents(paths.working)
    problem, is_full = write_problem(output)
    futures.wait([lookup], timeout=3.0)
    return Machine(
        on_kaggle=on_kaggle(environ),
        run_type=run_type(environ),
        python=platform.python_version(),
        torch=torch,
        torch_problem=torch_problem,
        cudnn=cudnn,
        gpus=gpus,
        num_cpus=len(os.sched_getaffinity(0)),
        ram_bytes=ram_bytes(),
        internet=lookup.done() and lookup.exception() is None,
        working_free_bytes=_free_bytes(output),
        temp_free_bytes=_free_bytes(paths.temp),
        shared_bytes=_free_bytes(Path("/dev/shm")),
        working_problem=problem,
        working_is_full=is_full,
        working_used_bytes=used_bytes,
        working_num_files=num_files,
        inputs=tuple(attached(paths.input)),
        installed=installed_stack(),
    )


def installed_stack() -> dict[str, str]:
    return _installed((*STACK, *UPSTREAM))


def _installed(names: Iterable[str]) -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


_COMPUTES = (
    "numpy", "Pillow", "scipy", "scikit-image", "opencv-python", "opencv-python-headless",
    "opencv-contrib-python", "torchvision", "timm", "albumentations", "imgaug", "kornia",
)  # fmt: skip
"""Distributions that a pipeline or a model may compute with, beside torch and the stack."""


def versions_of(machine: Machine) -> dict[str, str]:
    """Return the kit, as its commit where it is a checkout and by a hash of its files, and what computes."""
    home = own_home()
    commit = kit_commit(home)
    return {
        "kit": kit_sha256(kit_files(home)),
        **({"kit_commit": commit} if commit else {}),
        "python": machine.python,
        **({"torch": machine.torch} if machine.torch else {}),
        **_installed((*STACK, *UPSTREAM, *_COMPUTES)),
    }


def ask_torch(
    python: str = sys.executable, *, timeout_s: float = 90.0
) -> tuple[str | None, str, tuple[Gpu, ...], int | None]:
    """Return torch's version, why it could not be asked (empty if it could), CUDA devices, and cuDNN."""
    try:
        found = run_for_json([python, "-m", "mapsage_kaggle.engine.devices"], timeout_s=timeout_s)
    except ChildError as error:
        if error.timed_out:
            return None, f"importing torch and asking for GPUs took more than {timeout_s:.0f} s", (), None
        return None, error.last_word, (), None
    gpus = tuple(
        Gpu(
            name=name,
            memory_bytes=memory,
            capability=(major, minor),
            supported=has_kernels_for((major, minor), found["archs"]),
        )
        for name, memory, major, minor in found["gpus"]
    )
    return found["torch"], "", gpus, found["cudnn"]


def ask_driver() -> tuple[Gpu, ...]:
    return parse_driver(_query_driver("name,memory.total"))


def parse_driver(listing: str) -> tuple[Gpu, ...]:
    """Return the devices of ``nvidia-smi``'s lines ``name, MiB``; other lines are left out."""
    gpus = []
    for line in listing.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if name and mebibytes.strip().isdigit():
            gpus.append(Gpu(name=name.strip(), memory_bytes=int(mebibytes) * 2**20))
    return tuple(gpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuLoad:
    """What one GPU is at.

    Attributes:
        used_bytes: Of its memory, by every process.
        total_bytes: All of its memory.
        busy: The share of the last moment in which it computed, 0 to 1; None where that is not told.
    """

    used_bytes: int
    total_bytes: int
    busy: float | None = None


class GpuGauge:
    """Asks the driver what the GPUs are at, now and then, in a thread of its own.

    The answer comes from a process that is started for each question.
    """

    def __init__(self, *, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._loads: tuple[GpuLoad, ...] = ()
        self._asked_at = -math.inf
        self._asking: futures.Future[None] | None = None

    def __call__(self) -> tuple[GpuLoad, ...]:
        """Return the last answer at once; it is some seconds old, and empty at first."""
        is_due = time.monotonic() - self._asked_at >= self._every_s
        if is_due and (self._asking is None or self._asking.done()):
            self._asked_at = time.monotonic()
            self._asking = in_background(self._ask)
        return self._loads

    def _ask(self) -> None:
        self._loads = ask_load()


def ask_load() -> tuple[GpuLoad, ...]:
    return parse_load(_query_driver("memory.used,memory.total,utilization.gpu"))


def parse_load(listing: str) -> tuple[GpuLoad, ...]:
    """Return the loads in ``nvidia-smi``'s lines ``MiB, MiB, percent``; other lines are left out."""
    loads = []
    for line in listing.splitlines():
        used, total, busy = ([part.strip() for part in line.split(",")] + ["", "", ""])[:3]
        if used.isdigit() and total.isdigit():
            share = int(busy) / 100 if busy.isdigit() else None
            loads.append(GpuLoad(used_bytes=int(used) * 2**20, total_bytes=int(total) * 2**20, busy=share))
    return tuple(loads)


def _query_driver(names: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, f"--query-gpu={names}", "--format=csv,noheader,nounits"]
    try:
        answer = run(command, timeout_s=15.0)
    except (ChildError, OSError):
        return ""
    return answer.output if answer.code == 0 else ""


def write_problem(folder: Path) -> tuple[str, bool]:
    """Return why nothing can be written to ``folder``, and whether for want of room; empty if it can be.

    Tried, not read from mode bits: a read-only mount and a full disk do not show in those. A folder
    that does not exist yet is judged by the nearest one above it.
    """
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return f"{place}: {error.strerror or error}", error.errno in FULL
    return "", False


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None


def contents(folder: Path) -> tuple[int, int]:
    used_bytes = num_files = 0
    for place, _, names in os.walk(folder):
        for name in names:
            num_files += 1
            try:
                used_bytes += (Path(place) / name).lstat().st_size
            except OSError:
                continue
    return used_bytes, num_files


def return_freed_memory() -> None:
    """Return memory that the C library has freed, but still holds, to the system.

    glibc keeps an arena for each thread: what one thread has freed, another does not reuse.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that are freed, for what is asked for next.

    Otherwise each comes anew from the system, which clears it page by page: a sixth of the time of a forward
    pass on a CPU.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_MMAP_MAX, 0)
        option(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""glibc's numbers of these options."""


def ram_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's if less."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((Path("/sys/fs/cgroup") / name).read_text())
        except (OSError, ValueError):
            continue
        ram = min(ram, limit)
    return ram
