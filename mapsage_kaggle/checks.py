"""What this machine's facts mean for a session: the rows of preflight."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mapsage_kaggle.clock import SessionClock, format_duration
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.machine import STACK, UPSTREAM, Machine
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.pace import GPU_QUOTA_S, week_start_s
from mapsage_kaggle.paths import ROOT_VARIABLE, KagglePaths

MIN_PYTHON = (3, 10)
MAX_PYTHON = (3, 13)
MIN_TORCH = (2, 6)
OUTPUT_BYTES = 20 * 10**9
"""``/kaggle/working`` holds 20 GB at most."""
OUTPUT_FILES = 400
"""Kaggle cuts an output of more than 500 files in silence; the kit stays well below."""
NEEDED_BYTES = 2 * 10**9
"""Three checkpoints of MiT-B2 with its optimizer, and one more while it is written."""
SHORT_SESSION_S = 30 * 60.0

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One verdict of the preflight.

    Attributes:
        name: A short, stable word.
        level: ``error`` stops training, ``warning`` does not.
        message: What was found, what it means, and what to do.
    """

    name: str
    level: Level
    message: str

    @property
    def ok(self) -> bool:
        """Whether this is as it should be."""
        return self.level == "info"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "level": self.level, "message": self.message}


def preflight(
    paths: KagglePaths, machine: Machine, *, clock: SessionClock | None = None
) -> tuple[Check, ...]:
    """Judge what was seen. Pure, apart from the clock.

    Without a clock, time is not judged.
    """
    found = {
        "python": _python(machine),
        "torch": _torch(machine),
        "stack": _stack(machine),
        "gpu": _gpu(machine),
        "internet": _internet(machine),
        "inputs": _inputs(paths, machine),
        "working": _working(machine),
        "disk": _disk(machine),
        "output": _output(machine),
    }
    if clock is not None:
        if machine.on_kaggle and machine.gpus:
            found["quota"] = _quota(clock, time.time())
        found["clock"] = _clock(clock)
    return tuple(Check(name=name, level=level, message=message) for name, (level, message) in found.items())


def require(checks: Sequence[Check]) -> None:
    """Let a session go on, unless a check failed for good.

    Raises:
        MachineError: At least one check of level ``error`` failed; the message has all of those.
    """
    failed = [
        joined_by(": ", (Message(check.name), check.message)) for check in checks if check.level == "error"
    ]
    if failed:
        raise MachineError(Message("This machine cannot run the session. {checks}", joined_by(" ", failed)))


def to_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the document of ``doctor``; ``ok`` is false only where an error stops training."""
    return {
        "ok": all(check.level != "error" for check in checks),
        "checks": [check.to_json() for check in checks],
    }


def stack_conflicts(installed: Mapping[str, str]) -> tuple[str, ...]:
    """Return upstream's distributions that stand in the way of ours, as ``name version``."""
    return tuple(f"{name} {installed[name]}" for name in UPSTREAM if name in installed)


def conflict_remedy(installed: Mapping[str, str]) -> str:
    """Return how to get upstream's distributions out of the way.

    Ours go too where they are: their files lie in the same folders and are removed along.
    """
    names = [name for name in (*UPSTREAM, *STACK) if name in installed]
    return Message(
        "Run `pip uninstall -y {names}`, then install again, then restart the kernel.", " ".join(names)
    )


_Found = tuple[Level, str]


def _python(machine: Machine) -> _Found:
    version = _release(machine.python)
    if MIN_PYTHON <= version <= MAX_PYTHON:
        return "info", Message("Python {version}.", machine.python)
    return "error" if version < MIN_PYTHON else "warning", Message(
        "Python {version}; the kit was tried with {least} to {most}. Choose an environment "
        "that has one of those.",
        machine.python,
        _dotted(MIN_PYTHON),
        _dotted(MAX_PYTHON),
    )


def _torch(machine: Machine) -> _Found:
    if machine.torch is None:
        return "error", Message(
            "torch cannot be imported ({why}). On Kaggle, choose a notebook environment that has "
            "it; elsewhere, `pip install torch`.",
            machine.torch_problem or "not installed",
        )
    if _release(machine.torch) < MIN_TORCH:
        return "error", Message(
            "torch {version} is older than {least}, the first that loads checkpoints safely. "
            "Choose a newer notebook environment, or `pip install --upgrade torch`.",
            machine.torch,
            _dotted(MIN_TORCH),
        )
    return "info", Message("torch {version}.", machine.torch)


def stack_problem(installed: Mapping[str, str]) -> str:
    """Return why training cannot import what it needs; empty where it can."""
    conflicts = stack_conflicts(installed)
    if conflicts:
        return Message(
            "{names}: upstream packages with the same import names as the kit's, and they cannot "
            "resume on today's torch. {remedy}",
            ", ".join(conflicts),
            conflict_remedy(installed),
        )
    wrong = [
        f"{name} {version} ({installed.get(name, 'none')} found)"
        for name, version in STACK.items()
        if installed.get(name) != version
    ]
    if wrong:
        needed = ", ".join(wrong)
        return Message("Training needs {names}. Run `mapsage_kaggle.install()` first.", needed)
    return ""


