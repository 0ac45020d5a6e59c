"""The relay as a command, with Kaggle's own client, against a Kaggle on the loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.kaggle_server import OWNER, SIGNATURE, TOKEN, Fault, KaggleServer
from support.kaggle_sessions import ScriptedNotebook, checkpoint_bytes
from support.relay_process import Ended, Relays

from mapsage_kaggle.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_USAGE

SLUG = "mapsage-train"
FOUR = [(0, 100, "ok"), (100, 200, "ok"), (200, 300, "ok"), (300, 400, "ok")]
"""What four sessions do where all is well."""


@dataclass
class Rig:
    """A Kaggle, a notebook that is scripted, and a place for the relay's journal."""

    server: KaggleServer
    notebook: ScriptedNotebook
    relays: Relays
    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def arguments(self, *more: str, slug: str = SLUG, owner: str = OWNER, poll: str = "0.05s") -> list[str]:
        return [
            "relay", "demo.py", "--owner", owner, "--slug", slug, "--dataset", f"{OWNER}/mapsage-kit",
            "--state", str(self.state), "--poll", poll, *more,
        ]  # fmt: skip

    @property
    def environ(self) -> dict[str, str]:
        return self.server.environment(self.folder / "home")

    def run(self, *more: str, **named: str) -> Ended:
        return self.relays.run(self.arguments(*more, **named), self.environ)

    def run_cold(self, *more: str, environ: dict[str, str] | None = None, **named: str) -> Ended:
        """Run it as a person does, in a Python of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "mapsage_kaggle", *self.arguments(*more, **named)],
            env=self.environ if environ is None else environ,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Ended(code=done.returncode, output=done.stdout)

    @property
    def journal(self) -> dict[str, Any]:
        return json.loads((self.state / "journal.json").read_text())  # type: ignore[no-any-return]

    @property
    def pushed(self) -> list[tuple[str, int]]:
        return [(version.slug, version.number) for version in self.server.all_versions]

    def begin_again(self) -> None:
        """Forget the run here and on the server, and its faults."""
        self.server.wait_until_idle()
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.rmtree(self.server.folder / "sessions", ignore_errors=True)
        self.server.versions.clear()
        self.notebook.done.clear()

    def check_nothing_was_pushed_twice(self) -> None:
        assert self.server.overlaps == []
        trained = [(start, end) for start, end, _ in self.notebook.done]
        assert len(trained) == len(set(trained)), self.notebook.done


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relays]:
    folder = tmp_path_factory.mktemp("relays")
    checkpoint_bytes(10)  # imports torch, which takes long enough to be taken for a server that is gone
    # Only the import talks to this one.
    with KaggleServer(folder / "kaggle", ScriptedNotebook()) as server:
        started = Relays(server.environment(folder / "home"), folder)
    with started:
        yield started


@pytest.fixture
def rig(tmp_path: Path, relays: Relays) -> Iterator[Rig]:
    notebook = ScriptedNotebook()
    with KaggleServer(tmp_path / "kaggle", notebook) as server:
        server.add_dataset("mapsage-kit")
        yield Rig(server=server, notebook=notebook, relays=relays, folder=tmp_path)


# -- where all is well


def test_one_command_runs_the_sessions_to_the_end(rig: Rig) -> None:
    ended = rig.run_cold()
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done == FOUR
    assert rig.pushed == [(SLUG, 1), (SLUG, 2), (f"{SLUG}-2", 1), (f"{SLUG}-2", 2)]
    assert "The run is complete, at iteration 400." in ended.output
    again = rig.run()
    assert (again.code, len(rig.pushed)) == (EXIT_DONE, 4)


def test_a_push_says_what_the_session_is_told(rig: Rig) -> None:
    assert rig.run("--max-sessions", "2", "--session-limit", "9h30m", "--set", "a=1").code == EXIT_DONE
    first, second = rig.server.all_versions
    for version in (first, second):
        request = version.request
        assert request["isPrivate"] is True
        assert request["sessionTimeoutSeconds"] == 9.5 * 3600
        assert version.parameters["SESSION_LIMIT"] == "34200s"
        assert request["machineShape"] == "NvidiaTeslaT4"
        assert (request["enableGpu"], request["enableInternet"]) == (True, True)
        assert request["datasetDataSources"] == [f"{OWNER}/mapsage-kit"]
        assert version.parameters["CONFIG"] == "demo.py"
        assert version.parameters["OVERRIDES"] == ["a=1"]
        assert version.parameters["GPUS"] == 2
    assert "kernelDataSources" not in first.request
    assert second.request["kernelDataSources"] == [f"{OWNER}/{SLUG}"]
    assert (first.parameters["RESUME"], first.parameters["EXPECT_ITERATION"]) == ("auto", None)
    assert (second.parameters["RESUME"], second.parameters["EXPECT_ITERATION"]) == ("require", 100)


def test_it_tells_iteration_and_score_while_a_session_runs(rig: Rig) -> None:
    rig.notebook.takes_s = 4.0
    ended = rig.run("--max-sessions", "1", poll="1.5s")
    assert f"{SLUG} version 1: iteration " in ended.output, ended.output
    assert "of 400, " in ended.output
    assert "quota left " in ended.output
    assert rig.server.calls["stream"] == 1


def test_a_dry_run_prints_the_plan_and_touches_nothing(rig: Rig) -> None:
    ended = rig.run("--dry-run", "--session-limit", "1h")
    assert ended.code == EXIT_DONE
    assert rig.pushed == []
    assert not rig.state.exists()
    for line in ("session ", "quota      30h 00m of GPU time left", "end        iteration 480"):
        assert line in ended.output
    assert "missing    data set alice/nowhere" in rig.run("--dry-run", "--dataset", f"{OWNER}/nowhere").output


def test_once_says_as_json_what_it_waits_for_and_when_to_look_again(rig: Rig) -> None:
    rig.notebook.takes_s = 30.0
    ended = rig.run("--once", "--json", "--log", str(rig.folder / "relay.log"))
    assert ended.code == EXIT_DONE
    document = json.loads(ended.output[ended.output.index("{") :])
    assert (document["done"], document["waits_for"], document["sessions"]) == (False, "session", 1)
    assert document["next_look_s"] >= 0
    assert document["open"] == f"{OWNER}/{SLUG}/1"
    assert f"Pushed {OWNER}/{SLUG} version 1: from nothing." in (rig.folder / "relay.log").read_text()
    for version in rig.server.all_versions:
        version.ends_s = 0.0


# -- killed and started again


def start_and_kill(rig: Rig, *more: str, at: int, when: str) -> Ended:
    """Start a relay and kill it before or after its request of that number is answered; or let it end."""
    first, known, pid = rig.server.num_requests, threading.Event(), 0

    def kill(number: int, method: str, now: str) -> None:
        if (number - first, now) == (at, when):
            known.wait(10)
            os.kill(pid, signal.SIGKILL)

    rig.server.on_request = kill
    pid = rig.relays.start(rig.arguments(*more), rig.environ)
    known.set()
    ended = rig.relays.wait()
    rig.server.on_request = lambda number, method, now: None
    time.sleep(0.05)  # what was under way when it was killed is done
    return ended


@pytest.mark.slow(scope_s=75)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_relay_killed_at_any_request_and_started_again_pushes_nothing_twice(rig: Rig, when: str) -> None:
    for at in range(2, 300, 13):
        ended = start_and_kill(rig, at=at, when=when)
        if ended.code == EXIT_DONE:
            break
        assert ended.code == -signal.SIGKILL, ended.output
        ended = rig.run()
        assert ended.code == EXIT_DONE, ended.output
        assert rig.notebook.done == FOUR, f"killed at request {at}"
        rig.check_nothing_was_pushed_twice()
        rig.begin_again()
    else:
        raise AssertionError("the relay never came to its end")
    assert at > 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_sigterm_ends_the_relay_and_not_the_session(rig: Rig, number: int) -> None:
    rig.notebook.takes_s = 1.0
    pid = rig.relays.start(rig.arguments(), rig.environ)
    while not rig.server.all_versions:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(pid, number)
    ended = rig.relays.wait()
    assert (ended.code, "interrupted" in ended.output) == (EXIT_INTERRUPTED, True), ended.output
    rig.notebook.takes_s = 0.0
    assert rig.run().code == EXIT_DONE
    assert rig.notebook.done == FOUR


def test_a_journal_of_another_run_and_a_second_relay_are_refused(rig: Rig) -> None:
    assert rig.run("--max-sessions", "1").code == EXIT_DONE
    ended = rig.run(slug="another-run")
    assert (ended.code, "Give another --state folder" in ended.output) == (EXIT_USAGE, True)
    (rig.state / "journal.json").write_text("{")
    ended = rig.run()
    assert (ended.code, "Move it away" in ended.output) == (EXIT_USAGE, True)
    assert len(rig.pushed) == 1


# -- what is wrong on the other side


def one_sentence(output: str) -> str:
    """Return what the command said of its failure, which is the last line and the only one of its kind."""
    told = [line for line in output.splitlines() if line.startswith("mapsage-kaggle: ")]
    assert len(told) == 1, output
    assert output.splitlines()[-1] == told[0], output
    assert "Traceback" not in output
    return told[0]


def test_credentials_of_another_account_are_told(rig: Rig) -> None:
    ended = rig.run(owner="bob")
    assert ended.code == EXIT_USAGE
    assert "The credentials here are alice's, not bob's. Give --owner alice" in one_sentence(ended.output)


@pytest.mark.slow
def test_missing_and_expired_credentials_are_told(rig: Rig) -> None:
    without = {key: value for key, value in rig.environ.items() if key != "KAGGLE_API_TOKEN"}
    for environ in (without, {**rig.environ, "KAGGLE_API_TOKEN": "KGAT_expired"}):
        ended = rig.run_cold(environ=environ)
        assert ended.code == EXIT_MACHINE, ended.output
        assert "Create a token on kaggle.com" in one_sentence(ended.output)
        assert "KGAT_expired" not in ended.output


def test_no_network_at_all_is_told(rig: Rig) -> None:
    ended = rig.run_cold("--once", environ={**rig.environ, "http_proxy": "http://127.0.0.1:9"})
    assert ended.code == EXIT_MACHINE, ended.output
    one_sentence(ended.output)


# -- secrets


@pytest.mark.slow
def test_no_secret_gets_into_notebook_journal_output_or_any_request_but_its_header(rig: Rig) -> None:
    rig.server.faults = [
        Fault(method="SaveKernel", kind="lost 502"), Fault(method="GetKernel", kind="drop", first=4),
        Fault(method="ListKernelSessionOutput", kind="html"), Fault(method="download", kind="403", first=2),
        Fault(method="StartBlobUpload", kind="500"),
    ]  # fmt: skip
    rig.notebook.script = ["ok", "killed", "no progress"]
    outputs = [rig.run_cold("--dry-run").output, rig.run_cold("--transport", "dataset").output]
    outputs.append(rig.run_cold(owner="bob").output)
    rig.server.faults = [Fault(method="GetKernel", kind="401", first=rig.server.calls["GetKernel"] + 1)]
    outputs.append(rig.run_cold(slug="another-run", environ=rig.environ).output)
    told = [body for body in rig.server.bodies if "IntrospectToken" not in body]
    kept = [path.read_bytes().decode("latin-1") for path in rig.state.rglob("*") if path.is_file()]
    assert len(kept) > 5
    assert len(told) > 20
    for text in (*outputs, *told, *kept):
        assert TOKEN not in text
        assert TOKEN.removeprefix("KGAT_") not in text
        assert SIGNATURE not in text
