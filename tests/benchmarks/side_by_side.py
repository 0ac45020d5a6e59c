"""Two sides of the same work, measured by turns: medians, ratios and spread, as a table and as JSON.

The two take turns in one process tree, so that a busy moment of the machine does not hit one alone, and
each turn begins with the other one.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Measure = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of both sides.

    Attributes:
        what: What was measured.
        unit: Of the figures, such as ``ms``.
        stock: mmsegmentation's or mmengine's own, one figure a turn.
        ours: The kit's, one figure a turn.
        more_is_better: Whether a higher figure is the better one, as of a rate.
        goal: The ratio that is wanted, if any.
    """

    what: str
    unit: str
    stock: Sequence[float]
    ours: Sequence[float]
    more_is_better: bool = False
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """How many times better the kit's median is."""
        stock, ours = statistics.median(self.stock), statistics.median(self.ours)
        return ours / stock if self.more_is_better else stock / ours

    def document(self) -> dict[str, Any]:
        sides = {"stock": self.stock, "kit": self.ours}
        return {
            "what": self.what,
            "unit": self.unit,
            **{name: {"median": statistics.median(runs), "runs": list(runs)} for name, runs in sides.items()},
            "ratio": self.ratio,
            "goal": self.goal,
        }


def by_turns(
    stock: Measure, ours: Measure, *, turns: int, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    """Measure both sides as often as said, after some turns to warm up, and return their figures.

    Args:
        stock: Does the work once and returns its figure.
        ours: Does the same work.
        turns: How often each is measured.
        warm_up: How often before that, uncounted.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(-warm_up, turns):
        for side in (0, 1) if turn % 2 else (1, 0):
            figure = (stock, ours)[side]()
            if turn >= 0:
                found[side].append(figure)
    return found


def cpu_ms(work: Callable[[], object], *, per: int = 1) -> float:
    """Return milliseconds of processors that a piece of work takes, of one unit of ``per`` in it.

    Other programs on the machine slow it down less than the clock on the wall would show.
    """
    begin = time.process_time()
    work()
    return 1000 * (time.process_time() - begin) / per


class Apart:
    """A side in a process of its own, for what a side changes in all of it, such as how memory is kept."""

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        self._pipe.recv()  # it is ready

    def __call__(self) -> tuple[float, float]:
        """Do the work once; return its seconds, and those of its processors."""
        self._pipe.send(True)
        seconds, processor_s = self._pipe.recv()
        return seconds, processor_s

    def end(self) -> None:
        self._pipe.send(False)
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[[], object]], arguments: Sequence[object]) -> None:
    work = make(*arguments)
    pipe.send(None)
    while pipe.recv():
        began = time.perf_counter()
        processor_ms = cpu_ms(work)
        pipe.send((time.perf_counter() - began, processor_ms / 1000))


def machine() -> dict[str, Any]:
    """Describe what was measured on."""
    import torch

    names = (
        "torch", "numpy", "opencv-python", "opencv-python-headless",
        "onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation",
    )  # fmt: skip
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "gpus": gpus,
        "python": platform.python_version(),
        "packages": {name: version for name in names if (version := _version(name)) is not None},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def parser(doc: str | None, *, turns: int) -> argparse.ArgumentParser:
    """Return a parser with the options that each of these benchmarks has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--turns", type=int, default=turns, help="how often each side is measured")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return made


def show(title: str, rows: Sequence[Row], *, file: Path | None = None, **more: Any) -> None:
    """Print the rows as a table and the same as a line of JSON.

    Args:
        title: What they are about, with the conditions.
        rows: The figures.
        file: Where the JSON is written, too.
        **more: What else the JSON says.
    """
    described = machine()
    where = (
        described["processor"],
        f"{described['num_cores']} cores",
        f"{described['num_threads']} threads",
        f"load {described['load_average']}",
        *(f"{name} {version}" for name, version in described["packages"].items()),
        *(described["gpus"] or ["no GPU"]),
    )
    print(f"{title}\n{', '.join(where)}")
    width = max(len(row.what) for row in rows)
    print(f"{'':<{width}}  {'stock':>10} {'(from … to)':>19}  {'kit':>10} {'(from … to)':>19}  {'ratio':>7}")
    for row in rows:
        sides = "  ".join(
            f"{statistics.median(runs):>10.4g} {f'({min(runs):.4g} … {max(runs):.4g})':>19}"
            for runs in (row.stock, row.ours)
        )
        goal = "" if row.goal is None else f"  goal {row.goal:g}"
        print(f"{row.what:<{width}}  {sides}  {row.ratio:>6.2f}×  {row.unit}{goal}")
    document = {"title": title, "machine": described, "rows": [row.document() for row in rows], **more}
    print(json.dumps(document, ensure_ascii=False))
    if file is not None:
        file.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
