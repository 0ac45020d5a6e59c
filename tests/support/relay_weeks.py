"""Weeks of a relay in less than a second: the real client and relay, a Kaggle within, a clock that is told.

What must hold whatever happens is checked as it happens: at every push, at every stop, and of the requests.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from mapsage_kaggle.errors import MapsageError
from mapsage_kaggle.relay import command
from mapsage_kaggle.relay.client import KaggleClient
from mapsage_kaggle.relay.decide import Stop, Wait
from mapsage_kaggle.relay.journal import Journal
from mapsage_kaggle.relay.progress import Reporter
from mapsage_kaggle.relay.run import Relay
from support.kaggle_server import OWNER, Clock, KaggleServer, Version
from support.kaggle_sessions import ScriptedNotebook
from support.kaggle_transport import within

SLUG = "mapsage-train"
SESSION_S = 11.5 * 3600.0
EXIT_CODES = (0, 2, 3, 4, 5)
MAX_REQUESTS_PER_HOUR = 60


class KilledError(BaseException):
    """The relay's process is killed in the middle of a request."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a relay ended: by itself, or with a refusal."""

    exit_code: int
    text: str


@dataclass(kw_only=True)
class Week:
    """One account, one run, and the machines that a relay runs on."""

    server: KaggleServer
    notebook: ScriptedNotebook
    clock: Clock
    api: Any
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    credentials: dict[str, Any] = field(default_factory=dict)
    output: StringIO = field(default_factory=StringIO)
    pushes: list[tuple[str, int, int]] = field(default_factory=list)
    consented: bool = False

    def relay(self, machine: str = "laptop") -> Relay:
        """Return a relay that begins on a machine now."""
        asked = _asked(json.dumps(self.options))
        asked = replace(asked, places=command.places_of(SLUG, self.folder / machine))
        # A new process: the client is patched by each that is made, and one may have been killed within it.
        vars(self.api).pop("build_kaggle_client", None)
        self.api.config_values = dict(self.credentials)
        kaggle = KaggleClient(self.api, OWNER, clock=self.clock.here)
        return Relay(
            kaggle=kaggle,
            settings=asked.settings,
            job=asked.job,
            places=asked.places,
            reporter=Reporter(stream=self.output, now_s=kaggle.now_s),
            sleep=self.clock.sleep,
            jitter=lambda: 1.0,
            follow=False,
        )

    def run(self, machine: str = "laptop", *, days: float = 60.0, **how: bool) -> Ended:
        """Let a relay run to its end."""
        until_s = self.clock.now_s + days * 86400.0
        relay = self.relay(machine)

        def sleep(seconds: float) -> None:
            self.clock.sleep(seconds)
            if self.clock.now_s > until_s:
                raise AssertionError(f"It never ends.\n{self.output.getvalue()[-3000:]}")

        relay.sleep = sleep
        try:
            ended = relay.run(**how)
        except MapsageError as error:
            return self._ended(Ended(exit_code=error.exit_code, text=str(error)))
        assert isinstance(ended, Stop)
        return self._ended(Ended(exit_code=ended.exit_code, text=f"{ended.reason} {ended.remedy}".strip()))

    def once(self, machine: str = "laptop", **how: bool) -> Ended | Wait:
        """Let a scheduler start a relay once."""
        try:
            ended = self.relay(machine).run(once=True, **how)
        except MapsageError as error:
            return self._ended(Ended(exit_code=error.exit_code, text=str(error)))
        if isinstance(ended, Wait):
            assert ended.seconds >= 0
            return ended
        return self._ended(Ended(exit_code=ended.exit_code, text=f"{ended.reason} {ended.remedy}".strip()))

    def _ended(self, ended: Ended) -> Ended:
        assert ended.exit_code in EXIT_CODES, ended
        assert ended.text.endswith((".", "!")), ended
        assert "Traceback" not in ended.text
        return ended

    def journal(self, machine: str = "laptop") -> Journal:
        found = Journal.read(self.folder / machine / "journal.json")
        assert found is not None
        return found

    def lose(self, machine: str = "laptop") -> None:
        """Lose a machine's disk."""
        shutil.rmtree(self.folder / machine, ignore_errors=True)

    # -- what must hold

    def newest_good(self) -> int:
        """Return the iteration of the newest checkpoint of this run that is to be had on Kaggle now."""
        places = [version.output for version in self.server.all_versions if version.seconds >= 0
                  and self.clock.now() >= version.ends_s]  # fmt: skip
        ref = f"{OWNER}/{SLUG}-checkpoints"
        if ref in self.server.datasets:
            places.append(self.server.datasets[ref])
        iterations = [0]
        for place in places:
            for path in place.rglob("iter_*.pth"):
                record = path.parent / "session.json"
                if not record.is_file() or f'"{self.notebook.run_id}' not in record.read_text():
                    continue
                if path.read_bytes() == checkpoint_of(path):
                    iterations.append(int(path.stem[5:]))
        return max(iterations)

    def check_push(self, version: Version) -> None:
        """A relay pushes: never below the newest good checkpoint, never what was pushed before."""
        if not version.token:
            return
        tokens = [item.token for item in self.server.all_versions]
        assert version.token not in tokens, "two sessions for one push"
        start = version.parameters["EXPECT_ITERATION"] or 0
        good = self.newest_good()
        self.pushes.append((version.slug, start, good))
        if not self.consented:
            assert start >= good, (
                f"a start from {start}, below the newest good {good}\n{self.output.getvalue()[-3000:]}"
            )

    def check(self) -> None:
        """Nothing ran beside a session, and Kaggle was not asked too often."""
        assert self.server.overlaps == [], self.output.getvalue()[-3000:]
        hours = (self.clock.now() - Clock().now_s) / 3600.0
        allowed = MAX_REQUESTS_PER_HOUR * hours + 200
        assert self.server.num_requests <= allowed, (self.server.num_requests, hours, self.server.calls)
        lines = self.output.getvalue().splitlines()
        assert len(lines) <= 2 * hours + 100, "more lines than something has changed"
        for places in self.folder.glob("*/fetched"):
            assert len(list(places.glob("*-v*"))) <= 2, "what is no longer needed is kept"
        for line in lines:
            assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  .*[.!]$", line), line


@functools.cache
def _asked(options: str) -> command.RelayRequest:
    """Return what is asked of a relay: its config is read once, not at each of a thousand starts."""
    datasets = [f"{OWNER}/mapsage-kit"]
    return command.read("demo.py", owner=OWNER, slug=SLUG, datasets=datasets, **json.loads(options))


def checkpoint_of(path: Path) -> bytes:
    from support.kaggle_sessions import checkpoint_bytes

    return checkpoint_bytes(int(path.stem[5:]))


@contextmanager
def week(folder: Path, **options: Any) -> Iterator[Week]:
    """Give a week that begins now, and check at its end what must hold."""
    clock = Clock()
    notebook = ScriptedNotebook(takes_s=SESSION_S)
    server = KaggleServer(folder / "kaggle", notebook, clock)
    notebook.server = server
    server.queue_s = 300.0
    server.processing_s = 600.0
    server.quota_s = 1e6
    server.add_dataset("mapsage-kit")
    # Nobody pulls the plug in here.
    with server, within(server) as api, mock.patch.object(os, "fsync"):
        found = Week(
            server=server,
            notebook=notebook,
            clock=clock,
            api=api,
            folder=folder,
            options={"poll": "20m", **options},
        )
        found.credentials = dict(api.config_values)
        server.on_push = found.check_push
        yield found
        found.check()
