"""Accidents of real weeks, a few lines each; what must hold in all of them is checked by ``relay_weeks``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.kaggle_server import OWNER, QUOTA_S, Fault, Version
from support.kaggle_sessions import ScriptedNotebook
from support.relay_weeks import SESSION_S, SLUG, Ended, Week, week

from mapsage_kaggle.errors import (
    EXIT_CHECKPOINT,
    EXIT_DONE,
    EXIT_MACHINE,
    EXIT_TRAINING,
    EXIT_USAGE,
)
from mapsage_kaggle.relay.decide import Wait

HOUR = 3600.0
SAVED = f"{OWNER}/{SLUG}-checkpoints"


def nothing(_: Week) -> None:
    """All is well."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens to a relay, and how it ends.

    Attributes:
        script: How the sessions end, one after the other; all is well after the last.
        happens: What is prepared before it begins.
        options: The relay's.
        code: The exit code.
        says: What the last sentence holds.
        spans: From which iteration to which the sessions trained; None where that does not matter.
        pushes: How many sessions the relay pushed.
    """

    script: Sequence[str] = ()
    happens: Callable[[Week], object] = nothing
    options: Mapping[str, Any] = field(default_factory=dict)
    code: int = EXIT_DONE
    says: str = "The run is complete, at iteration 400."
    spans: Sequence[tuple[int, int]] | None = ((0, 100), (100, 200), (200, 300), (300, 400))
    pushes: int | None = None


def faults(*found: Fault) -> Callable[[Week], None]:
    return lambda found_week: found_week.server.faults.extend(found)


def each(method: str, kind: str, times: int, *numbers: int) -> Callable[[Week], None]:
    return faults(*(Fault(method=method, kind=kind, first=first, times=times) for first in numbers))


def with_server(**values: Any) -> Callable[[Week], None]:
    def happens(found: Week) -> None:
        for name, value in values.items():
            setattr(found.server, name, value)

    return happens


def after(hours: float, act: Callable[[Week], object]) -> Callable[[Week], None]:
    return lambda found: found.clock.later(hours * HOUR, lambda: act(found))


def with_quota(used_s: float) -> Callable[[Week], None]:
    return with_server(quota_s=QUOTA_S, quota_used_s=used_s)


def by_hand(run_id: str = "a-run", *, script: Sequence[str] = (), slug: str = SLUG) -> Callable[[Week], None]:
    """A person attaches the newest output and runs the notebook, while no relay looks."""

    def happens(found: Week) -> None:
        notebook = ScriptedNotebook(
            takes_s=HOUR, run_id=run_id, script=list(script), done=found.notebook.done, server=found.server
        )
        sources = [f"{OWNER}/{SLUG}"] if run_id == "a-run" else []
        found.server.push_by_hand(slug, sources, notebook)

    return happens


ONE_LESS = ((0, 100), (100, 200), (150, 250), (250, 350), (350, 400))
REPEATED = ((0, 100), (100, 200), (100, 200), (200, 300), (300, 400))

SCENARIOS: dict[str, Scenario] = {
    "all is well": Scenario(pushes=4),
    "by self, where that is asked for": Scenario(
        options={"transport": "self"}, happens=with_server(refuse_own_output=False), pushes=4
    ),
    "by the data set": Scenario(options={"transport": "dataset"}, pushes=4),
    # -- unknown is not none
    "listed ten minutes late": Scenario(script=["late 10m", "ok", "late 10m"], pushes=4),
    "cancelled, listed in parts": Scenario(script=["ok", "cancelled late"], pushes=4),
    "no listing for eight hours": Scenario(
        happens=each("ListKernelSessionOutput", "503", 25, 1), pushes=4
    ),
    "no listing for days": Scenario(
        happens=each("ListKernelSessionOutput", "503", 10**6, 1), code=EXIT_MACHINE,
        says="cannot be seen since it ended", spans=[(0, 100)], pushes=1,
    ),
    "the newest checkpoint answers 503 three times": Scenario(
        script=["ok", "killed"], happens=each("download", "503", 3, 5), pushes=4
    ),
    "the newest checkpoint comes in halves": Scenario(
        script=["killed"], happens=each("download", "drop", 2, 3), pushes=4
    ),
    "a record beyond the listing's length": Scenario(happens=with_server(listing_length=2), pushes=4),
    "nothing listed at all but by name": Scenario(
        script=["ok", "killed"], happens=with_server(listing_length=0), pushes=4
    ),
    "a session that trained and left nothing": Scenario(
        script=["killed, no output"], code=EXIT_CHECKPOINT, says="may have trained, and seems to have left",
        spans=[(0, 100)], pushes=1,
    ),
    "nor a log of it": Scenario(
        script=["killed, no log"], code=EXIT_CHECKPOINT, says="may have trained, and seems to have left",
        spans=[(0, 100)], pushes=1,
    ),
    "crashed, and what is missing is refused": Scenario(
        script=["ok", "crashed"], happens=with_server(missing_code=403), pushes=5
    ),
    "answers that cannot be read": Scenario(
        happens=lambda found: [
            each(method, "odd", 1, 1, 3)(found)
            for method in ("GetKernel", "SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput")
        ],
        pushes=4,
    ),
    "the same after a good one": Scenario(script=["ok", "killed, no output"], spans=REPEATED, pushes=5),
    "what it uploaded before it was killed": Scenario(script=["ok", "uploads"], pushes=4),
    "the first one uploaded before it was killed": Scenario(script=["uploads"], pushes=4),
    "a damaged checkpoint": Scenario(script=["ok", "damaged"], spans=ONE_LESS, pushes=5),
    "a checkpoint that was not saved": Scenario(script=["ok", "truncated"], spans=ONE_LESS, pushes=5),
    "failed with a checkpoint": Scenario(script=["ok", "failed after progress"], pushes=4),
    # -- how sessions end
    "ended early": Scenario(
        script=["ok", "early"], says="The run has ended early, at iteration 200", spans=None, pushes=2
    ),
    "crashed twice": Scenario(script=["ok", "crashed", "crashed"], pushes=6),
    "no progress again and again": Scenario(
        script=["ok", *["no progress"] * 9], code=EXIT_TRAINING, says="3 sessions in a row made no progress",
        spans=None, pushes=4,
    ),
    "no GPU": Scenario(
        script=["no gpu"], code=EXIT_MACHINE, says="phone number is not verified", spans=[], pushes=1
    ),
    "no Internet": Scenario(
        script=["no internet"], code=EXIT_MACHINE, says="no wheels are attached", spans=[], pushes=1
    ),
    "wedged": Scenario(
        script=["ok", "wedged"], code=EXIT_MACHINE, says="relay cancel", spans=[(0, 100)], pushes=2
    ),
    # -- pushes
    "an answer lost": Scenario(happens=each("SaveKernel", "lost", 1, 1, 3), pushes=4),
    "an answer lost and told late": Scenario(
        happens=lambda found: (
            with_server(stale_versions=1200.0)(found), each("SaveKernel", "lost", 1, 1, 2)(found)
        ),
        pushes=4,
    ),
    "an answer later than the connection": Scenario(happens=each("SaveKernel", "late", 1, 1, 2), pushes=4),
    "a push that never arrived": Scenario(happens=each("SaveKernel", "drop", 1, 2), pushes=4),
    "filed under another slug": Scenario(
        happens=after(1, with_server(files_under="mapsage-train-v2")), pushes=4
    ),
    "filed under another slug, its answer lost": Scenario(
        happens=lambda found: (
            after(1, with_server(files_under="mapsage-train-v2"))(found),
            each("SaveKernel", "lost", 1, 2)(found),
        ),
        pushes=4,
    ),
    "a source refused": Scenario(
        happens=with_server(refused_sources={f"{OWNER}/{SLUG}"}), spans=None, pushes=5
    ),
    "no free place for two days": Scenario(
        happens=lambda found: with_server(others_until_s=found.clock.now() + 48 * HOUR)(found), pushes=4
    ),
    # -- the quota
    "the quota used up": Scenario(happens=with_quota(QUOTA_S), spans=None, pushes=5),
    "a rest of the quota": Scenario(happens=with_quota(QUOTA_S - 2 * HOUR - 60), spans=None),
    "a run longer than a week's quota": Scenario(
        happens=with_quota(0.0), spans=((0, 100), (100, 200), (200, 260), (260, 360), (360, 400)), pushes=5
    ),
    "the quota not told": Scenario(happens=with_server(quota_s=None), pushes=4),
    "the quota's service broken": Scenario(
        happens=each("GetAcceleratorQuotaStatistics", "500", 10**6, 1), pushes=4
    ),
    # -- credentials and refusals
    "a token expired in the middle": Scenario(
        happens=lambda found: [after(hours, with_server(stale_token=True))(found) for hours in (3, 13, 26)],
        pushes=4,
    ),
    **{
        f"a stray {code} to {method}": Scenario(happens=each(method, code, 1, 1, 3), pushes=4)
        for code in ("400", "401", "403")
        for method in ("SaveKernel", "ListKernelSessionOutput", "GetKernelSessionStatus", "ListDatasetFiles")
    },
    "a token without rights": Scenario(
        happens=each("SaveKernel", "403", 10**6, 1), code=EXIT_MACHINE,
        says="Create a token with rights", spans=[], pushes=0,
    ),
    "a bare 400 for ever": Scenario(
        happens=each("SaveKernel", "400", 10**6, 2), code=EXIT_MACHINE, says="later.", spans=[(0, 100)],
        pushes=1,
    ),
    "a suspended account": Scenario(
        happens=after(1, with_server(push_error="Your account has been suspended.")), code=EXIT_MACHINE,
        says="suspended", spans=[(0, 100)], pushes=1,
    ),
    "maintenance for two days": Scenario(
        happens=each("*", "503", 90, 40), pushes=4
    ),
    "asked to wait": Scenario(happens=each("*", "429 7200", 6, 20), pushes=4),
    # -- notebooks and data sets
    "five quick saves before": Scenario(
        happens=lambda found: [found.server.quick_save(SLUG) for _ in range(5)], pushes=4
    ),
    "renamed while it runs": Scenario(
        happens=after(2, lambda found: found.server.rename(SLUG, "my-own-name")), pushes=4
    ),
    "deleted while it runs": Scenario(
        happens=after(2, lambda found: found.server.versions.pop(SLUG)), code=EXIT_CHECKPOINT,
        says="may have trained", spans=None, pushes=1,
    ),
    "deleted after a good one": Scenario(
        happens=after(14, lambda found: found.server.versions.pop(f"{SLUG}-2")), spans=REPEATED, pushes=5
    ),
    "the first version of the data set failed": Scenario(
        script=["killed"], happens=with_server(dataset_fates=["failed"]), pushes=4
    ),
    "a file of the upload failed": Scenario(
        script=["ok", "killed"], happens=with_server(dataset_fates=["iter", "session"]), pushes=4
    ),
    "uploads that never come out whole": Scenario(
        script=["ok", "killed"], happens=with_server(dataset_fates=["iter"] * 9), code=EXIT_MACHINE,
        says="did not come out whole", spans=[(0, 100), (100, 200)], pushes=2,
    ),
    "a data set slower than two hours": Scenario(
        options={"transport": "dataset"}, happens=with_server(processing_s=2.2 * HOUR), pushes=4
    ),
    "ready, and still the version before": Scenario(
        options={"transport": "dataset"}, happens=with_server(ready_early=True, processing_s=1500.0), pushes=4
    ),
    # -- by others
    "a person goes on by hand": Scenario(
        happens=after(11.6, by_hand(slug=f"{SLUG}-2")), pushes=3
    ),
    "another run by hand, further than this": Scenario(
        happens=after(11.6, by_hand("another", script=["ok"])), spans=None, pushes=4
    ),
    "a clock that jumps": Scenario(
        happens=lambda found: [
            after(5, lambda week: setattr(week.clock, "wrong_s", 9e5))(found),
            after(20, lambda week: setattr(week.clock, "wrong_s", -9e5))(found),
        ],
        pushes=4,
    ),
}  # fmt: skip


@pytest.mark.slow(scope_s=110)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_relay_comes_through(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    with week(tmp_path, **scenario.options) as found:
        found.notebook.script = list(scenario.script)
        scenario.happens(found)
        ended = found.run()
        story = found.output.getvalue()
        assert (ended.exit_code, scenario.says in ended.text) == (scenario.code, True), f"{ended}\n{story}"
        if scenario.spans is not None:
            trained = [(start, end) for start, end, mode in found.notebook.done if mode != "refused"]
            assert trained == list(scenario.spans), story
        if scenario.pushes is not None:
            assert len(found.pushes) == scenario.pushes, story


# -- more than one start, more than one machine


def start(found: Week, machine: str = "laptop", *, hours: float = 14.0, **how: bool) -> Ended | None:
    """Let a scheduler start a relay every hour for so long, or until it ends."""
    until_s = found.clock.now_s + hours * HOUR
    while found.clock.now_s < until_s:
        ended = found.once(machine, **how)
        if isinstance(ended, Ended):
            return ended
        assert isinstance(ended, Wait)
        found.clock.sleep(HOUR)
        how = {}
    return None


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Week]:
    with week(tmp_path) as made:
        yield made


def spans(found: Week) -> list[tuple[int, int]]:
    return [(start, end) for start, end, _ in found.notebook.done]


FOUR = [(0, 100), (100, 200), (200, 300), (300, 400)]


@pytest.mark.slow
def test_a_scheduler_that_starts_it_every_hour_gets_to_the_end(found: Week) -> None:
    ended = start(found, hours=100.0)
    assert ended is not None
    assert (ended.exit_code, spans(found)) == (EXIT_DONE, FOUR)


@pytest.mark.slow
@pytest.mark.parametrize("script", [[], ["ok", "killed"], ["failed after progress"], ["uploads"]], ids=str)
def test_a_scheduler_whose_disk_is_new_each_time_gets_to_the_end(found: Week, script: list[str]) -> None:
    found.notebook.script = list(script)
    for _ in range(200):
        ended = start(found, hours=3.0)
        if ended is not None:
            break
        if found.journal().upload is None and not (found.journal().open and found.journal().open.doubt):
            found.lose()
    assert ended is not None
    assert (ended.exit_code, spans(found)) == (EXIT_DONE, FOUR), found.output.getvalue()


@pytest.mark.slow
def test_a_laptop_that_comes_back_reads_what_another_machine_has_pushed(found: Week) -> None:
    assert start(found, hours=13.0) is None
    assert found.journal().hand_over is not None
    start(found, "server", hours=26.0)
    assert len(spans(found)) >= 3
    ended = found.run()
    assert (ended.exit_code, spans(found)) == (EXIT_DONE, FOUR), found.output.getvalue()


@pytest.mark.slow
def test_two_machines_that_take_turns_push_one_chain(found: Week) -> None:
    ended = None
    for _ in range(200):
        ended = start(found, "laptop", hours=0.9) or start(found, "server", hours=0.9)
        if ended is not None:
            break
    assert ended is not None
    assert (ended.exit_code, spans(found)) == (EXIT_DONE, FOUR), found.output.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("accident", ["quick saves", "failed sessions"])
def test_a_lost_journal_is_rebuilt_behind_any_number_of(accident: str, found: Week) -> None:
    assert start(found, hours=25.0) is None
    found.clock.sleep(12 * HOUR)
    found.lose()
    assert spans(found)[:2] == FOUR[:2]
    for _ in range(6):
        if accident == "quick saves":
            found.server.quick_save(SLUG)
            found.server.quick_save(f"{SLUG}-2")
        else:
            crashing = ScriptedNotebook(takes_s=60.0, script=["crashed"], server=found.server)
            found.server.push_by_hand(SLUG, [], crashing)
            found.clock.sleep(HOUR)
    ended = found.run()
    assert (ended.exit_code, spans(found)) == (EXIT_DONE, FOUR), found.output.getvalue()


@pytest.mark.slow
def test_notebooks_that_ran_another_config_are_stepped_over(found: Week) -> None:
    found.options["max_sessions"] = 1
    before = found.relay("server")
    before.job = replace(before.job, config="another.py")
    found.notebook.stem, found.notebook.run_id = "another", "before"
    assert before.run().exit_code == EXIT_DONE
    found.options.clear()
    found.pushes.clear()
    found.notebook = found.server.notebook = ScriptedNotebook(takes_s=SESSION_S, server=found.server)
    ended = found.run()
    assert (ended.exit_code, spans(found)) == (EXIT_DONE, FOUR), found.output.getvalue()


@pytest.mark.slow
def test_nothing_is_started_below_a_data_set_whose_notebooks_are_gone(tmp_path: Path) -> None:
    with week(tmp_path, transport="dataset") as found:
        assert start(found, hours=20.0) is None
        found.clock.sleep(12 * HOUR)
        found.lose()
        found.server.versions.clear()
        pushes = len(found.pushes)
        ended = found.run()
        assert (ended.exit_code, len(found.pushes)) == (EXIT_CHECKPOINT, pushes)
        assert "holds iteration 100 of a run" in ended.text


@pytest.mark.slow
def test_a_mark_that_says_from_iteration_n_forbids_a_fresh_start(found: Week) -> None:
    assert start(found, hours=25.0) is None
    found.clock.sleep(12 * HOUR)
    found.lose()
    for version in found.server.all_versions:
        shutil.rmtree(version.output)
        version.output.mkdir()
        version.log.clear()
    pushes = len(found.pushes)
    ended = found.run()
    assert (ended.exit_code, len(found.pushes)) == (EXIT_CHECKPOINT, pushes)
    assert "was told to go on from iteration" in ended.text or "may have trained" in ended.text


@pytest.mark.slow
def test_a_start_from_nothing_needs_a_persons_consent(found: Week) -> None:
    found.notebook.script = ["killed, no output"]
    assert found.run().exit_code == EXIT_CHECKPOINT
    assert found.run(again=True).exit_code == EXIT_CHECKPOINT
    assert len(found.pushes) == 1
    found.consented = True
    ended = found.run(again=True, from_nothing=True)
    assert (ended.exit_code, spans(found)) == (EXIT_DONE, [(0, 100), *FOUR])


@pytest.mark.slow
def test_a_complete_run_is_extended_where_that_is_asked_for(found: Week) -> None:
    ended = found.run()
    assert "To go on, run the relay with --extend-to 480." in ended.text
    found.notebook.max_iters = 480
    found.options["extend_to"] = 480
    ended = found.run()
    assert (ended.exit_code, spans(found)[4:]) == (EXIT_DONE, [(400, 480)]), found.output.getvalue()
    assert found.server.all_versions[-1].parameters["EXTEND_TO"] == 480 or any(
        version.parameters["EXTEND_TO"] == 480 for version in found.server.all_versions
    )
    assert found.run().exit_code == EXIT_DONE
    assert len(found.pushes) == 5


@pytest.mark.slow
def test_overrides_are_kept_and_told_to_each_session(found: Week) -> None:
    found.options["overrides"] = ["a=1"]
    start(found, hours=13.0)
    del found.options["overrides"]
    assert found.run().exit_code == EXIT_DONE
    assert {tuple(version.parameters["OVERRIDES"]) for version in found.server.all_versions} == {("a=1",)}


@pytest.mark.slow
def test_a_push_in_between_is_read_before_the_next_one(found: Week) -> None:
    def in_between(version: Version) -> None:
        if len(found.pushes) == 1:
            found.server.on_push = lambda version: None
            other = ScriptedNotebook(takes_s=13 * HOUR, per_session=200, done=found.notebook.done)
            found.server.push_by_hand(f"{SLUG}-2", [f"{OWNER}/{SLUG}"], other, marked=True)
            version.number, version.folder = version.number + 1, version.folder.with_name("ours")
            found.server.on_push = found.check_push
        found.check_push(version)

    found.server.on_push = in_between
    ended = found.run()
    assert ended.exit_code == EXIT_DONE, found.output.getvalue()
    assert spans(found) == [(0, 100), (100, 280), (100, 200), (280, 380), (380, 400)]


def test_a_disk_that_is_full_is_told_in_a_sentence(found: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/state/journal.json.tmp")

    assert found.once() is not None
    found.clock.sleep(13 * HOUR)
    monkeypatch.setattr("mapsage_kaggle.relay.journal.replace_file", full)
    ended = found.once()
    monkeypatch.undo()
    assert isinstance(ended, Ended)
    assert ended.exit_code == EXIT_MACHINE
    assert "cannot be written: No space left on device. Make room" in ended.text


def test_a_journal_that_is_a_folder_is_told_in_a_sentence(found: Week) -> None:
    (found.folder / "laptop" / "journal.json").mkdir(parents=True)
    ended = found.run()
    assert (ended.exit_code, "no readable journal" in ended.text) == (EXIT_USAGE, True)


@pytest.mark.slow
@pytest.mark.parametrize("waits_for", ["a session", "a free place", "the quota"])
def test_a_day_of_waiting_takes_less_than_sixty_requests_an_hour(waits_for: str, tmp_path: Path) -> None:
    with week(tmp_path, poll="2m") as found:
        if waits_for == "a free place":
            found.server.others_until_s = found.clock.now() + 48 * HOUR
        elif waits_for == "the quota":
            found.server.quota_s = found.server.quota_used_s = QUOTA_S
        assert found.once() is not None
        before, began_s = found.server.num_requests, found.clock.now_s
        with pytest.raises(AssertionError, match="never ends"):
            found.run(days=0.4)
        hours = (found.clock.now_s - began_s) / HOUR
        assert found.server.num_requests - before < 50 * hours