def _stack(machine: Machine) -> _Found:
    problem = stack_problem(machine.installed)
    if problem:
        return "error", problem
    return "info", ", ".join(f"{name} {version}" for name, version in STACK.items()) + "."


def _gpu(machine: Machine) -> _Found:
    if not machine.gpus:
        hint = Message(
            " On Kaggle, set Accelerator to GPU T4 x2; an account without a verified phone number "
            "gets a machine without GPU and without Internet, whatever it asks for."
        )
        return "warning", Message(
            "No GPU: training runs on {count} CPU cores, slowly.{hint}",
            machine.num_cpus,
            hint if machine.on_kaggle else "",
        )
    shown = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB)" for gpu in machine.gpus)
    if any(gpu.supported is None for gpu in machine.gpus):
        return "warning", Message(
            "The driver lists {names}, but torch {version} cannot use it: training would run on "
            "the CPU. Install a torch that is built for CUDA and for this driver.",
            shown,
            machine.torch or "",
        )
    without = [gpu for gpu in machine.gpus if not gpu.supported]
    if without:
        names = ", ".join(
            f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]})" for gpu in without if gpu.capability
        )
        return "error", Message(
            "torch {version} has no kernels for {names}: it would take memory and then fail at "
            "the first step. Choose another accelerator (on Kaggle: GPU T4 x2).",
            machine.torch,
            names,
        )
    return "info", f"{shown}."


def _internet(machine: Machine) -> _Found:
    if machine.internet:
        return "info", "Names resolve."
    complete = all(machine.installed.get(name) == version for name, version in STACK.items())
    if complete:
        return "info", "No Internet; nothing is needed from it, all packages are installed."
    return "warning", (
        "No Internet: packages can be installed only from wheels attached as input. Turn Internet on in the "
        "notebook's settings (it needs a verified phone number), or attach a data set that "
        "holds the wheels."
    )


def _inputs(paths: KagglePaths, machine: Machine) -> _Found:
    if machine.inputs:
        names = ", ".join(str(path.relative_to(paths.input)) for path in machine.inputs[:8])
        more = f" and {len(machine.inputs) - 8} more" if len(machine.inputs) > 8 else ""
        return "info", Message("Attached: {names}{more}.", names, more)
    return "warning", Message(
        "Nothing is attached below {path}. Use Add Input for the data set and, from the "
        "second session on, for the last one's output. A source that was just attached can "
        "take a minute to appear.",
        paths.input,
    )


def _working(machine: Machine) -> _Found:
    if not machine.working_problem:
        return "info", "The output folder can be written to."
    remedy = (
        Message("Delete what is not needed there.")
        if machine.working_is_full
        else f"Choose another with --work-dir, or set {ROOT_VARIABLE} to a folder that can be written to."
    )
    return "error", Message(
        "Nothing can be written to the output folder ({why}), so no checkpoint could be kept. {remedy}",
        machine.working_problem,
        remedy,
    )


def _disk(machine: Machine) -> _Found:
    free, temp = machine.working_free_bytes, machine.temp_free_bytes
    if free is None:
        return "warning", "The free space of the output folder cannot be read."
    if free < NEEDED_BYTES:
        return "error", Message(
            "{free} are free for the output; the checkpoints of a session need {needed}. Delete "
            "what is not needed there.",
            _gigabytes(free),
            _gigabytes(NEEDED_BYTES),
        )
    scratch = "" if temp is None else Message(", {free} of scratch", _gigabytes(temp))
    return "info", Message("{free} are free for the output{scratch}.", _gigabytes(free), scratch)


def _output(machine: Machine) -> _Found:
    message = Message(
        "The output holds {count} files, {size}; Kaggle keeps at most {most} and drops files "
        "beyond 500 in silence.",
        machine.working_num_files,
        _gigabytes(machine.working_used_bytes),
        _gigabytes(OUTPUT_BYTES),
    )
    full = machine.working_num_files > OUTPUT_FILES or machine.working_used_bytes > 0.9 * OUTPUT_BYTES
    if full and machine.on_kaggle:
        return "warning", Message("{message} Delete what is not needed, or move it to scratch.", message)
    return "info", message


def _clock(clock: SessionClock) -> _Found:
    left, limit = clock.left_s(), format_duration(clock.limit_s)
    if left <= 0:
        return "error", Message(
            "The session has run for {spent} of its {limit}: there is no time left to train. "
            "Start a new session.",
            format_duration(clock.elapsed_s()),
            limit,
        )
    reserve = format_duration(clock.reserve_s)
    message = Message("{left} are left, less the reserve of {reserve}.", format_duration(left), reserve)
    if left < min(SHORT_SESSION_S, 0.5 * clock.limit_s):
        return "warning", Message("Only {message} A new session has more.", message)
    return "info", message


def _quota(clock: SessionClock, now_s: float) -> _Found:
    """Say what the session may take of the week's GPU hours; how much is left only Kaggle knows."""
    reset_s = week_start_s(now_s) + 7 * 24 * 3600.0
    return "info", Message(
        "This session takes up to {limit} of Kaggle's GPU hours (about {quota} a week). The "
        "next week begins in {left}, on Saturday at 00:00 UTC.",
        format_duration(clock.limit_s),
        format_duration(GPU_QUOTA_S),
        format_duration(reset_s - now_s),
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
