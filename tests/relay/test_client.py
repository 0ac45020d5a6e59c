"""Kaggle's client as the relay uses it: credentials, times and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kaggle_server import OWNER, TOKEN, Fault
from support.relay_weeks import SLUG, Week, week

from mapsage_kaggle.relay.answers import Denied, Rejected, Unreachable
from mapsage_kaggle.relay.client import KaggleClient


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Week]:
    with week(tmp_path) as made:
        yield made


def client(found: Week) -> KaggleClient:
    vars(found.api).pop("build_kaggle_client", None)
    return KaggleClient(found.api, OWNER, clock=found.clock.here)


def test_a_token_that_has_expired_is_read_again_and_the_request_repeated(found: Week) -> None:
    kaggle = client(found)
    found.server.stale_token = True
    assert kaggle.notebooks.newest_version(SLUG) == 0
    assert found.server.stale_token is False


def test_credentials_that_cannot_be_renewed_now_are_kept(found: Week) -> None:
    kaggle = client(found)
    found.server.stale_token = True
    found.server.faults = [Fault(method="IntrospectToken", kind="503", times=9)]
    with pytest.raises(Denied, match="HTTP 401"):
        kaggle.notebooks.slugs()
    assert found.api.config_values["username"] == OWNER
    assert found.api.config_values["token"] == TOKEN


def test_the_time_that_kaggle_asks_to_wait_is_told(found: Week) -> None:
    found.server.faults = [Fault(method="ListKernels", kind="429 90")]
    with pytest.raises(Unreachable) as caught:
        client(found).notebooks.slugs()
    assert caught.value.retry_after_s == 90.0


@pytest.mark.parametrize("asked", ["inf", "1e18", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_kaggle_is_left_alone_for_a_day_at_most(asked: str, found: Week) -> None:
    found.server.faults = [Fault(method="ListKernels", kind=f"429 {asked}")]
    with pytest.raises(Unreachable) as caught:
        client(found).notebooks.slugs()
    assert caught.value.retry_after_s == 86_400.0


@pytest.mark.parametrize(
    "method", ["GetKernel", "ListKernels", "ListKernelSessionOutput", "ListDatasetFiles"]
)
def test_an_answer_that_nobody_can_read_is_asked_for_again(method: str, found: Week) -> None:
    kaggle = client(found)
    found.server.faults = [Fault(method=method, kind="odd")]
    asks = {
        "GetKernel": lambda: kaggle.notebooks.newest_version(SLUG), "ListKernels": kaggle.notebooks.slugs,
        "ListKernelSessionOutput": lambda: kaggle.notebooks.outputs(SLUG, 1),
        "ListDatasetFiles": lambda: kaggle.datasets.files(f"{OWNER}/mapsage-kit"),
    }  # fmt: skip
    with pytest.raises(Unreachable):
        asks[method]()


@pytest.mark.parametrize(
    ("words", "says", "remedy"),
    [
        ("Your account has been suspended.", "This account is suspended (HTTP 403): Your", "contact"),
        ("Verify your phone number first", "do not allow it (HTTP 403): Verify your", "Verify the phone"),
        ("Permission denied", "do not allow it (HTTP 403): Permission denied.", "Create a token"),
    ],
)
def test_a_refusal_tells_kaggles_own_words_and_what_helps(
    words: str, says: str, remedy: str, found: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found.server, "call", lambda *_: (403, {"code": 403, "message": words}))
    with pytest.raises(Denied) as caught:
        client(found).notebooks.slugs()
    assert says in caught.value.problem
    assert remedy in caught.value.remedy


def test_the_time_is_kaggles_where_this_machines_clock_is_wrong(found: Week) -> None:
    kaggle = client(found)
    found.clock.wrong_s = 86_400.0
    kaggle.notebooks.slugs()
    assert abs(kaggle.now_s() - found.clock.now()) < 2.0
    found.clock.wrong_s = 30.0
    kaggle.notebooks.slugs()
    assert kaggle.now_s() == found.clock.now() + 30.0


def test_a_bare_400_may_be_an_accident_and_what_kaggle_says_in_words_is_not(found: Week) -> None:
    kaggle = client(found)
    found.server.faults = [Fault(method="ListKernels", kind="400")]
    with pytest.raises(Rejected, match=r"Kaggle said no \(HTTP 400\): later\.") as caught:
        kaggle.notebooks.slugs()
    assert caught.value.stray
    assert not kaggle.rejected("No such machine").stray


def test_one_refusal_does_not_make_a_data_set_missing(found: Week) -> None:
    found.server.faults = [Fault(method="ListDatasetFiles", kind="403")]
    assert client(found).datasets.exists(f"{OWNER}/mapsage-kit")
    assert not client(found).datasets.exists(f"{OWNER}/nowhere")
