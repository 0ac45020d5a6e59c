"""The ladder: which checkpoint a session starts from, and what it says about the others."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.outputs import OURS, THEIRS, World, taken

from mapsage_kaggle.checkpoints.choose import choose
from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.manifest import Manifest
from mapsage_kaggle.checkpoints.scan import FoundCheckpoint, scan
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.text import choice_text
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.records import CheckpointRef


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- the newest that passes -------------------------------------------------------------------


def test_the_highest_iteration_of_this_run_is_resumed(world: World) -> None:
    world.add(world.output("a", fingerprint=OURS), "iter_4000.pth")
    newer = world.add(world.output("b", fingerprint=OURS), "iter_8000.pth")
    choice = world.choose()
    assert choice.action == "resume"
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == newer
    assert choice.record is not None
    assert choice.record.fingerprint == OURS
    assert choice.steps_down == ()
    assert choice.explanations == (
        f"{newer} (input, iteration 8000): taken: the highest iteration of this run that passes",
        f"{world.root}/a/iter_4000.pth (input, iteration 4000): not needed: an older iteration",
    )


def test_what_lies_below_the_one_taken_is_not_opened(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    for iteration in (1000, 2000, 3000):
        world.add(folder, f"iter_{iteration}.pth")
    world.choose()
    assert world.inspected == ["iter_3000.pth"]
    assert world.headers == []


def test_a_rejected_newest_is_a_step_down_to_the_older(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_8000.pth", "rejected", problems=("it is torn",))
    world.add(folder, "iter_4000.pth")
    choice = world.choose()
    assert taken(choice) == "iter_4000.pth"
    assert choice.steps_down == (f"{folder}/iter_8000.pth (input, iteration 8000): not taken: it is torn",)
    assert set(choice.steps_down) < set(choice.explanations)


def test_a_file_that_is_not_the_one_in_its_manifest_is_rejected(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_8000.pth", content=b"changed")
    world.add(folder, "iter_4000.pth")
    entry = {"iteration": 8000, "sha256": "0" * 64, "size_bytes": 7}
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "files": {"iter_8000.pth": entry}}))
    choice = world.choose()
    assert taken(choice) == "iter_4000.pth"
    assert "its sha256 is another" in choice.steps_down[0]


def test_without_a_manifest_the_records_sha256_counts(world: World) -> None:
    ref = CheckpointRef(file="iter_8000.pth", iteration=8000, sha256="0" * 64, size_bytes=1)
    folder = world.output("a", fingerprint=OURS, checkpoint=ref)
    world.add(folder, "iter_8000.pth")
    with pytest.raises(CheckpointError, match="its sha256 is another"):
        world.choose()


def test_a_run_at_its_end_is_still_chosen(world: World) -> None:
    world.add(world.output("a", fingerprint=OURS), "iter_40000.pth")
    assert taken(world.choose(max_iters=40000)) == "iter_40000.pth"


# --- lineage ----------------------------------------------------------------------------------


def test_this_run_comes_before_a_higher_iteration_of_no_known_run(world: World) -> None:
    world.add(world.output("ours", fingerprint=OURS), "iter_4000.pth")
    world.add(world.output("stock"), "iter_8000.pth")
    choice = world.choose()
    assert taken(choice) == "iter_4000.pth"
    assert "nothing says that it is of this run; name it with --resume" in choice.explanations[1]


def test_a_file_that_lost_its_record_is_known_by_the_fingerprint_in_it(world: World) -> None:
    world.add(world.output("ours", fingerprint=OURS), "iter_4000.pth")
    world.add(world.output("copied"), "iter_8000.pth", fingerprint=OURS)
    assert taken(world.choose()) == "iter_8000.pth"
    assert world.headers == ["iter_8000.pth"]


def test_a_file_that_lost_its_record_comes_next_where_those_above_it_are_damaged(world: World) -> None:
    ours = world.output("ours", fingerprint=OURS)
    world.add(ours, "iter_2000.pth")
    world.add(ours, "iter_8000.pth", "rejected")
    world.add(world.output("copied"), "iter_6000.pth", fingerprint=OURS)
    assert taken(world.choose()) == "iter_6000.pth"
    assert world.headers == ["iter_6000.pth"]


def test_a_checkpoint_of_plain_mmengine_is_resumed_where_it_fits(world: World) -> None:
    world.add(world.output("stock"), "iter_8000.pth")
    choice = world.choose()
    assert choice.action == "resume"
    assert "states no run, but fits" in choice.explanations[0]


def test_another_run_is_passed_over_whatever_its_iteration(world: World) -> None:
    world.add(world.output("ours", fingerprint=OURS), "iter_4000.pth")
    world.add(world.output("theirs", fingerprint=THEIRS), "iter_9000.pth")
    choice = world.choose()
    assert taken(choice) == "iter_4000.pth"
    assert world.inspected == ["iter_4000.pth"]
    assert "of a run with another config; name it with --resume" in choice.explanations[1]


def test_the_fingerprint_in_the_file_counts_more_than_the_record_beside_it(world: World) -> None:
    folder = world.output("mixed", fingerprint=OURS)
    world.add(folder, "iter_8000.pth", fingerprint=THEIRS)
    world.add(folder, "iter_4000.pth", fingerprint=OURS)
    assert taken(world.choose()) == "iter_4000.pth"


def test_with_only_another_run_at_hand_auto_does_not_start_afresh(world: World) -> None:
    """A config edited in the middle of a run looks like this; hours would be trained again."""
    path = world.add(world.output("theirs", fingerprint=THEIRS), "iter_9000.pth")
    with pytest.raises(CheckpointError, match=f"say --resume {path}") as caught:
        world.choose()
    assert caught.value.exit_code == 3
    assert world.choose(resume="never").action == "fresh"


def test_another_run_is_taken_where_it_is_named(world: World) -> None:
    path = world.add(world.output("theirs", fingerprint=THEIRS), "iter_9000.pth")
    choice = world.choose(resume=path)
    assert (choice.action, taken(choice)) == ("resume", "iter_9000.pth")
    assert "of a run with another config" in choice.steps_down[0]


def test_another_run_is_taken_where_a_resuming_config_names_it(world: World) -> None:
    path = world.add(world.output("theirs", fingerprint=THEIRS), "iter_9000.pth")
    choice = world.choose(load_from=path, config_asks_resume=True)
    assert (choice.action, taken(choice)) == ("resume", "iter_9000.pth")
    assert len(choice.steps_down) == 1


def test_of_equal_iterations_the_one_with_a_record_beside_it_is_taken(world: World) -> None:
    world.add(world.output("a"), "latest.pth", iteration=8000, fingerprint=OURS)
    world.add(world.output("b", fingerprint=OURS), "iter_8000.pth")
    assert taken(world.choose()) == "iter_8000.pth"


def test_of_equal_iterations_the_one_that_a_record_names_is_taken(world: World) -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    ref = CheckpointRef(file="iter_8000.pth", iteration=8000, sha256=sha256, size_bytes=1)
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_8000.pth")
    Manifest({ref.file: ref}).write(folder / "manifest.json")
    named = world.add(world.output("b", fingerprint=OURS, checkpoint=ref), "iter_8000.pth", content=b"x")
    world.add(folder, "iter_4000.pth")
    choice = world.choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == named
    assert "the same iteration, the same file by sha256" in choice.explanations[1]


def test_of_equal_iterations_the_one_whose_sha256_is_known_is_taken(world: World) -> None:
    world.add(world.output("a", fingerprint=OURS), "iter_8000.pth", content=b"another")
    folder = world.output("b", fingerprint=OURS)
    listed = world.add(folder, "iter_8000.pth")
    sha256 = hashlib.sha256(b"x").hexdigest()
    ref = CheckpointRef(file="iter_8000.pth", iteration=8000, sha256=sha256, size_bytes=1)
    Manifest({ref.file: ref}).write(folder / "manifest.json")
    choice = world.choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == listed
    assert "the same iteration, and its sha256 is not recorded" in choice.explanations[1]


def test_of_equal_files_either_is_taken_and_the_other_called_the_same(world: World) -> None:
    ref = CheckpointRef(
        file="iter_8000.pth", iteration=8000, sha256=hashlib.sha256(b"x").hexdigest(), size_bytes=1
    )
    for name in ("a", "b"):
        world.add(world.output(name, fingerprint=OURS, checkpoint=ref), "iter_8000.pth")
    assert world.choose().explanations[1].endswith("not needed: the same iteration, the same file by sha256")


def test_modification_times_decide_nothing(world: World) -> None:
    import os

    first = world.add(world.output("a", fingerprint=OURS), "iter_8000.pth")
    second = world.add(world.output("b", fingerprint=OURS), "iter_8000.pth")
    paths = []
    for old, new in ((first, second), (second, first)):
        os.utime(old, (1, 1))
        os.utime(new, (2_000_000_000, 2_000_000_000))
        checkpoint = world.choose().checkpoint
        assert checkpoint is not None
        paths.append(checkpoint.path)
    assert paths[0] == paths[1]


# --- names that lead elsewhere ----------------------------------------------------------------


def test_last_checkpoint_and_its_file_are_one_candidate(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_8000.pth")
    (folder / "last_checkpoint").write_text("/another/machine/iter_8000.pth")
    choice = world.choose()
    assert len(choice.explanations) == 1
    assert taken(choice) == "iter_8000.pth"


def test_a_latest_file_is_ranked_by_the_iteration_in_it(world: World) -> None:
    folder = world.output("a")
    world.add(folder, "iter_4000.pth")
    world.add(folder, "latest.pth", iteration=8000)
    choice = world.choose()
    assert taken(choice) == "latest.pth"
    assert "iteration 8000" in choice.explanations[0]


def test_a_last_checkpoint_that_leads_nowhere_is_no_reason_to_start_afresh(world: World) -> None:
    (world.output("a") / "last_checkpoint").write_text("iter_8000.pth")
    with pytest.raises(CheckpointError, match=r"there is no iter_8000\.pth beside it"):
        world.choose()


def test_an_empty_checkpoint_is_no_reason_to_start_afresh(world: World) -> None:
    (world.output("a") / "iter_8000.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="it is empty"):
        world.choose()


def test_an_empty_newest_checkpoint_is_a_step_down_to_the_older(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_4000.pth")
    (folder / "iter_8000.pth").write_bytes(b"")
    choice = world.choose()
    assert taken(choice) == "iter_4000.pth"
    assert choice.steps_down == (f"{folder}/iter_8000.pth: not taken: it is empty",)


def test_an_empty_checkpoint_that_is_older_or_another_run_s_is_no_step_down(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_4000.pth")
    (folder / "iter_2000.pth").write_bytes(b"")
    (world.output("b", run_id="another", fingerprint=THEIRS) / "iter_8000.pth").write_bytes(b"")
    choice = world.choose()
    assert (taken(choice), choice.steps_down) == ("iter_4000.pth", ())


def test_an_empty_file_whose_name_states_no_iteration_is_no_step_down(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_0.pth")
    (folder / "latest.pth").write_bytes(b"")
    assert world.choose().steps_down == ()


def test_epoch_checkpoints_are_told_of_and_not_taken(world: World) -> None:
    world.add(world.output("a"), "epoch_3.pth", iteration=300)
    choice = world.choose()
    assert choice.action == "fresh"
    assert "counts epochs" in choice.explanations[0]


# --- fresh, or not ----------------------------------------------------------------------------


def test_auto_starts_fresh_only_where_there_is_nothing(world: World) -> None:
    choice = world.choose()
    assert (choice.action, choice.checkpoint) == ("fresh", None)
    assert choice.explanations == ("starting fresh: there is no checkpoint of this run",)
    assert choice_text(choice, Words()) == "Starting fresh: there is no checkpoint of this run"


@pytest.mark.parametrize("options", [{"resume": "require"}, {"config_asks_resume": True}])
def test_where_resuming_is_asked_for_nothing_found_is_refused(world: World, options: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint to resume from") as caught:
        world.choose(**options)
    assert caught.value.exit_code == 3


def test_where_every_candidate_fails_auto_refuses_and_lists_them(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_8000.pth", "rejected", problems=("it is torn",))
    world.add(folder, "iter_4000.pth", "rejected", problems=("it is a web page",))
    with pytest.raises(CheckpointError, match=r"(?s)it is torn.*it is a web page"):
        world.choose()


def test_never_opens_nothing_and_says_so(world: World) -> None:
    world.add(world.output("a", fingerprint=OURS), "iter_8000.pth")
    choice = world.choose(resume="never")
    assert choice.action == "fresh"
    assert world.inspected == world.headers == []
    assert "not considered, as --resume says never" in choice.explanations[0]
    assert choice_text(choice, Words()) == "Starting fresh, as asked for"


# --- weights only -----------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["auto", "require"])
def test_a_best_checkpoint_alone_is_refused_until_allowed(world: World, resume: str) -> None:
    world.add(world.output("a", fingerprint=OURS), "best_mIoU_iter_8000.pth", "weights-only")
    with pytest.raises(CheckpointError, match="Add --allow-weights-only"):
        world.choose(resume=resume)
    assert world.inspected == []
    choice = world.choose(resume=resume, allow_weights_only=True)
    assert (choice.action, taken(choice)) == ("weights-only", "best_mIoU_iter_8000.pth")
    assert "WEIGHTS ONLY" in choice.steps_down[-1]


def test_weights_that_were_allowed_and_fail_are_no_reason_to_allow_them(world: World) -> None:
    world.add(world.output("a", fingerprint=OURS), "best_mIoU_iter_8000.pth", "rejected")
    with pytest.raises(CheckpointError, match="Every checkpoint found was rejected") as error:
        world.choose(allow_weights_only=True)
    assert "--allow-weights-only" not in str(error.value)


def test_the_weights_of_a_run_that_was_stepped_over_are_not_taken(world: World) -> None:
    mine = world.output("mine", fingerprint=OURS, run_id="aaa")
    world.add(mine, "iter_4000.pth", "rejected")
    theirs = world.output("theirs", fingerprint=OURS, run_id="bbb")
    world.add(theirs, "best_mIoU_iter_8000.pth", "weights-only")
    with pytest.raises(CheckpointError, match="Every checkpoint found was rejected"):
        world.choose(allow_weights_only=True, work_dir_run="aaa")


def test_an_older_resumable_comes_before_newer_weights(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_8000.pth", "weights-only", problems=("it has no optimizer",))
    world.add(folder, "best_mIoU_iter_8000.pth", "weights-only")
    world.add(folder, "iter_4000.pth")
    choice = world.choose(allow_weights_only=True)
    assert (choice.action, taken(choice)) == ("resume", "iter_4000.pth")


def test_a_load_from_that_does_not_ask_to_resume_gives_its_weights(world: World) -> None:
    path = world.add(world.output("pretrained"), "segformer.pth", "weights-only")
    choice = world.choose(load_from=path)
    assert (choice.action, taken(choice)) == ("weights-only", "segformer.pth")
    assert choice.steps_down == ()


def test_this_runs_progress_comes_before_the_weights_it_once_started_from(world: World) -> None:
    path = world.add(world.output("pretrained"), "segformer.pth", "weights-only")
    world.add(world.output("a", fingerprint=OURS), "iter_4000.pth")
    assert taken(world.choose(load_from=path)) == "iter_4000.pth"


def test_this_runs_progress_failing_does_not_fall_back_to_where_it_began(world: World) -> None:
    path = world.add(world.output("pretrained"), "segformer.pth", "weights-only")
    world.add(world.output("a", fingerprint=OURS), "iter_4000.pth", "rejected")
    with pytest.raises(CheckpointError, match="it would start anew"):
        world.choose(load_from=path)


def test_a_finished_run_that_a_config_names_to_start_from_is_not_taken_for_this_one(world: World) -> None:
    path = world.add(world.output("stock"), "iter_160000.pth")
    choice = world.choose(load_from=path, max_iters=40000)
    assert choice.action == "weights-only"


def test_never_still_loads_the_weights_that_a_config_starts_from(world: World) -> None:
    path = world.add(world.output("pretrained"), "segformer.pth", "weights-only")
    assert world.choose(load_from=path, resume="never").action == "weights-only"
    assert world.choose(load_from=path, resume="never", config_asks_resume=True).action == "fresh"


def test_require_does_not_take_the_weights_that_a_config_starts_from_for_a_resume(world: World) -> None:
    path = world.add(world.output("pretrained"), "segformer.pth", "weights-only")
    with pytest.raises(CheckpointError, match="--allow-weights-only"):
        world.choose(load_from=path, resume="require")
    finished = world.add(world.output("stock"), "iter_40000.pth")
    assert world.choose(load_from=finished, resume="require", max_iters=40000).action == "resume"


def test_a_missing_load_from_is_refused_unless_the_run_has_more(world: World) -> None:
    missing = world.root / "gone" / "iter_2000.pth"
    world.verdicts[missing] = inspect(missing)
    with pytest.raises(CheckpointError, match="No such file"):
        world.choose(load_from=missing)
    world.add(world.output("a", fingerprint=OURS), "iter_4000.pth")
    assert taken(world.choose(load_from=missing, config_asks_resume=True)) == "iter_4000.pth"


# --- exactly this one -------------------------------------------------------------------------


def test_a_named_file_is_taken_even_where_a_newer_one_is_at_hand(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    older = world.add(folder, "iter_4000.pth")
    world.add(folder, "iter_8000.pth")
    assert taken(world.choose(resume=older)) == "iter_4000.pth"


def test_a_named_file_that_is_rejected_is_not_replaced_by_another(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    bad = world.add(folder, "iter_8000.pth", "rejected", problems=("it is torn",))
    world.add(folder, "iter_4000.pth")
    with pytest.raises(CheckpointError, match="it is torn"):
        world.choose(resume=bad)


def test_a_named_file_that_the_disk_does_not_give_is_rejected_by_the_disk_s_words(world: World) -> None:
    path = world.add(world.output("a", fingerprint=OURS), "iter_8000.pth")
    failing = Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    with pytest.raises(CheckpointError, match="it cannot be read: Input/output error"):
        choose(inspect=failing, resume=path, fingerprint=OURS)


def test_a_named_best_file_needs_permission(world: World) -> None:
    path = world.add(world.output("a", fingerprint=OURS), "best_mIoU_iter_8000.pth", "weights-only")
    with pytest.raises(CheckpointError, match="--allow-weights-only"):
        world.choose(resume=path)
    assert world.choose(resume=path, allow_weights_only=True).action == "weights-only"


def test_only_the_weights_of_a_named_file_are_taken_where_that_is_asked(world: World) -> None:
    path = world.add(world.output("a", fingerprint=OURS), "iter_4000.pth")
    choice = world.choose(resume=path, weights_only=True)
    assert (choice.action, taken(choice)) == ("weights-only", "iter_4000.pth")


def test_each_candidate_is_told_once_the_taken_one_first(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_4000.pth")
    world.add(folder, "iter_8000.pth", "rejected")
    world.add(folder, "iter_6000.pth")
    told = world.choose().candidates
    assert [(item.path.name, item.verdict, item.taken) for item in told] == [
        ("iter_6000.pth", "resumable", True),
        ("iter_8000.pth", "rejected", False),
        ("iter_4000.pth", "", False),
    ]
    assert told[1].reason == "not taken: rejected for a reason"


def test_a_named_last_checkpoint_stands_for_the_file_beside_it(world: World) -> None:
    folder = world.output("a", fingerprint=OURS)
    world.add(folder, "iter_4000.pth")
    (folder / "last_checkpoint").write_text("/another/machine/iter_4000.pth\n")
    assert taken(world.choose(resume=folder / "last_checkpoint")) == "iter_4000.pth"


@pytest.mark.parametrize("resume", ["auto", "require"])
def test_an_expected_iteration_that_is_not_met_is_refused(world: World, resume: str) -> None:
    world.add(world.output("a", fingerprint=OURS), "iter_4000.pth")
    assert taken(world.choose(resume=resume, expect_iteration=4000)) == "iter_4000.pth"
    with pytest.raises(CheckpointError, match=r"asks for 8000, .* starts at 4000"):
        world.choose(resume=resume, expect_iteration=8000)


def test_an_expected_iteration_is_not_met_by_starting_fresh(world: World) -> None:
    with pytest.raises(CheckpointError, match="asks for 8000, and there is nothing to resume"):
        world.choose(expect_iteration=8000)
    assert world.choose(expect_iteration=0).action == "fresh"
    with pytest.raises(CheckpointError, match="Leave one of them out"):
        world.choose(resume="never", expect_iteration=8000)


# --- against an oracle ------------------------------------------------------------------------

candidates = st.lists(
    st.tuples(
        st.sampled_from([1000, 2000, 3000, 4000]),
        st.sampled_from([OURS, THEIRS]),
        st.sampled_from(["resumable", "weights-only", "rejected"]),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(candidates, st.booleans())
def test_the_choice_is_the_highest_of_the_run_that_passes(
    items: list[tuple[int, str, str]], may_start_fresh: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for number, (iteration, fingerprint, verdict) in enumerate(items):
            output = world.output(f"output_{number}", fingerprint=fingerprint)
            world.add(output, f"iter_{iteration}.pth", verdict, fingerprint=fingerprint)
        passing = [
            iteration
            for iteration, fingerprint, verdict in items
            if verdict == "resumable" and fingerprint != THEIRS
        ]
        try:
            choice = world.choose(resume="auto" if may_start_fresh else "require")
        except CheckpointError as error:
            assert not passing
            assert items or not may_start_fresh
            assert all(f"output_{number}" in str(error) for number in range(len(items)))
            return
        if not passing:
            assert choice.action == "fresh"
            assert may_start_fresh
            assert not items
            return
        assert choice.action == "resume"
        assert choice.inspection is not None
        assert choice.inspection.iteration == max(passing)
        assert len({line.partition(": ")[0] for line in choice.explanations}) == len(items)
        assert len(world.inspected) <= 1 + len(choice.steps_down)


# --- with real files --------------------------------------------------------------------------


@pytest.fixture
def real_outputs(tmp_path: Path) -> Iterator[Path]:
    import torch

    torch.manual_seed(0)
    for iteration in (10, 20):
        folder = tmp_path / f"session_{iteration}"
        folder.mkdir()
        runtime = {"iter": iteration, "mapsage_fingerprint": OURS, "mapsage_run_id": "run"}
        state = {
            "meta": {"iter": iteration, "epoch": 0, "dataset_meta": {"classes": ("a", "b")}},
            "state_dict": {"weight": torch.randn(4, 4)},
            "optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]},
            "param_schedulers": [{"last_step": iteration}],
            "message_hub": {"log_scalars": {}, "runtime_info": runtime, "resumed_keys": {}},
        }
        torch.save(state, folder / f"iter_{iteration}.pth")
    yield tmp_path


def test_a_real_checkpoint_with_flipped_bits_is_stepped_over(real_outputs: Path) -> None:
    path = real_outputs / "session_20" / "iter_20.pth"
    judge = partial(inspect, shapes={"weight": (4, 4)}, classes=("a", "b"))
    assert taken(choose(inspect=judge, inputs=scan(real_outputs).files, fingerprint=OURS)) == "iter_20.pth"
    data = bytearray(path.read_bytes())
    data[data.index(b"data/0") + 100] ^= 1
    path.write_bytes(data)
    choice = choose(inspect=judge, inputs=scan(real_outputs).files, fingerprint=OURS)
    assert taken(choice) == "iter_10.pth"
    assert len(choice.steps_down) == 1


def test_a_start_with_another_head_is_loaded_as_far_as_it_fits_and_said(real_outputs: Path) -> None:
    judge = partial(inspect, shapes={"weight": (5, 4)}, classes=("a", "b", "c"))
    start = real_outputs / "session_10" / "iter_10.pth"
    choice = choose(inspect=judge, load_from=start, fingerprint=THEIRS)
    assert choice.action == "weights-only"
    assert "as far as they fit" in choice.steps_down[0]
    assert "weight is (4, 4), expected (5, 4)" in choice.steps_down[0]


def test_a_named_checkpoint_is_a_found_one(real_outputs: Path) -> None:
    path = real_outputs / "session_10" / "iter_10.pth"
    choice = choose(inspect=inspect, resume=path, fingerprint=OURS)
    (found,) = (item for item in scan(real_outputs).files if item.path == path)
    assert isinstance(choice.checkpoint, FoundCheckpoint)
    assert choice.checkpoint.size_bytes == found.size_bytes
    assert choice.checkpoint.iteration == 10
