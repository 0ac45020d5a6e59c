"""The relay as a command, with Kaggle's own client, against a Kaggle on the loopback."""

from __future__ import annotations

import json
import os
import random
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
from support.kaggle_server import (
    OWNER,
    SIGNATURE,
    TOKEN,
    Fault,
    KaggleServer,
    ScriptedNotebook,
    checkpoint_bytes,
)
from support.relay_process import Ended, Relays

from mapsage_kaggle.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_TRAINING, EXIT_USAGE

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
@pytest.mark.parametrize("seed", range(3))
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
def test_the_one_before_is_taken_where_the_newest_checkpoint_is_not_as_promised(rig: Rig, mode: str) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_relay_killed_at_any_request_and_started_again_pushes_nothing_twice(rig: Rig, when: str) -> None:
    for at in range(2, 60, 4):
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


def endure(rig: Rig, seed: int) -> None:
    """Kill a relay at random moments until it ends, now and then without its journal, and check the run."""
    draw = random.Random(seed)
    rig.notebook.takes_s = draw.choice([0.0, 0.1])
    for _ in range(5):
        if draw.random() < 0.5:
            ended = start_and_kill(rig, at=draw.randrange(1, 24), when=draw.choice(["before", "after"]))
        else:
            pid = rig.relays.start(rig.arguments(), rig.environ)
            timer = threading.Timer(draw.uniform(0.0, 1.0), os.kill, (pid, signal.SIGKILL))
            timer.start()
            ended = rig.relays.wait()
            timer.cancel()
            time.sleep(0.05)
        if ended.code == EXIT_DONE:
            break
        assert ended.code == -signal.SIGKILL, ended.output
        if draw.random() < 0.3:
            shutil.rmtree(rig.state, ignore_errors=True)
    else:
        ended = rig.run()
    assert ended.code == EXIT_DONE, ended.output
    assert rig.notebook.done == FOUR
    rig.check_nothing_was_pushed_twice()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_relay_killed_at_random_moments_pushes_nothing_twice(rig: Rig, seed: int) -> None:
    endure(rig, seed)


@pytest.mark.slow
def test_many_relays_killed_at_random_moments_push_nothing_twice(rig: Rig) -> None:
    for seed in range(100, 110):
        endure(rig, seed)
        rig.begin_again()


def test_ctrl_c_ends_the_relay_and_not_the_session(rig: Rig) -> None:
    rig.notebook.takes_s = 1.0
    pid = rig.relays.start(rig.arguments(), rig.environ)
    while not rig.server.all_versions:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(pid, signal.SIGINT)
    ended = rig.relays.wait()
    assert (ended.code, "interrupted" in ended.output) == (EXIT_INTERRUPTED, True), ended.output
    rig.notebook.takes_s = 0.0
    assert rig.run().code == EXIT_DONE
    assert rig.notebook.done == FOUR


@pytest.mark.parametrize("transport", ["pingpong", "dataset"])
@pytest.mark.parametrize("script", [[], ["ok", "killed"], ["failed after progress"]], ids=str)
def test_a_lost_journal_is_rebuilt_from_the_versions_and_their_records(
    rig: Rig, transport: str, script: list[str]
) -> None:
    rig.notebook.script = list(script)
    way = "auto" if script and transport == "pingpong" else transport
    for _ in range(40):
        ended = rig.run("--once", "--transport", way)
        assert ended.code == EXIT_DONE, ended.output
        shutil.rmtree(rig.state)
        rig.server.wait_until_idle()
        if "The run is complete" in ended.output:
            break
    assert [item[:2] for item in rig.notebook.done] == [item[:2] for item in FOUR]
    rig.check_nothing_was_pushed_twice()


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


def test_a_data_set_that_is_not_there_is_told_before_anything_is_pushed(rig: Rig) -> None:
    ended = rig.run("--dataset", f"{OWNER}/no-such-images")
    assert ended.code == EXIT_USAGE
    assert f"There is no data set {OWNER}/no-such-images" in one_sentence(ended.output)
    assert rig.pushed == []


def test_a_token_without_rights_is_told(rig: Rig) -> None:
    rig.server.faults = [Fault(method="SaveKernel", kind="403", times=9)]
    ended = rig.run()
    assert ended.code == EXIT_MACHINE
    assert "Create a token with rights to notebooks" in one_sentence(ended.output)
    assert rig.pushed == []
    rig.server.faults = []
    assert rig.run("--max-sessions", "1").code == EXIT_DONE
    rig.server.readable = False
    ended = rig.run()
    assert ended.code == EXIT_MACHINE
    assert "do not allow to read alice/mapsage-train" in one_sentence(ended.output)


def test_a_notebook_filed_under_another_slug_is_told(rig: Rig) -> None:
    rig.server.files_under = "mapsage-train-v2"
    ended = rig.run()
    assert ended.code == EXIT_USAGE
    assert "filed under mapsage-train-v2, whose title does not match the slug" in one_sentence(ended.output)
    assert len(rig.pushed) == 1


def test_a_refusal_in_kaggles_own_words_is_handed_on(rig: Rig) -> None:
    rig.server.push_error = "Your account must be phone verified to use a GPU."
    ended = rig.run()
    assert ended.code == EXIT_USAGE
    told = one_sentence(ended.output)
    assert "Your account must be phone verified" in told
    assert "Check owner, slug, data sets and machine" in told
    assert rig.server.calls["SaveKernel"] == 1


@pytest.mark.parametrize(
    ("mode", "says"),
    [("no gpu", "phone number is not verified"), ("no internet", "No Internet and no wheels")],
)
def test_a_session_that_cannot_work_is_told_and_not_repeated(rig: Rig, mode: str, says: str) -> None:
    rig.notebook.script = [mode] * 9
    ended = rig.run()
    assert ended.code == EXIT_MACHINE
    assert says in one_sentence(ended.output)
    assert len(rig.pushed) == 1


def test_quota_that_is_used_up_is_told_and_a_rest_of_it_used(rig: Rig) -> None:
    rig.server.quota_used_s = 108_000.0 - 2 * 3600 - 30
    assert rig.run("--max-sessions", "1").code == EXIT_DONE
    assert rig.server.all_versions[0].request["sessionTimeoutSeconds"] == 2 * 3600
    assert rig.server.all_versions[0].parameters["SESSION_LIMIT"] == "7200s"
    rig.server.quota_used_s = 108_000.0 - 600
    ended = rig.run()
    assert ended.code == EXIT_MACHINE
    assert "of this week's GPU quota is left" in one_sentence(ended.output)
    assert "It is renewed 2026-11-28 00:00 UTC" in ended.output
    assert len(rig.pushed) == 1


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
