"""What several tests need."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# A shell that runs the tests in the background has Ctrl-C ignored, here and in every process begun here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take where mmsegmentation's own tests are."""
    parser.addoption(
        "--mmsegmentation", type=Path, metavar="DIR", help="a checkout of mmsegmentation, whose tests are run"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that several workers end at about the same time.

    Files and classes are dealt whole; ``slow(scope_s=95)`` says what one takes alone.
    """

    def scope(item: pytest.Item) -> str:
        return item.nodeid.rpartition("::")[0]

    guessed_s: Counter[str] = Counter()
    stated_s: dict[str, float] = {}
    for item in items:
        mark = item.get_closest_marker("slow")
        if mark is not None:
            guessed_s[scope(item)] += 20
            if "scope_s" in mark.kwargs:
                stated_s[scope(item)] = mark.kwargs["scope_s"]
    expected_s = {**guessed_s, **stated_s}
    items.sort(key=lambda item: -expected_s.get(scope(item), 0))


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    """Leave no interpreter ready that a test has warmed up."""
    yield
    loaded = sys.modules.get("mapsage_kaggle.processes")
    if loaded is not None:
        loaded.cool_down()


@pytest.fixture(scope="session")
def loveda() -> Path:
    """Return the folder with two real LoveDA tiles and masks, or skip where it is not at hand."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "loveda"
    if not (folder / "images_png" / "0.png").is_file():
        pytest.skip(f"the two real LoveDA tiles are not at {folder}")
    return folder


@pytest.fixture
def only_deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let only deterministic algorithms run, as in a child with ``--deterministic``, for one test."""
    import torch
    import torch.utils.deterministic

    from mapsage_kaggle.engine import deterministic

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name in ("cross_entropy", "adaptive_avg_pool2d", "interpolate"):
        monkeypatch.setattr(torch.nn.functional, name, getattr(torch.nn.functional, name))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    deterministic.only_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(scope="session")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the commit at hand, for the Python at hand. Not to be written to.

    pytest's workers, which have temporary folders beside each other, share it: one makes it, and those
    that need it meanwhile wait.
    """
    from mapsage_kaggle.setup.bundle import bundle

    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if os.environ.get("PYTEST_XDIST_WORKER") else mine
    folder = shared / "bundle" / "mapsage-kaggle"
    with (shared / "bundle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            python = f"{sys.version_info.major}.{sys.version_info.minor}"
            bundle(folder, owner="me", python=python, say=lambda line: None)
    return folder


@pytest.fixture
def warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Return the warnings that data workers have told so far."""
    from mapsage_kaggle.engine.reading import EVENTS_VARIABLE
    from mapsage_kaggle.events import read_events

    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    return lambda: [dict(event.data) for event in read_events(events)]


@pytest.fixture
def warnings(warned: Callable[[], list[dict[str, Any]]]) -> Callable[[], list[str]]:
    """Return their messages."""
    return lambda: [warning["message"] for warning in warned()]
