"""What the relay decides, over every combination of what it may remember and see."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mapsage_kaggle.errors import EXIT_CHECKPOINT, EXIT_DONE, EXIT_MACHINE, EXIT_TRAINING, EXIT_USAGE
from mapsage_kaggle.relay.decide import (
    ACTIVE,
    ENDED,
    MAX_REPEATS,
    Action,
    Fetch,
    Follow,
    Observation,
    Push,
    Remember,
    Settings,
    Status,
    Stop,
    Store,
    Version,
    Wait,
    decide,
)
from mapsage_kaggle.relay.journal import (
    TRANSPORTS,
    Attempt,
    HandOver,
    Journal,
    Outcome,
    Transport,
    Upload,
    Verdict,
)

NOW = 1_000_000.0
SETTINGS = Settings(owner="alice", slug="train", datasets=("alice/kit",), checkpoint_dataset="alice/saved")
GOOD = HandOver(
    slug="train", version=3, iteration=800, file="w/iter_800.pth", sha256="0", size_bytes=1, attachable=True
)
NEW = Journal(owner="alice", slug="train", config="demo.py", dataset_read=True)


def ended(verdict: Verdict, number: int = 1) -> tuple[Attempt, ...]:
    common = {"slug": "train", "landed": True, "status": "error", "verdict": verdict, "message": "told"}
    return tuple(
        Attempt(version=index + 1, token=f"t{index}", **common)  # type: ignore[arg-type]
        for index in range(number)
    )


def seen(**changes: object) -> Observation:
    known = {"now_s": NOW, "latest": {"train": 3, "train-2": 0}, "quota_left_s": 80_000.0}
    return Observation(**{**known, **changes})  # type: ignore[arg-type]


OPEN: dict[str, tuple[Attempt, ...]] = {
    "nothing open": (),
    "intended just now": (Attempt(slug="train", version=4, intended_s=NOW - 1),),
    "intended long ago": (Attempt(slug="train", version=4, intended_s=NOW - 9e3),),
    "landed": (Attempt(slug="train", version=4, intended_s=NOW - 1, landed=True, limit_s=1.0),),
    "landed days ago": (Attempt(slug="train", version=4, intended_s=NOW - 1e6, landed=True, limit_s=1.0),),
}
ENDINGS = {
    "none": (),
    **{f"{verdict}": ended(verdict) for verdict in get_args(Verdict)},
    **{f"{number} without progress": ended("none", number) for number in (2, 3, 4)},
    "progress after two without": (*ended("none", 2), *ended("progress")),
    "unmounted after two without": (*ended("none", 2), *ended("unmounted")),
}
HAND_OVERS = {
    "none": None,
    "attachable": GOOD,
    "not the newest version": replace(GOOD, version=2),
    "of a failed version": replace(GOOD, attachable=False),
    "in the second notebook": replace(GOOD, slug="train-2", version=0),
}
REFUSED: tuple[tuple[Transport, ...], ...] = tuple(
    names for count in range(4) for names in itertools.combinations(TRANSPORTS, count)
)
FOREIGN: tuple[Status | None, ...] = (None, *get_args(Status))


def futile(attempts: tuple[Attempt, ...]) -> int:
    count = 0
    for attempt in reversed([item for item in attempts if item.verdict is not None]):
        if attempt.verdict in ("progress", "completed"):
            break
        count += attempt.verdict != "skipped"
    return count


def test_what_must_never_happen_does_not_over_every_combination() -> None:
    pushes = 0
    combinations = itertools.product(
        OPEN.values(),
        ENDINGS.values(),
        HAND_OVERS.values(),
        REFUSED,
        ("auto", *TRANSPORTS),
        FOREIGN,
        (80_000.0, 7_230.0, 10.0, None),
    )
    for attempt, endings, hand_over, refused, transport, status, quota_left_s in combinations:
        if attempt and refused:
            continue  # what is open is decided before any transport is looked at
        journal = replace(NEW, attempts=endings + attempt, hand_over=hand_over, refused=refused)
        unread = None if status is None else Version(slug="train", number=4, status=status)
        look = seen(unread=unread, quota_left_s=quota_left_s)
        action = decide(journal, look, replace(SETTINGS, transport=transport))
        if not isinstance(action, Push):
            continue
        pushes += 1
        assert not attempt, "a push while another one is open"
        assert status is None, "a push beside a version that was not read"
        assert futile(endings) <= MAX_REPEATS, "a repeat too many"
        assert not endings or endings[-1].verdict not in ("hopeless", "completed")
        assert quota_left_s is None or 3600 <= action.limit_s <= quota_left_s
        assert action.version == look.latest.get(action.slug, 0) + 1
        assert set(SETTINGS.datasets) <= set(action.dataset_sources)
        if hand_over is None:
            assert (action.transport, action.expect_iteration, action.kernel_sources) == (None, None, ())
            continue
        assert action.expect_iteration == hand_over.iteration, "a session that may start anywhere"
        assert action.transport not in refused
        assert transport in ("auto", action.transport)
        if action.transport == "dataset":
            raise AssertionError("the data set does not hold the checkpoint yet")
        assert action.kernel_sources == (f"alice/{hand_over.slug}",)
        assert hand_over.attachable
        assert look.latest[hand_over.slug] == hand_over.version
        assert (action.slug == hand_over.slug) == (action.transport == "self")
    assert pushes > 100


@pytest.mark.parametrize("attempt", OPEN, ids=str)
@pytest.mark.parametrize("status", FOREIGN)
@pytest.mark.parametrize("landed", [None, 4, 5])
def test_what_is_open_comes_before_everything_else(
    attempt: str, status: Status | None, landed: int | None
) -> None:
    if not OPEN[attempt]:
        return
    journal = replace(NEW, attempts=OPEN[attempt], hand_over=GOOD)
    where = None if landed is None else ("train", landed)
    action = decide(journal, seen(status=status or "unknown", landed=where), SETTINGS)
    expected: dict[str, type[Action]] = {
        "intended just now": Wait,
        "intended long ago": Remember,
        "landed": Wait,
        "landed days ago": Stop,
    }
    if landed is not None:
        assert isinstance(action, Remember)
        assert action.journal == journal.landed(landed)
    elif attempt.startswith("landed"):
        assert isinstance(action, Fetch if status in {*ENDED, "gone"} else expected[attempt])
    else:
        assert isinstance(action, expected[attempt])


def test_pushes_that_come_to_nothing_are_not_repeated_forever() -> None:
    journal = replace(NEW, attempts=OPEN["intended long ago"])
    for rejected in range(20):
        assert isinstance(decide(replace(NEW, rejected_pushes=rejected), seen(), SETTINGS), Push)
        action = decide(journal, seen(), SETTINGS)
        assert isinstance(action, Remember)
        assert action.journal.retry_s > NOW
        journal = replace(action.journal, retry_s=0.0, attempts=OPEN["intended long ago"])
    assert journal.rejected_pushes == 20
    assert isinstance(decide(replace(journal, attempts=()), seen(), SETTINGS), Stop)


@pytest.mark.parametrize("on", ["capacity", "quota"])
def test_what_comes_by_itself_is_waited_for_however_often(on: Literal["capacity", "quota"]) -> None:
    journal = NEW
    for _ in range(100):
        intended = journal.intending(Attempt(slug="train", version=4, intended_s=NOW))
        journal = intended.forgotten(retry_s=NOW + 60.0, retry_on=on)
        action = decide(journal, seen(), SETTINGS)
        assert isinstance(action, Wait)
        assert (action.on, action.seconds) == (on, 60.0)
    assert isinstance(decide(replace(journal, retry_s=NOW), seen(), SETTINGS), Push)


def test_a_time_that_a_wrong_clock_has_set_is_not_waited_for() -> None:
    assert isinstance(decide(replace(NEW, retry_s=NOW + 1e9), seen(), SETTINGS), Push)
    for hours, waits in ((48, True), (49, False)):
        action = decide(replace(NEW, retry_s=NOW + 3600.0 * hours), seen(), SETTINGS)
        assert isinstance(action, Wait) is waits
    for changes in ({"look_s": NOW + 1e9, "landed": True}, {"intended_s": NOW + 1e9}):
        attempt = Attempt(slug="train", version=4, **changes)  # type: ignore[arg-type]
        action = decide(replace(NEW, attempts=(attempt,)), seen(status="complete"), SETTINGS)
        assert isinstance(action, (Fetch, Remember))


def test_a_wedged_session_stops_the_relay_and_nothing_is_pushed_beside_it() -> None:
    action = decide(replace(NEW, attempts=OPEN["landed days ago"]), seen(status="running"), SETTINGS)
    assert isinstance(action, Stop)
    assert action.exit_code == EXIT_MACHINE
    assert "relay cancel" in action.remedy


@pytest.mark.parametrize(
    ("journal", "changes", "settings", "code", "says"),
    [
        (replace(NEW, attempts=ended("completed"), hand_over=GOOD), {}, {}, EXIT_DONE, "The run is complete"),
        (replace(NEW, hand_over=GOOD), {}, {"until": 800}, EXIT_DONE, "Iteration 800 is reached"),
        (replace(NEW, attempts=ended("progress", 2)), {}, {"max_sessions": 2}, EXIT_DONE, "2 session"),
        (replace(NEW, attempts=ended("none", 3)), {}, {}, EXIT_TRAINING, "3 sessions in a row"),
        (replace(NEW, attempts=ended("unmounted", 3)), {}, {}, EXIT_CHECKPOINT, "3 sessions in a row"),
        (replace(NEW, attempts=ended("hopeless")), {}, {}, EXIT_TRAINING, "cannot go on: told"),
        (NEW, {"missing": ("data set alice/kit",)}, {}, EXIT_USAGE, "no data set alice/kit"),
        (replace(NEW, hand_over=replace(GOOD, attachable=False)), {}, {"transport": "self"},
         EXIT_CHECKPOINT, "no way to hand on iteration 800"),
    ],
)  # fmt: skip
def test_it_stops_with_the_reason(
    journal: Journal, changes: dict[str, object], settings: dict[str, object], code: int, says: str
) -> None:
    action = decide(journal, seen(**changes), replace(SETTINGS, **settings))  # type: ignore[arg-type]
    assert isinstance(action, Stop)
    assert action.exit_code == code
    assert says in action.reason


def test_a_session_that_made_no_progress_is_repeated_twice() -> None:
    for number, is_repeated in ((1, True), (2, True), (3, False)):
        action = decide(replace(NEW, attempts=ended("none", number)), seen(), SETTINGS)
        assert isinstance(action, Push) is is_repeated


def test_auto_alternates_and_goes_by_the_data_set_once_that_did_not_do() -> None:
    by_pingpong = decide(replace(NEW, hand_over=GOOD), seen(), SETTINGS)
    assert isinstance(by_pingpong, Push)
    assert (by_pingpong.slug, by_pingpong.version) == ("train-2", 1)
    assert by_pingpong.kernel_sources == ("alice/train",)
    refused = replace(NEW, hand_over=GOOD, refused=("pingpong",))
    assert decide(refused, seen(), SETTINGS) == Store(hand_over=GOOD)
    by_dataset = decide(replace(refused, stored_iteration=800), seen(), SETTINGS)
    assert isinstance(by_dataset, Push)
    assert (by_dataset.kernel_sources, by_dataset.dataset_sources) == ((), ("alice/kit", "alice/saved"))


def test_self_is_taken_only_where_it_is_asked_for() -> None:
    asked = replace(SETTINGS, transport="self")
    action = decide(replace(NEW, hand_over=GOOD), seen(), asked)
    assert isinstance(action, Push)
    assert (action.slug, action.kernel_sources) == ("train", ("alice/train",))
    second = replace(NEW, hand_over=replace(GOOD, slug="train-2"))
    action = decide(second, seen(latest={"train": 4, "train-2": 3}), asked)
    assert isinstance(action, Push)
    assert (action.slug, action.version, action.kernel_sources) == ("train-2", 4, ("alice/train-2",))


def test_what_another_notebook_left_is_gone_on_with_in_the_relays_own() -> None:
    journal = replace(NEW, hand_over=replace(GOOD, slug="elsewhere"), stored_iteration=800)
    action = decide(journal, seen(), replace(SETTINGS, transport="dataset"))
    assert isinstance(action, Push)
    assert (action.slug, action.version) == ("train", 4)


def test_a_config_that_ends_later_than_the_run_is_told_of_with_the_option() -> None:
    journal = replace(NEW, attempts=ended("completed"), hand_over=GOOD)
    says = []
    for later, before in ((1600, 800), (1600, 0), (800, 800), (None, 800)):
        settings = replace(SETTINGS, config_max_iters=later)
        action = decide(replace(journal, max_iters=before), seen(), settings)
        assert isinstance(action, Stop)
        says.append(action.reason.partition(" The config now ends at ")[2])
    assert says == [
        "1600, later than the run did. To go on, run the relay with --extend-to 1600.",
        "",
        "",
        "",
    ]


def test_what_follows_a_session_that_failed_goes_by_the_data_set_for_good() -> None:
    failed = replace(GOOD, version=4, iteration=900, attachable=False)
    journal = replace(NEW, hand_over=GOOD).intending(Attempt(slug="train", version=4, token="a", landed=True))
    journal = journal.closed(Outcome(status="error", verdict="progress", hand_over=failed))
    journal = replace(journal, dataset_read=True)
    assert decide(journal, seen(latest={"train": 4}), SETTINGS) == Store(hand_over=failed)
    later = replace(GOOD, version=5, iteration=1000)
    journal = journal.intending(Attempt(slug="train", version=5, token="b", landed=True))
    journal = journal.closed(Outcome(status="complete", verdict="progress", hand_over=later))
    journal = replace(journal, dataset_read=True)
    assert decide(journal, seen(latest={"train": 5}), SETTINGS) == Store(hand_over=later)


def test_an_upload_is_waited_for_and_repeated_and_given_up_in_the_end() -> None:
    journal = replace(NEW, hand_over=GOOD, refused=("pingpong",))
    journal = replace(journal, upload=Upload(iteration=800, sizes={}, since_s=NOW - 60.0))
    assert decide(journal, seen(stored="there"), SETTINGS) == Remember(journal=journal.stored(800))
    assert decide(journal, seen(stored="wrong"), SETTINGS) == Store(hand_over=GOOD)
    waits = decide(journal, seen(stored="not yet"), SETTINGS)
    assert isinstance(waits, Wait)
    assert waits.on == "dataset"
    often = replace(journal, upload=Upload(iteration=800, sizes={}, since_s=NOW - 60.0, tries=3))
    assert isinstance(decide(often, seen(stored="wrong"), SETTINGS), Stop)


def test_versions_of_others_are_followed_or_waited_for_before_anything_else() -> None:
    ours = Version(slug="train", number=4, status="running", pushed_by_relay=True)
    for version in (
        ours,
        replace(ours, status="complete", pushed_by_relay=False),
    ):
        assert decide(replace(NEW, hand_over=GOOD), seen(unread=version), SETTINGS) == Follow(version=version)
    saved = decide(replace(NEW, hand_over=GOOD), seen(unread=replace(ours, status="new")), SETTINGS)
    assert isinstance(saved, Remember)
    assert (saved.journal.open, saved.journal.attempts[-1].verdict) == (None, "skipped")
    by_hand = replace(ours, pushed_by_relay=False)
    waits = decide(replace(NEW, hand_over=GOOD), seen(unread=by_hand), SETTINGS)
    assert isinstance(waits, Wait)
    assert (waits.on, "which the relay did not push" in waits.reason) == ("busy", True)


def test_pushes_that_make_another_run_are_not_repeated_for_ever() -> None:
    own = tuple(replace(item, verdict="skipped") for item in ended("none", 3))
    stop = decide(replace(NEW, attempts=own, hand_over=GOOD), seen(), SETTINGS)
    assert isinstance(stop, Stop)
    assert "3 sessions in a row made no progress" in stop.reason
    others = tuple(replace(item, found=True) for item in own)
    assert isinstance(decide(replace(NEW, attempts=others, hand_over=GOOD), seen(), SETTINGS), Push)


def test_a_data_set_without_its_notebooks_needs_a_persons_consent() -> None:
    fresh = replace(NEW, dataset_read=False)
    stop = decide(fresh, seen(latest={"train": 0, "train-2": 0}, offered=GOOD), SETTINGS)
    assert isinstance(stop, Stop)
    assert (stop.exit_code, stop.consent) == (EXIT_CHECKPOINT, True)
    assert "alice/saved holds iteration 800 of a run" in stop.reason
    assert isinstance(decide(fresh.consenting(), seen(), SETTINGS), Push)
    assert decide(fresh, seen(), SETTINGS) == Remember(journal=replace(fresh, dataset_read=True))


def test_the_data_set_is_looked_at_after_each_session() -> None:
    journal = replace(NEW, attempts=ended("none"), dataset_read=False)
    told = decide(journal, seen(offered=GOOD), SETTINGS)
    assert isinstance(told, Remember)
    assert told.says == "The data set alice/saved holds iteration 800 of this run."
    noted = told.journal
    assert (noted.hand_over, noted.num_futile) == (GOOD, 0)
    assert isinstance(decide(noted, seen(), SETTINGS), Push)


@pytest.mark.parametrize(
    "attempt",
    [
        Attempt(slug="train", version=1, landed=True, verdict="none", trained=True),
        Attempt(slug="train", version=1, landed=True, verdict="none", expect_iteration=500),
    ],
)
def test_nothing_is_started_below_what_was_reached_without_consent(attempt: Attempt) -> None:
    journal = replace(NEW, attempts=(attempt,))
    stop = decide(journal, seen(), SETTINGS)
    assert isinstance(stop, Stop)
    assert (stop.exit_code, stop.consent) == (EXIT_CHECKPOINT, True)
    assert isinstance(decide(journal.forgiving(), seen(), SETTINGS), Stop)
    assert isinstance(decide(journal.consenting(), seen(), SETTINGS), Push)


def test_an_output_in_doubt_is_looked_at_later_and_given_up_after_half_a_day() -> None:
    attempt = Attempt(
        slug="train", version=4, token="a", landed=True, status="error", ended_s=NOW - 60.0, look_s=NOW + 30.0
    )
    waits = decide(replace(NEW, attempts=(attempt,)), seen(status="error"), SETTINGS)
    assert isinstance(waits, Wait)
    assert (waits.on, waits.seconds) == ("output", 30.0)
    assert decide(replace(NEW, attempts=(attempt,)), seen(status="gone"), SETTINGS) == waits
    looks = decide(replace(NEW, attempts=(replace(attempt, look_s=NOW),)), seen(status="error"), SETTINGS)
    assert looks == Fetch(status="error")
    unseen = replace(attempt, look_s=NOW, ended_s=NOW - 12 * 3600.0)
    assert isinstance(decide(replace(NEW, attempts=(unseen,)), seen(status="error"), SETTINGS), Fetch)
    unseen = replace(unseen, ended_s=NOW - 12 * 3600.0 - 1.0)
    stop = decide(replace(NEW, attempts=(unseen,)), seen(status="error"), SETTINGS)
    assert isinstance(stop, Stop)
    assert "cannot be seen" in stop.reason
    found = replace(
        unseen, doubt="no record"
    )  # a look that found something is told apart from one that failed
    assert isinstance(decide(replace(NEW, attempts=(found,)), seen(status="error"), SETTINGS), Fetch)


def test_the_quota_is_waited_for_until_it_is_renewed() -> None:
    action = decide(NEW, seen(quota_left_s=100.0, quota_renews_s=NOW + 600.0), SETTINGS)
    assert isinstance(action, Wait)
    assert (action.on, action.seconds) == ("quota", 660.0)
    assert "it is renewed" in action.reason
    for renews_s in (NOW - 600.0, None):  # a moment that is over is no word on the next
        action = decide(NEW, seen(quota_left_s=100.0, quota_renews_s=renews_s), SETTINGS)
        assert isinstance(action, Wait)
        assert ("renewed" in action.reason, action.seconds) == (False, 3600.0)


def test_pauses_are_shorter_alike_where_a_rehearsal_looks_more_often() -> None:
    pauses = [replace(SETTINGS, poll_s=poll_s).scaled(600.0) for poll_s in (120.0, 60.0, 6.0)]
    assert pauses == [600.0, 600.0, 60.0]


def test_the_limit_that_kaggle_is_told_is_below_its_own() -> None:
    action = decide(NEW, seen(), replace(SETTINGS, session_limit_s=12 * 3600.0))
    assert isinstance(action, Push)
    assert action.limit_s == 12 * 3600.0 - 60.0


def test_a_session_is_shortened_to_the_quota_that_is_left() -> None:
    action = decide(NEW, seen(quota_left_s=2 * 3600 + 59.0), SETTINGS)
    assert isinstance(action, Push)
    assert action.limit_s == 2 * 3600


def test_a_session_of_less_than_an_hour_is_worth_waiting_for_the_quota() -> None:
    action = decide(NEW, seen(quota_left_s=3600.0), SETTINGS)
    assert isinstance(action, Push)
    assert action.limit_s == 3600.0
    action = decide(NEW, seen(quota_left_s=3599.0), SETTINGS)
    assert isinstance(action, Wait)
    assert (action.on, action.seconds) == ("quota", 3600.0)


def test_a_push_whose_answer_was_lost_may_turn_up_for_half_an_hour() -> None:
    for age_s, kind in ((1799.0, Wait), (1800.0, Remember)):
        attempt = Attempt(slug="train", version=4, intended_s=NOW - age_s)
        assert isinstance(decide(replace(NEW, attempts=(attempt,)), seen(), SETTINGS), kind)


def test_a_session_is_wedged_fourteen_hours_after_its_limit() -> None:
    for late_s, kind in ((0.0, Wait), (1.0, Stop)):
        began_s = NOW - 3600.0 - 14 * 3600.0 - late_s
        attempt = Attempt(slug="train", version=4, intended_s=began_s, landed=True, limit_s=3600.0)
        action = decide(replace(NEW, attempts=(attempt,)), seen(status="running"), SETTINGS)
        assert isinstance(action, kind)


def test_failures_that_were_forgiven_no_longer_count() -> None:
    journal = replace(NEW, attempts=ended("none", 3), hand_over=GOOD, refused=("self", "pingpong", "dataset"))
    assert isinstance(decide(journal, seen(), SETTINGS), Stop)
    assert isinstance(decide(journal.forgiving(), seen(), SETTINGS), Push)


# -- whole runs, against a Kaggle that is only thought


class ThoughtKaggle:
    """Does at once what the relay decides, with faults that are drawn."""

    def __init__(self, draw: st.DataObject, settings: Settings) -> None:
        self.draw = draw.draw
        self.settings = settings
        self.now_s = NOW
        self.journal = NEW
        self.versions: dict[tuple[str, int], Status] = {}
        self.reached: dict[tuple[str, int], int] = {}
        self.latest = {"train": 0, "train-2": 0}
        self.pushed = 0

    def look(self) -> Observation:
        attempt = self.journal.open
        landed = None
        if attempt and not attempt.landed and self.latest[attempt.slug] >= attempt.version:
            landed = (attempt.slug, attempt.version)
        status: Status = "unknown"
        if attempt and attempt.landed:
            status = self.versions[attempt.slug, attempt.version]
        upload = self.journal.upload
        stored = self.draw(st.sampled_from(["there", "not yet", "wrong"])) if upload else None
        return Observation(
            now_s=self.now_s, latest=dict(self.latest), status=status, landed=landed, stored=stored
        )

    def act(self, action: Action) -> None:
        if isinstance(action, Wait):
            self.now_s += action.seconds
            for key, status in self.versions.items():
                if status in ACTIVE:
                    self.versions[key] = self.draw(
                        st.sampled_from(["queued", "running", "unknown", "complete", "error", "cancelled"])
                    )
        elif isinstance(action, Push):
            self.push(action)
        elif isinstance(action, Remember):
            self.journal = action.journal
        elif isinstance(action, Store):
            upload = self.journal.upload
            tries = upload.tries + 1 if upload else 1
            upload = Upload(iteration=action.hand_over.iteration, sizes={}, since_s=self.now_s, tries=tries)
            self.journal = replace(self.journal, upload=upload)
        elif isinstance(action, Fetch):
            self.fetch(action)

    def push(self, action: Push) -> None:
        assert not any(status in ACTIVE for status in self.versions.values())
        attempt = Attempt(
            slug=action.slug, version=action.version, transport=action.transport, intended_s=self.now_s,
            token=f"push-{self.now_s}-{self.pushed}",
            expect_iteration=action.expect_iteration, limit_s=action.limit_s,
        )  # fmt: skip
        self.journal = self.journal.intending(attempt)
        fate = self.draw(st.sampled_from(["answered", "answer lost", "never arrived", "no room"]))
        if fate in ("answered", "answer lost"):
            self.pushed += 1
            self.latest[action.slug] = action.version
            self.versions[action.slug, action.version] = "queued"
        if fate == "answered":
            self.journal = self.journal.landed(action.version)
        elif fate == "no room":
            self.journal = self.journal.forgotten(retry_s=self.now_s + 600.0, retry_on="capacity")

    def fetch(self, action: Fetch) -> None:
        attempt = self.journal.open
        assert attempt is not None
        before = self.journal.hand_over.iteration if self.journal.hand_over else 0
        gained = self.draw(st.sampled_from([0, 100, 100, 300]))
        attachable = action.status == "complete"
        if action.status == "error" and self.draw(st.booleans()):
            self.journal = self.journal.closed(Outcome(status="error", verdict="unmounted"))
            return
        hand_over = replace(
            GOOD, slug=attempt.slug, version=attempt.version, iteration=before + gained, attachable=attachable
        )
        verdict: Verdict = "progress" if gained else "none"
        if before + gained >= 1000:
            verdict = "completed"
        outcome = Outcome(status=action.status, verdict=verdict, hand_over=hand_over if gained else None)
        self.journal = self.journal.closed(outcome)


@hypothesis_settings(max_examples=300, deadline=None)
@given(data=st.data(), transport=st.sampled_from(["auto", *TRANSPORTS]))
def test_any_run_ends_and_no_session_is_ever_pushed_beside_another(
    data: st.DataObject, transport: Transport
) -> None:
    kaggle = ThoughtKaggle(data, replace(SETTINGS, transport=transport, poll_s=3600.0))
    for _ in range(3000):
        action = decide(kaggle.journal, kaggle.look(), kaggle.settings)
        if isinstance(action, Stop):
            break
        kaggle.act(action)
    else:
        raise AssertionError("the relay never ends")
    landed = [item for item in kaggle.journal.attempts if item.landed]
    assert len(landed) == kaggle.pushed, "a push that the journal does not know"
