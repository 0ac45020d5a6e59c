"""What can be seen of a chain from any machine, how a session is ended, and what is told of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.kaggle_server import OWNER
from support.relay_weeks import SLUG, Week, week

from mapsage_kaggle.errors import MachineError, UsageError
from mapsage_kaggle.relay import notify, status
from mapsage_kaggle.relay.answers import kind_of_refusal
from mapsage_kaggle.relay.client import KaggleClient
from mapsage_kaggle.relay.progress import Reporter

HOUR = 3600.0


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Week]:
    with week(tmp_path) as made:

        def connect(owner: str) -> KaggleClient:
            vars(made.api).pop("build_kaggle_client", None)
            return KaggleClient(made.api, owner, clock=made.clock.here)

        monkeypatch.setattr(KaggleClient, "connect", connect)
        yield made


def go_on(found: Week, hours: float) -> None:
    until_s = found.clock.now_s + hours * HOUR
    while found.clock.now_s < until_s:
        found.once()
        found.clock.sleep(HOUR)


def test_status_tells_what_is_there_without_a_journal(found: Week) -> None:
    found.server.quota_s = 108_000.0
    go_on(found, 18.0)
    found.lose()
    pushed = len(found.pushes)
    seen = status.status(OWNER, SLUG)
    first, second = seen["versions"]
    assert (first["status"], first["pushed_by"], first["iteration"]) == ("complete", "relay", 100)
    assert (second["slug"], second["status"], second["from_iteration"]) == (f"{SLUG}-2", "running", 100)
    assert 100 < second["iteration"] < 200
    assert (seen["iteration"], seen["max_iters"]) == (second["iteration"], 400)
    assert 0 < seen["quota_left_s"] < 108_000.0
    assert seen["sessions_left"] == 1
    assert json.loads(json.dumps(seen)) == seen
    text = status.status_text(seen)
    for part in ("mapsage-train-2", "running", "of 400", "used, ", "renewed 2026-11-21 00:00 UTC", "end  "):
        assert part in text
    assert len(found.pushes) == pushed
    assert not (found.folder / "laptop").exists()


def test_status_of_no_notebook_is_told(found: Week) -> None:
    with pytest.raises(UsageError, match="There is no notebook alice/nowhere-at-all"):
        status.status(OWNER, "nowhere-at-all")


def test_cancel_ends_the_session_that_is_going_on(found: Week) -> None:
    go_on(found, 2.0)
    assert "was asked to end alice/mapsage-train version 1" in status.cancel(OWNER, SLUG)
    assert found.server.versions[SLUG][0].status == "CANCEL_ACKNOWLEDGED"
    with pytest.raises(UsageError, match="No session of alice/mapsage-train is going on"):
        status.cancel(OWNER, SLUG)


def test_where_kaggle_does_not_end_it_the_address_to_do_so_is_told(found: Week) -> None:
    found.server.may_cancel = False
    go_on(found, 2.0)
    with pytest.raises(MachineError, match=r"End it on https://www.kaggle.com/code/alice/mapsage-train\."):
        status.cancel(OWNER, SLUG)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Maximum batch GPU session count of 2 reached.", "capacity"),
        ("You have too many concurrent sessions.", "capacity"),
        ("You have exceeded your weekly GPU quota.", "quota"),
        ("The maximum size of a notebook is 1 MB.", "size"),
        ("Source too large.", "size"),
        ("Your account has been suspended.", "suspended"),
        ("Your account must be phone verified to use a GPU.", "verification"),
        ("Something went wrong.", "other"),
    ],
)
def test_what_a_refusal_is_about_is_told_from_its_words(words: str, kind: str) -> None:
    assert kind_of_refusal(words) == kind


# -- messages


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []

    class Hook(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"json://127.0.0.1:{server.server_address[1]}/secret-of-the-hook", got
        server.shutdown()
        thread.join()


def test_a_message_reaches_a_webhook(webhook: tuple[str, list[bytes]]) -> None:
    address, got = webhook
    environ = {notify.VARIABLE: address}
    notify.check(environ)
    assert notify.send("alice/mapsage-train", "The run is complete.", environ) is True
    document = json.loads(got[0])
    assert (document["title"], document["message"]) == ("alice/mapsage-train", "The run is complete.")


def test_a_message_that_cannot_be_sent_ends_nothing_and_tells_no_address(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    environ = {notify.VARIABLE: "json://127.0.0.1:9/secret-of-the-hook"}
    assert notify.send("a", "b", environ) is False
    told = capfd.readouterr()
    assert "secret-of-the-hook" not in told.out + told.err + caplog.text


def test_an_address_that_is_missing_or_none_is_told_without_it() -> None:
    with pytest.raises(UsageError, match=f"needs an address in the variable {notify.VARIABLE}"):
        notify.check({})
    with pytest.raises(UsageError, match="no address that apprise understands") as caught:
        notify.check({notify.VARIABLE: "nonsense-that-is-secret"})
    assert "secret" not in str(caught.value)


def test_a_log_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    from io import StringIO

    told = StringIO()
    reporter = Reporter(stream=told, log=tmp_path, now_s=lambda: 0.0)
    reporter.say("It ended.")
    reporter.say("It began.")
    assert [line[21:] for line in told.getvalue().splitlines()] == [
        "It ended.", f"{tmp_path} cannot be written, and is left: Is a directory.", "It began.",
    ]  # fmt: skip


def test_a_terminal_gets_one_status_line_that_is_rewritten() -> None:
    from io import StringIO

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    reporter = Reporter(stream=terminal, now_s=lambda: 0.0)
    for text in ("iteration 10", "iteration 20"):
        reporter.progress(text)
    reporter.say("It ended.")
    reporter.say("It ended.")
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().count("\r") == 4
    plain = StringIO()
    reporter = Reporter(stream=plain, now_s=lambda: 0.0)
    for text in ("iteration 10", "iteration 20"):
        reporter.progress(text)
    assert plain.getvalue().count("\n") == 1
