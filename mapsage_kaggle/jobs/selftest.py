"""Whether what is promised holds on this machine, each with its figure, in one JSON file as it goes.

Checks run in children, some side by side; a child that takes too long is ended, and what it had not found
is *not measured*, which is something else than *does not hold*.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsage_kaggle.checks import preflight, require
from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_TRAINING,
    UsageError,
)
from mapsage_kaggle.jobs.selftest_checks import Check, Finding, checks_for
from mapsage_kaggle.machine import Machine, survey, versions_of
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import KagglePaths, remove_tree, replace_file
from mapsage_kaggle.processes import POLL_S, Child, module_command
from mapsage_kaggle.relay.log import number_of

SCHEMA = 1
LIMIT_S = {"cpu": 300.0, "cuda": 600.0}
"""How long all of it may take."""
LEAST_S = 20.0
"""With less time left no check is begun."""
MAX_SIDE_BY_SIDE = 3
FILE = "selftest.json"
OnFinding = Callable[[Finding], None]


@dataclass(kw_only=True)
class SelfTest:
    """What has been found so far; written anew with every finding.

    Attributes:
        versions: The kit's, and of what computes.
        findings: By name, in the order in which they are to be made.
        state: ``running``, ``done`` or ``interrupted``.
    """

    file: Path
    limit_s: float
    on_finding: OnFinding = lambda finding: None
    versions: Mapping[str, str] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    state: str = "running"
    started_s: float = field(default_factory=time.time)

    @property
    def exit_code(self) -> int:
        """0: what was measured holds; 5: something does not; 4: no promise was measured; 130: interrupted."""
        states = {finding.state for finding in self.findings.values()}
        if "does not hold" in states:
            return EXIT_TRAINING
        if self.state != "done":
            return EXIT_INTERRUPTED
        return EXIT_DONE if "holds" in states else EXIT_MACHINE

    def put(self, finding: Finding) -> None:
        """Take a finding, write the file, and say so."""
        self.findings[finding.name] = finding
        self.write()
        self.on_finding(finding)

    def miss(self, names: Sequence[str], why: str) -> None:
        for name in names:
            self.put(Finding(name=name, state="not measured", message=why))

    def write(self) -> None:
        replace_file(self.file, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "state": self.state,
            "exit_code": None if self.state == "running" else self.exit_code,
            "versions": dict(self.versions),
            "started_s": self.started_s,
            "seconds": round(time.time() - self.started_s, 1),
            "limit_s": self.limit_s,
            "findings": [finding.to_json() for finding in self.findings.values()],
        }


def selftest(
    *,
    out: Path | None = None,
    only: Sequence[str] = (),
    limit_s: float | None = None,
    lines: str = "",
    on_begin: Callable[[str], None] = lambda name: None,
    on_finding: OnFinding = lambda finding: None,
) -> SelfTest:
    """Find out what holds here.

    ``lines`` are added to the config of every run.

    Raises:
        UsageError: There is no check of such a name.
        MachineError: This machine cannot train at all; the file says what it is.
    """
    paths = KagglePaths.from_environment()
    here = paths.working.is_dir()
    folder = paths.working if here else Path.cwd()
    machine = survey(paths, work_dir=folder)
    checks = checks_for(machine)
    names = [name for check in checks for name in check.names]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UsageError(
            Message("There is no check {name}.", repr(unknown[0])),
            Message("Choose of {names}.", ", ".join(names)),
        )
    cuda = any(gpu.supported is True for gpu in machine.gpus)
    test = SelfTest(
        file=out or folder / FILE,
        limit_s=LIMIT_S["cuda" if cuda else "cpu"] if limit_s is None else limit_s,
        on_finding=on_finding,
        versions=versions_of(machine),
    )
    test.put(machine_finding(machine))
    test.put(kaggle_finding(machine, paths))
    wanted = [check for check in checks if not only or set(only) & set(check.names)]
    for check in wanted:
        if check.why_not:
            test.miss(check.names, check.why_not)
        else:  # said by the file alone, should nobody get further
            never = Message("It was not come to.")
            test.findings |= {n: Finding(name=n, state="not measured", message=never) for n in check.names}
    test.write()
    require(preflight(paths, machine))
    if here:
        paths.temp.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="selftest-", dir=paths.temp if here else None))
    runs = _Runs(
        test=test,
        scratch=scratch,
        job={"machine": dataclasses.asdict(machine), "lines": lines},
        side_by_side=side_by_side(machine.num_cpus, os.getloadavg()[0]),
        on_begin=on_begin,
    )
    try:
        runs.make([check for check in wanted if not check.why_not])
        test.state = "done"
    except KeyboardInterrupt:
        test.state = "interrupted"
    finally:
        runs.end()
        test.write()
        with suppress(OSError):
            remove_tree(scratch)
    return test


def side_by_side(num_cpus: int, load: float) -> int:
    """Return how many checks may run at a time beside what else keeps the cores busy."""
    return max(1, min(MAX_SIDE_BY_SIDE, round(num_cpus - load)))


# -- children


@dataclass(kw_only=True)
class _Run:
    """A check that is being made."""

    check: Check
    child: Child
    folder: Path
    began_s: float
    bound_s: float
    found: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class _Runs:
    """Makes checks, side by side where nothing speaks against it, within the time that there is."""

    test: SelfTest
    scratch: Path
    job: Mapping[str, Any]
    side_by_side: int
    on_begin: Callable[[str], None]
    going: list[_Run] = field(default_factory=list)

    def make(self, checks: Sequence[Check]) -> None:
        """Make them in their order, but those that must be alone last."""
        end_s = time.monotonic() + self.test.limit_s - (time.time() - self.test.started_s)
        waiting = sorted(checks, key=lambda check: check.alone)
        while waiting or self.going:
            while waiting and self._has_room_for(waiting[0]):
                check, left_s = waiting.pop(0), end_s - time.monotonic()
                if left_s < LEAST_S:
                    why = Message("No time was left of {limit}.", format_duration(self.test.limit_s))
                    self.test.miss(check.names, why)
                else:
                    self._begin(check, min(left_s, check.part * self.test.limit_s))
            time.sleep(POLL_S)
            self.going = [run for run in self.going if not self._has_ended(run)]

    def end(self) -> None:
        for run in self.going:
            run.child.end()

    def _has_room_for(self, check: Check) -> bool:
        alone = check.alone or any(run.check.alone for run in self.going)
        return len(self.going) < (1 if alone else self.side_by_side)

    def _begin(self, check: Check, bound_s: float) -> None:
        folder = self.scratch / check.names[0].replace(" ", "-")
        folder.mkdir()
        job = {**self.job, "check": check.names[0], "scratch": str(folder)}
        (folder / "job.json").write_text(json.dumps(job, default=str), "utf-8")
        self.on_begin(", ".join(check.names))
        with (folder / "found.jsonl").open("wb") as found, (folder / "log.txt").open("wb") as log:
            command = module_command("mapsage_kaggle.jobs.selftest_checks", str(folder / "job.json"))
            child = Child(command, stdout=found, stderr=log)
        self.going.append(
            _Run(check=check, child=child, folder=folder, began_s=time.monotonic(), bound_s=bound_s)
        )

    def _has_ended(self, run: _Run) -> bool:
        """Take what a check has found, and end it where it takes too long."""
        ended, seconds = run.child.ended(), round(time.monotonic() - run.began_s, 1)
        late = not ended and seconds > run.bound_s
        if ended or late:
            run.child.end()
        for line in (run.folder / "found.jsonl").read_text("utf-8").splitlines(keepends=True):
            if line.startswith('{"name"') and line.endswith("\n"):
                finding = Finding.from_json({**json.loads(line), "seconds": seconds})
                if finding.name not in run.found:
                    run.found.add(finding.name)
                    self.test.put(finding)
        if ended or late:
            lines = (run.folder / "log.txt").read_text("utf-8", "replace").strip().splitlines()
            why = Message("The check itself failed: {why}", lines[-1] if lines else Message("without a word"))
            if late:
                why = Message("It took longer than {limit}.", format_duration(run.bound_s))
            self.test.miss([name for name in run.check.names if name not in run.found], why)
        return ended or late


# -- facts


def machine_finding(machine: Machine) -> Finding:
    gpus = [f"{gpu.name}, {gpu.memory_bytes / 1e9:.1f} GB" for gpu in machine.gpus]
    figures = {
        "python": machine.python, "torch": machine.torch, "cudnn": machine.cudnn, "cpus": machine.num_cpus,
        "ram_gb": round(machine.ram_bytes / 1e9, 1), "internet": machine.internet,
        "gpus": gpus,
    }  # fmt: skip
    message = Message(
        "Python {version}, torch {torch}, {count} CPU cores, {ram} GB of memory, {gpus}; Internet: {answer}.",
        machine.python, machine.torch, machine.num_cpus, figures["ram_gb"],
        ", ".join(gpus) or Message("no GPU"), Message("yes") if machine.internet else Message("no"),
    )  # fmt: skip
    return Finding(name="machine", state="measured", message=message, figures=figures)


def kaggle_finding(machine: Machine, paths: KagglePaths, environ: Mapping[str, str] | None = None) -> Finding:
    """Return what only Kaggle can tell of itself: mounts, limits, the session's number."""
    environ = os.environ if environ is None else environ
    if not machine.on_kaggle:
        message = Message(
            "This is not Kaggle: its mounts, limits and session number are to be seen there alone."
        )
        return Finding(name="kaggle", state="not measured", message=message)
    inputs = [mount_of(place) for place in machine.inputs[:16]]
    number = number_of(environ.get("KAGGLE_CONTAINER_NAME", ""))
    names = ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_CONTAINER_NAME", "KAGGLE_DOCKER_IMAGE", "KAGGLE_URL_BASE")
    figures: dict[str, Any] = {
        "session": number,
        "environment": {name: environ.get(name) for name in names},
        "inputs": inputs,
        "working": mount_of(paths.working),
        "working_free_bytes": machine.working_free_bytes,
        "temp_free_bytes": machine.temp_free_bytes,
        "shared_bytes": machine.shared_bytes,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    writable = sum(not mount["read_only"] for mount in inputs)
    message = Message(
        "Session number {number}, {kind}; {count} inputs, {writable} of them not read-only; {free} GB free "
        "in the output folder.",
        number or "?", machine.run_type, len(machine.inputs), writable,
        f"{(machine.working_free_bytes or 0) / 1e9:.1f}",
    )  # fmt: skip
    return Finding(name="kaggle", state="measured", message=message, figures=figures)


def mount_of(place: Path, mounts: Path = Path("/proc/self/mounts")) -> dict[str, Any]:
    """Return the kind of file system that a folder lies on, and how long a look at a file there takes."""
    lines = [line.split(" ") for line in mounts.read_text("utf-8", "replace").splitlines()]
    holding = [line for line in lines if place.resolve().is_relative_to(line[1].replace("\\040", " "))]
    _, at, kind, options, *_ = max(holding, key=lambda line: len(line[1]))
    began, num = time.perf_counter(), 0
    with suppress(OSError):
        for path in itertools.islice(place.iterdir(), 50):
            path.stat()
            num += 1
    stat_ms = round(1000 * (time.perf_counter() - began) / max(1, num), 3)
    read_only = "ro" in options.split(",")
    return {"place": str(place), "mount": at, "kind": kind, "read_only": read_only, "stat_ms": stat_ms}
