"""Whose checkpoint is taken: the person's own, the only one there is, or none before somebody says which."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.outputs import OURS, THEIRS, World, taken

from mapsage_kaggle.checkpoints.manifest import Manifest
from mapsage_kaggle.checkpoints.runs import RunGroup, pick_run
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.records import CheckpointRef, SessionRecord


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def output(
    world: World, name: str, iteration: int, run_id: str, *, content: bytes = b"", **record: Any
) -> Path:
    """Write a whole output: checkpoint, manifest and record."""
    folder = world.root / name
    folder.mkdir(parents=True)
    file = f"iter_{iteration}.pth"
    content = content or f"{run_id} {iteration}".encode()
    path = world.add(folder, file, fingerprint=OURS, run_id=run_id, content=content)
    sha256 = world.verdicts[path].sha256 or ""
    ref = CheckpointRef(file=file, iteration=iteration, sha256=sha256, size_bytes=len(content))
    Manifest().with_file(ref).write(folder / "manifest.json")
    document = {"session_index": 1, "started_s": 1.0, **record}
    SessionRecord(run_id=run_id, fingerprint=OURS, checkpoint=ref, end_iteration=iteration, **document).write(
        folder / "session.json"
    )
    return path


def lone(world: World, name: str, iteration: int, run_id: str | None = None, **more: Any) -> Path:
    """Write a checkpoint with nothing beside it."""
    folder = world.root / name
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = OURS if run_id else None
    content = more.pop("content", f"{name} {iteration}".encode())
    return world.add(
        folder, f"iter_{iteration}.pth", fingerprint=fingerprint, run_id=run_id, content=content, **more
    )


# --- (a) whatever is named


def test_a_named_run_is_taken_before_a_higher_one(world: World) -> None:
    output(world, "mine", 223, "aaa")
    output(world, "theirs", 470, "bbb")
    choice = world.choose(run="aaa")
    assert (taken(choice), choice.notice) == ("iter_223.pth", "")
    assert any("theirs" in line and "--run bbb takes it" in line for line in choice.explanations)


def test_a_named_run_that_is_not_there_is_refused_with_those_that_are(world: World) -> None:
    output(world, "mine", 223, "aaa")
    with pytest.raises(
        CheckpointError, match=r"No checkpoint of run ccc.*was found\.\n.*mine.*run aaa"
    ) as error:
        world.choose(run="ccc")
    assert "mine (iteration 223, run aaa)" in error.value.lines[0]
    assert "leave --run out" in error.value.remedy


def test_a_named_file_is_taken_whatever_else_there_is(world: World) -> None:
    output(world, "mine", 223, "aaa")
    theirs = output(world, "theirs", 470, "bbb")
    assert taken(world.choose(resume=theirs)) == "iter_470.pth"


def test_an_unchanged_load_from_goes_on_over_three_sessions(world: World) -> None:
    start = lone(world, "temp-8000tier", 8000)
    asks = {"config_asks_resume": True, "load_from": start}
    assert taken(world.choose(**asks)) == "iter_8000.pth"

    sha256 = world.verdicts[start].sha256 or ""
    began = CheckpointRef(file=start.name, iteration=8000, sha256=sha256, size_bytes=1)
    first = {"session_index": 1, "started_s": 1.0, "start_iteration": 8000, "started_from": began}
    output(world, "first", 12000, "aaa", **first)
    assert taken(world.choose(**asks)) == "iter_12000.pth"

    earlier = SessionRecord.read(world.root / "first" / "session.json").lineage()
    output(world, "second", 16000, "aaa", session_index=2, started_s=2.0, previous=earlier)
    output(world, "stranger", 30000, "bbb")
    choice = world.choose(**asks)
    assert (taken(choice), choice.notice) == ("iter_16000.pth", "")


def test_what_an_earlier_version_began_from_is_known_by_its_iteration(world: World) -> None:
    start = lone(world, "old", 8000)
    output(world, "first", 12000, "aaa", start_iteration=8000)
    assert taken(world.choose(config_asks_resume=True, load_from=start)) == "iter_12000.pth"


@pytest.mark.parametrize(("iteration", "num_steps"), [(9000, 0), (13000, 1)])
def test_a_damaged_file_that_states_no_run_is_a_step_down_only_from_above(
    world: World, iteration: int, num_steps: int
) -> None:
    output(world, "mine", 12000, "aaa")
    torn = lone(world, "torn", iteration, verdict="rejected")
    choice = world.choose()
    assert taken(choice) == "iter_12000.pth"
    assert len(choice.steps_down) == num_steps
    assert any(line.startswith(str(torn)) and "rejected for a reason" in line for line in choice.explanations)


# --- (b) the work dir's run


def test_the_run_of_the_work_dir_is_gone_on_with(world: World) -> None:
    output(world, "mine", 223, "aaa")
    output(world, "theirs", 470, "bbb")
    assert taken(world.choose(work_dir_run="aaa")) == "iter_223.pth"


def test_a_work_dir_whose_run_left_nothing_decides_nothing(world: World) -> None:
    output(world, "mine", 223, "aaa")
    assert taken(world.choose(work_dir_run="ccc")) == "iter_223.pth"


# --- (c) the only one there is


@pytest.mark.parametrize("resume", ["auto", "require"])
@pytest.mark.parametrize("run_id", ["aaa", None])
def test_a_lone_checkpoint_is_taken_and_its_unknown_owner_told_first(
    world: World, resume: str, run_id: str | None
) -> None:
    path = lone(world, "temp-8000tier", 8000, run_id)
    choice = world.choose(resume=resume)
    assert taken(choice) == "iter_8000.pth"
    assert choice.notice == (
        f"Nothing beside {path} says whose checkpoint it is. If it is not of your run, detach {path.parent}, "
        "or start anew with --resume never."
    )


def test_following_the_notice_starts_anew(world: World) -> None:
    lone(world, "temp-8000tier", 8000)
    assert world.choose(resume="never").action == "fresh"


def test_an_output_with_its_record_needs_no_notice(world: World) -> None:
    output(world, "mine", 223, "aaa")
    assert world.choose().notice == ""


def test_a_record_beside_another_s_file_vouches_for_nothing(world: World) -> None:
    mine = output(world, "mine", 223, "aaa")
    world.verdicts[mine] = dataclasses.replace(world.verdicts[mine], run_id="bbb")
    with pytest.raises(CheckpointError, match="states run bbb, and the record beside it run aaa"):
        world.choose()


# --- (d) one with a record beside others without


@pytest.mark.parametrize("run_id", ["bbb", None])
def test_a_lone_file_of_a_stranger_is_stepped_over(world: World, run_id: str | None) -> None:
    output(world, "mine", 223, "aaa")
    theirs = lone(world, "pictures", 470, run_id)
    choice = world.choose()
    assert (taken(choice), choice.notice) == ("iter_223.pth", "")
    option = f"--run {run_id}" if run_id else f"--resume {theirs}"
    assert any(
        str(theirs) in line and f"it is of another run; {option} takes it" in line
        for line in choice.explanations
    )


def test_what_was_stepped_over_is_not_taken_where_the_own_is_damaged(world: World) -> None:
    mine = output(world, "mine", 223, "aaa")
    world.verdicts[mine] = dataclasses.replace(world.verdicts[mine], verdict="rejected", problems=("torn",))
    lone(world, "pictures", 470, "bbb")
    with pytest.raises(CheckpointError, match="was rejected"):
        world.choose()


def test_a_copy_of_the_own_file_without_its_record_is_of_the_same_run(world: World) -> None:
    path = output(world, "mine", 223, "aaa")
    lone(world, "again", 223, "aaa", content=path.read_bytes())
    choice = world.choose()
    assert (taken(choice), choice.notice) == ("iter_223.pth", "")


# --- (e) several that could be meant


def test_two_recorded_runs_are_refused_with_the_line_to_paste(world: World) -> None:
    mine, theirs = output(world, "mine", 223, "aaa"), output(world, "theirs", 470, "bbb")
    with pytest.raises(
        CheckpointError, match="of 2 runs were found, and nothing says which is yours"
    ) as error:
        world.choose()
    assert f"{mine.parent} (iteration 223, run aaa): --run aaa" in error.value.lines
    assert f"{theirs.parent} (iteration 470, run bbb): --run bbb" in error.value.lines
    assert error.value.exit_code == 3


def test_two_groups_without_a_record_are_refused(world: World) -> None:
    lone(world, "one", 100)
    two = lone(world, "two", 200)
    with pytest.raises(CheckpointError) as error:
        world.choose()
    assert f"{two.parent} (iteration 200, states no run, without its record): --resume {two}" in str(
        error.value
    )


def test_the_pasted_line_goes_on(world: World) -> None:
    output(world, "mine", 223, "aaa")
    output(world, "theirs", 470, "bbb")
    assert taken(world.choose(run="bbb")) == "iter_470.pth"


def test_identical_files_in_two_places_count_once(world: World) -> None:
    lone(world, "one", 100, content=b"the same bytes")
    lone(world, "two", 100, content=b"the same bytes")
    assert taken(world.choose()) == "iter_100.pth"


def test_a_file_that_does_not_fit_is_no_second_run(world: World) -> None:
    lone(world, "one", 100)
    lone(world, "two", 200, verdict="rejected", problems=("another model",))
    assert taken(world.choose()) == "iter_100.pth"


def test_a_run_with_another_config_is_no_second_run(world: World) -> None:
    output(world, "mine", 223, "aaa")
    other = world.output("other", fingerprint=THEIRS, run_id="bbb")
    world.add(other, "iter_900.pth", fingerprint=THEIRS, run_id="bbb")
    assert taken(world.choose()) == "iter_223.pth"


# --- (f) one run that was trained apart


def test_of_outputs_that_have_diverged_the_highest_is_taken_and_both_are_told(world: World) -> None:
    first = {"run_id": "aaa", "session_index": 1, "started_s": 1.0}
    mine = output(world, "a", 24, "aaa", session_index=2, started_s=5.0, previous=(first,))
    other = output(world, "b", 20, "aaa", session_index=2, started_s=9.0, previous=(first,))
    choice = world.choose()
    assert taken(choice) == "iter_24.pth"
    assert any(str(other) in line and str(mine) in line and "apart" in line for line in choice.steps_down)


def test_the_sessions_before_are_not_apart(world: World) -> None:
    output(world, "a", 12, "aaa", session_index=1, started_s=1.0)
    earlier = SessionRecord.read(world.root / "a" / "session.json").lineage()
    output(world, "b", 24, "aaa", session_index=2, started_s=5.0, previous=earlier)
    choice = world.choose()
    assert (taken(choice), choice.steps_down) == ("iter_24.pth", ())


def test_without_any_checkpoint_there_is_no_run_to_go_on_with() -> None:
    assert pick_run([]) is None


def test_of_one_recorded_run_beside_two_lone_ones_the_recorded_is_taken() -> None:
    groups = [
        RunGroup(key=name, run_id=name, newest=Path(name) / "x", iteration=1, recorded=name == "b")
        for name in "abc"
    ]
    found = pick_run(groups)
    assert found is not None
    assert (found.group.key, [item.key for item in found.stepped_over]) == ("b", ["a", "c"])
