"""The relay as a command, with Kaggle's own client, against a Kaggle on the loopback."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kaggle_server import OWNER, Fault, KaggleServer, ScriptedNotebook
from relay_process import Ended, Relays

from mapsage_kaggle.errors import (
    EXIT_DONE,
    EXIT_MACHINE,
    EXIT_TRAINING,
)

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

    def check_nothing_was_pushed_twice(self) -> None:
        assert self.server.overlaps == []
        trained = [(start, end) for start, end, _ in self.notebook.done]
        assert len(trained) == len(set(trained)), self.notebook.done


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relays]:
    folder = tmp_path_factory.mktemp("relays")
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
        notebook.release.set()


# -- where all is well


def test_one_command_runs_the_sessions_to_the_end(rig: Rig) -> None:
    ended = rig.run_cold()
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done == FOUR
    assert rig.pushed == [(SLUG, 1), (SLUG, 2), (SLUG, 3), (SLUG, 4)]
    assert "The run is complete, at iteration 400." in ended.output
    again = rig.run()
    assert (again.code, len(rig.pushed)) == (EXIT_DONE, 4)


def test_a_push_says_what_the_session_is_told(rig: Rig) -> None:
    assert rig.run("--max-sessions", "2", "--session-limit", "9h30m", "--set", "a=1").code == EXIT_DONE
    first, second = rig.server.all_versions
    for version in (first, second):
        request = version.request
        assert request["slug"] == f"{OWNER}/{SLUG}"
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


def test_it_stops_at_the_iteration_or_after_the_sessions_that_were_asked_for(rig: Rig) -> None:
    assert rig.run("--max-sessions", "1").code == EXIT_DONE
    assert rig.run("--max-sessions", "1").code == EXIT_DONE
    assert len(rig.pushed) == 1
    ended = rig.run("--until", "250")
    assert (ended.code, rig.notebook.done) == (EXIT_DONE, FOUR[:3])
    assert "Iteration 250 is reached (now at 300)." in ended.output


def test_it_tells_iteration_and_score_while_a_session_runs(rig: Rig) -> None:
    rig.notebook.takes_s = 2.5
    ended = rig.run("--max-sessions", "1", poll="0.2s")
    assert "version 1 is running, iteration 100 of 400, mIoU 51.00 %, " in ended.output
    assert "quota left 30h 00m" in ended.output


def test_one_step_at_a_time_for_schedulers_even_where_the_disk_is_new_each_time(rig: Rig) -> None:
    for _ in range(40):
        ended = rig.run("--once")
        assert ended.code == EXIT_DONE, ended.output
        shutil.rmtree(rig.state)
        rig.server.wait_until_idle()
        if "The run is complete" in ended.output:
            break
    assert rig.notebook.done == FOUR
    rig.check_nothing_was_pushed_twice()


def test_a_dry_run_prints_the_plan_and_touches_nothing(rig: Rig) -> None:
    ended = rig.run("--dry-run", "--session-limit", "1h")
    assert ended.code == EXIT_DONE
    assert rig.pushed == []
    assert not rig.state.exists()
    for line in ("session ", "quota      30h 00m of GPU time left", "end        iteration 480"):
        assert line in ended.output


# -- pushes whose answer does not come


@pytest.mark.parametrize("kind", ["drop", "lost", "lost 502", "late", "html", "429", "503"])
@pytest.mark.parametrize("first", [1, 2])
def test_a_push_whose_answer_does_not_come_is_never_repeated_blindly(rig: Rig, kind: str, first: int) -> None:
    rig.server.faults = [Fault(method="SaveKernel", kind=kind, first=first)]
    ended = rig.run("--max-sessions", "3")
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done == FOUR[:3]
    assert len(rig.pushed) == 3
    rig.check_nothing_was_pushed_twice()


@pytest.mark.parametrize(
    "method",
    ["GetKernel", "GetKernelSessionStatus", "ListKernelSessionOutput", "ListDatasetFiles", "ListKernels",
     "GetAcceleratorQuotaStatistics", "download"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["429", "500", "drop", "html"])
def test_what_only_looks_is_asked_again(rig: Rig, method: str, kind: str) -> None:
    if method == "download" and kind == "html":
        pytest.skip("a page in place of a file is what the hash is for")
    rig.server.faults = [Fault(method=method, kind=kind, times=2)]
    ended = rig.run("--max-sessions", "2")
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done == FOUR[:2]
    rig.check_nothing_was_pushed_twice()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_day_of_faults_costs_no_session(rig: Rig, seed: int) -> None:
    draw = random.Random(seed)
    rig.server.any_fault = lambda method: (
        draw.choice(["429", "503", "drop", "lost", "lost 502", "late", "html"]) if draw.random() < 0.2 else ""
    )
    ended = rig.run()
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done == FOUR
    rig.check_nothing_was_pushed_twice()


# -- how sessions end


@pytest.mark.parametrize("mode", ["failed after progress", "killed", "late record"])
def test_a_session_that_ends_badly_with_a_checkpoint_is_gone_on_from(rig: Rig, mode: str) -> None:
    rig.notebook.script = ["ok", mode]
    ended = rig.run()
    assert ended.code == EXIT_DONE, ended.output
    assert [(start, end) for start, end, _ in rig.notebook.done] == [item[:2] for item in FOUR]
    third = rig.server.all_versions[2].request
    by_dataset = mode != "late record"
    assert (f"{OWNER}/{SLUG}-checkpoints" in third["datasetDataSources"]) == by_dataset
    # Only until a version is complete again.
    assert rig.server.all_versions[3].request["kernelDataSources"] == [f"{OWNER}/{SLUG}"]


@pytest.mark.parametrize("mode", ["damaged", "truncated"])
def test_the_one_before_is_taken_where_the_newest_checkpoint_is_not_what_was_promised(
    rig: Rig, mode: str
) -> None:
    rig.notebook.script = ["ok", mode]
    ended = rig.run()
    assert ended.code == EXIT_DONE, ended.output
    spans = [(start, end) for start, end, _ in rig.notebook.done]
    assert spans == [(0, 100), (100, 200), (150, 250), (250, 350), (350, 400)]


@pytest.mark.parametrize("mode", ["killed, no output", "crashed"])
def test_a_session_that_left_nothing_is_repeated_from_the_last_good_one(rig: Rig, mode: str) -> None:
    rig.notebook.script = ["ok", mode]
    ended = rig.run()
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done[-3:] == FOUR[1:]
    assert rig.notebook.done[0] == FOUR[0]


@pytest.mark.parametrize("mode", ["no progress", "crashed", "killed, no output"])
def test_a_session_without_progress_is_repeated_twice_and_no_more(rig: Rig, mode: str) -> None:
    rig.notebook.script = ["ok", *[mode] * 9]
    ended = rig.run()
    assert ended.code == EXIT_TRAINING, ended.output
    assert len(rig.pushed) == 4
    assert "3 sessions in a row made no progress beyond iteration 100" in ended.output
    assert "--again" in ended.output
    rig.notebook.script = []
    assert rig.run("--again").code == EXIT_DONE
    assert rig.notebook.done[-3:] == FOUR[1:]


def test_a_session_that_never_ends_is_told_and_nothing_is_pushed_beside_it(rig: Rig) -> None:
    rig.notebook.script = ["wedged"]
    assert rig.run("--once").code == EXIT_DONE
    document = rig.journal
    document["attempts"][0]["intended_s"] -= 7 * 86400
    (rig.state / "journal.json").write_text(json.dumps(document))
    ended = rig.run()
    assert ended.code == EXIT_MACHINE
    assert "Cancel it on its page" in ended.output
    assert len(rig.pushed) == 1


def test_more_output_than_one_page_is_listed_whole(rig: Rig) -> None:
    rig.notebook.more_files = 230
    assert rig.run("--max-sessions", "2").code == EXIT_DONE
    assert rig.notebook.done == FOUR[:2]


# -- other sessions of the same account


def test_it_waits_while_the_account_has_no_room_for_a_session(rig: Rig) -> None:
    rig.server.most_sessions = 0
    threading.Timer(2.0, setattr, (rig.server, "most_sessions", 2)).start()
    ended = rig.run("--max-sessions", "1")
    assert (ended.code, len(rig.pushed)) == (EXIT_DONE, 1), ended.output
    assert rig.server.calls["SaveKernel"] > 1


def test_it_does_not_push_beside_a_version_that_a_person_started(rig: Rig) -> None:
    assert rig.run("--max-sessions", "1").code == EXIT_DONE
    by_hand = rig.server.start_by_hand(SLUG, [f"{OWNER}/{SLUG}"])
    ended = rig.run("--max-sessions", "2", "--once")
    assert f"{SLUG} version 2, which the relay did not push, is" in ended.output
    assert len(rig.pushed) == 2
    by_hand.set()
    rig.server.wait_until_idle()


# -- transports


@pytest.mark.parametrize("transport", ["self", "pingpong", "dataset"])
def test_each_transport_runs_to_the_end(rig: Rig, transport: str) -> None:
    rig.server.processing_s = 0.2
    ended = rig.run("--transport", transport)
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done == FOUR
    if transport == "pingpong":
        assert rig.pushed == [(SLUG, 1), (SLUG, 2), (f"{SLUG}-2", 1), (f"{SLUG}-2", 2)]
    else:
        assert rig.pushed == [(SLUG, number) for number in (1, 2, 3, 4)]
    sources = [version.request.get("kernelDataSources", []) for version in rig.server.all_versions]
    assert sum(map(len, sources)) == (0 if transport == "dataset" else 3)


@pytest.mark.parametrize(("refused", "way"), [("self", "pingpong"), ("self and pingpong", "dataset")])
def test_the_next_transport_is_taken_where_kaggle_refuses_one(rig: Rig, refused: str, way: str) -> None:
    rig.server.refuse_own_output = True
    if way == "dataset":
        rig.server.refused_sources = {f"{OWNER}/{SLUG}", f"{OWNER}/{SLUG}-2"}
    ended = rig.run()
    assert ended.code == EXIT_DONE, ended.output
    assert [item for item in rig.notebook.done if item[2] == "ok"] == FOUR
    refusals = [item for item in rig.notebook.done if item[2] == "refused"]
    assert len(refusals) == len(refused.split(" and "))
    assert rig.journal["refused"] == refused.split(" and ")
    assert rig.journal["attempts"][-1]["transport"] == way
