"""The report: what it reads back from records and events, what it warns of, and the page itself."""

from __future__ import annotations

import fcntl
import io
import json
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mapsage_kaggle.display import evaluated, report
from mapsage_kaggle.display.findings import findings
from mapsage_kaggle.display.history import PastSession, Series, read_sessions, series
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.plots import time_bars, time_split, timeline
from mapsage_kaggle.display.report import CLASSES, CONFUSION, CURVES, TIME, write_report
from mapsage_kaggle.display.text import outcome_text, run_text, table, times_text
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.events import Event, EventLog
from mapsage_kaggle.records import CheckpointRef, Exactness, SessionRecord

PNG = b"\x89PNG\r\n\x1a\n"


def record(index: int, start: int, end: int, **changes: Any) -> SessionRecord:
    """Return a plausible record."""
    values: dict[str, Any] = {
        "run_id": "0123456789ab",
        "fingerprint": "fedcba9876543210",
        "session_index": index,
        "start_iteration": start,
        "end_iteration": end,
        "max_iters": 300,
        "stop_reason": "deadline" if end < 300 else "completed",
        "exit_code": 0,
        "checkpoint": CheckpointRef(
            file=f"iter_{end}.pth", iteration=end, sha256="ab" * 32, size_bytes=297_000_000
        ),
        "timings_s": {
            "forward_backward": 55.0,
            "optimizer": 5.0,
            "waiting_for_data": 5.0,
            "validation": 9.0,
            "other": 16.0,
            "session": 90.0,
        },
        "started_s": 1_790_000_000.0 + 50_000 * index,
        "ended_s": 1_790_000_090.0 + 50_000 * index,
        "exactness": Exactness(bitwise=True, reasons=()),
        **changes,
    }
    return SessionRecord(**values)


def told(event: str, iteration: int, **data: Any) -> Event:
    return Event(event=event, iteration=iteration, time_s=1_790_000_000.0 + iteration, data=data)


def training(start: int, end: int, loss: Any = lambda iteration: 2.0 / (1 + iteration / 50)) -> list[Event]:
    """Return a session's events: a loss every 5 iterations, a validation every 50."""
    events = [told("training", start, max_iters=300)]
    for iteration in range(start + 5, end + 1, 5):
        events.append(told("iteration", iteration, loss=loss(iteration), lr=6e-5 * (1 - iteration / 300)))
        if iteration % 50 == 0:
            events.append(told("validation", iteration, metrics={"mIoU": iteration / 5, "aAcc": 80.0}))
    return [*events, told("stop", end, reason="deadline", pace={"iteration_s": 0.25})]


def session(index: int, start: int, end: int, events: list[Event], **changes: Any) -> PastSession:
    return PastSession(record=record(index, start, end, **changes), events=tuple(events), folder=Path())


def write(folder: Path, name: str, events_name: str, item: SessionRecord, events: list[Event]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    item.write(folder / name)
    (folder / events_name).unlink(missing_ok=True)
    log = EventLog(folder / events_name)
    for event in events:
        log.append(event)


def write_run(folder: Path) -> Path:
    """Write the third session's work dir, with the two before in its history."""
    first, second = record(1, 0, 100), record(2, 100, 200, changes=("-batch_size = 4", "+batch_size = 8"))
    write(folder / "history", "session_001.json", "events_001.jsonl", first, training(0, 100))
    write(folder / "history", "session_002.json", "events_002.jsonl", second, training(100, 200))
    last = record(3, 200, 300, previous=(first.to_json(), second.to_json()))
    write(folder, "session.json", "events.jsonl", last, training(200, 300))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return a finished run's last output, for one test alone."""
    return write_run(tmp_path / "output" / "work_dirs" / "demo")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run's last output with its report; drawing takes a second."""
    folder = write_run(tmp_path_factory.mktemp("drawn"))
    message = "<script>alert(1)</script>"
    record(3, 200, 300, message=message).write(folder / "session.json")
    write_report([folder])
    return folder


@pytest.fixture(scope="module")
def page(drawn: Path) -> str:
    return (drawn / "report.html").read_text(encoding="utf-8")


# -- reading back


def test_the_last_output_alone_knows_all_sessions(output: Path) -> None:
    assert [item.record.session_index for item in read_sessions([output])] == [1, 2, 3]
    assert all(item.events for item in read_sessions([output]))


def test_a_session_that_was_cut_off_lasted_until_its_last_word(tmp_path: Path) -> None:
    begin_s = 1_790_000_000.0
    cut = record(
        1, 0, 100, stop_reason="running", exit_code=None, timings_s={}, started_s=begin_s, ended_s=None
    )
    events = [told("training", 0, max_iters=300), told("iteration", 90), told("checkpoint", 100)]
    write(tmp_path / "cut", "session.json", "events.jsonl", cut, events)
    (item,) = read_sessions([tmp_path / "cut"])
    assert (item.record.stop_reason, item.record.exit_code) == ("failed", 5)
    assert item.record.timings_s["session"] == 100.0
    assert item.record.ended_s == begin_s + 100.0
    assert "cut off" in item.record.message
    page = write_report([tmp_path / "cut"]).read_text(encoding="utf-8")
    assert "1m 40s" in page
    # So it is in what later sessions carry along.
    write(tmp_path / "next" / "history", "session_001.json", "events_001.jsonl", cut, events)
    write(tmp_path / "next", "session.json", "events.jsonl", record(2, 100, 300), training(100, 300))
    first, _ = read_sessions([tmp_path / "next"])
    assert first.record == item.record


def test_a_session_that_is_under_way_is_not_taken_for_cut_off(tmp_path: Path) -> None:
    goes_on = record(1, 0, 100, stop_reason="running", exit_code=None, ended_s=None)
    write(tmp_path / "silent", "session.json", "events.jsonl", goes_on, training(0, 100))
    lock = (tmp_path / "silent" / "work_dir.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    spoke = Event(event="iteration", iteration=5)
    write(tmp_path / "speaks", "session.json", "events.jsonl", goes_on, [spoke])
    for name in ("silent", "speaks"):
        (item,) = read_sessions([tmp_path / name])
        assert item.record.stop_reason == "running"
    lock.close()
    (item,) = read_sessions([tmp_path / "silent"])
    assert item.record.stop_reason == "failed"


def test_a_session_that_several_outputs_know_counts_once(output: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    running = record(2, 100, 150, stop_reason="running", exit_code=None)
    write(earlier, "session.json", "events.jsonl", running, training(100, 150))

    known = [item.record for item in read_sessions([earlier, output])]

    assert [(item.session_index, item.end_iteration) for item in known] == [(1, 100), (2, 200), (3, 300)]


def test_the_lineage_in_the_record_serves_where_the_history_is_gone(output: Path) -> None:
    for file in (output / "history").iterdir():
        file.unlink()
    assert [item.record.session_index for item in read_sessions([output])] == [1, 2, 3]


def test_work_dirs_are_found_below_a_given_output(output: Path) -> None:
    assert [item.record.session_index for item in read_sessions([output.parents[1]])] == [1, 2, 3]


def test_a_broken_record_is_passed_over(output: Path) -> None:
    (output / "history" / "session_001.json").write_text("{")
    (output / "history" / "session_002.json").write_text("[]")
    assert 3 in [item.record.session_index for item in read_sessions([output])]


def test_a_refusal_does_not_replace_the_session_whose_number_it_carries(output: Path) -> None:
    refused = record(3, 300, 300, stop_reason="refused", exit_code=3)
    write(output / "history", "session_003.json", "events_003.jsonl", record(3, 200, 300), training(200, 300))
    refused.write(output / "session.json")
    assert [item.record.stop_reason for item in read_sessions([output])][-2:] == ["completed", "refused"]


def test_a_series_holds_what_was_kept_where_training_went_back() -> None:
    crashed = [
        told("iteration", 10, loss=3.0),
        told("iteration", 20, loss=2.0),
        told("iteration", 30, loss=1.0),
    ]
    again = [told("resume", 20), told("iteration", 25, loss=1.5), told("iteration", 30, loss=1.2)]

    found = series([session(1, 0, 30, [*crashed, *again])], "iteration", "loss")

    assert found == Series(iterations=(10, 20, 25, 30), values=(3.0, 2.0, 1.5, 1.2))


def test_a_series_leaves_out_what_was_not_finite() -> None:
    events = [told("iteration", 10, loss=None), told("iteration", 20, loss=2.0)]
    assert series([session(1, 0, 20, events)], "iteration", "loss").iterations == (20,)


def test_smoothing_keeps_a_constant_and_the_number_of_points() -> None:
    flat = Series(iterations=tuple(range(100)), values=(2.5,) * 100)
    assert flat.smoothed(0.2).values == pytest.approx(flat.values)


def test_thinning_keeps_the_last_point() -> None:
    long = Series(iterations=tuple(range(10_001)), values=(0.0,) * 10_001)
    thin = long.thinned(100)
    assert len(thin) <= 102
    assert thin.iterations[-1] == 10_000


# -- what gives cause for concern


def messages(sessions: list[PastSession]) -> str:
    return " ".join(f"{item.name}: {item.message}" for item in findings(sessions))


def test_a_run_in_good_order_gives_no_cause_for_concern() -> None:
    sessions = [session(1, 0, 150, training(0, 150)), session(2, 150, 300, training(150, 300))]
    assert findings(sessions) == ()


def test_a_loss_that_jumps_at_a_resume_is_told() -> None:
    sessions = [
        session(1, 0, 150, training(0, 150)),
        session(2, 150, 300, training(150, 300, lambda iteration: 1.9)),
    ]
    assert "session 2: the loss jumped from" in messages(sessions)


def test_a_refused_session_hides_no_jump() -> None:
    sessions = [
        session(1, 0, 150, training(0, 150)),
        session(2, 150, 150, [], stop_reason="refused"),
        session(2, 150, 300, training(150, 300, lambda iteration: 1.9)),
    ]
    assert "session 2: the loss jumped from" in messages(sessions)


def test_a_noisy_loss_is_no_jump() -> None:
    noisy = [1.0, 1.9, 0.6, 1.4, 2.1, 0.9, 1.1, 1.7]
    sessions = [
        session(1, 0, 150, training(0, 150, lambda iteration: noisy[iteration // 5 % 8])),
        session(2, 150, 300, training(150, 300, lambda iteration: noisy[iteration // 5 % 8] + 0.4)),
    ]
    assert "jumped" not in messages(sessions)


def test_overfitting_is_told_where_validation_falls_and_the_loss_too() -> None:
    events = training(0, 300)
    scores = dict(zip(range(50, 301, 50), (20.0, 40.0, 60.0, 55.0, 52.0, 50.0), strict=True))
    fallen = [
        told("validation", event.iteration, metrics={"mIoU": scores[event.iteration]})
        if event.event == "validation"
        else event
        for event in events
    ]
    assert "overfitting: since iteration 150 mIoU fell from 60.0 %" in messages([session(1, 0, 300, fallen)])
    assert "overfitting" not in messages([session(1, 0, 300, events)])


def test_a_class_that_is_never_learned_is_named() -> None:
    table = {"road": {"IoU": 0.6}, "playground": {"IoU": 0.0}, "barren": {"IoU": None}}
    events = [told("validation", at, metrics={"mIoU": 30.0}, per_class=table) for at in (50, 100, 150)]
    text = messages([session(1, 0, 150, events)])
    assert "not learned by iteration 150: playground;" in text


def test_iterations_that_were_trained_twice_are_told() -> None:
    sessions = [session(1, 0, 150, training(0, 150)), session(2, 100, 300, training(100, 300))]
    assert "50 iterations were trained twice" in messages(sessions)


def test_a_failed_session_comes_first() -> None:
    events = [*training(0, 100), told("warning", 50, message="an image was skipped")]
    found = findings([session(1, 0, 100, events, stop_reason="failed", message="out of memory")])
    assert [item.tone for item in found] == ["bad", "note"]
    assert "out of memory" in found[0].message


# -- the page


def test_the_page_fetches_nothing_and_runs_nothing(page: str) -> None:
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    pictures = page.count("<picture")
    assert page.count("data:image/png") == 2 * pictures  # in light and in dark
    assert pictures == 3
    assert page.count('<img alt="') == len(re.findall(r"<img", page))


def test_the_page_tells_of_every_session_and_every_checkpoint(page: str) -> None:
    assert [f'title="session {index}"' in page for index in (1, 2, 3)] == [True] * 3
    assert "ab" * 32 in page
    assert "297.0 MB" in page
    assert "+batch_size = 8" in page


def test_classes_confusion_and_predictions_are_shown_where_they_were_told(tmp_path: Path) -> None:
    told_by_class = {"road": {"IoU": 0.6}, "water": {"IoU": 0.5}}
    events = [
        told("training", 0, max_iters=300, palette={"road": [255, 255, 0], "water": [0, 0, 255]}),
        *(
            told(
                "validation", at, metrics={"mIoU": 30.0}, per_class=told_by_class, confusion=[[3, 1], [0, 4]]
            )
            for at in (50, 100)
        ),
    ]
    write(tmp_path, "session.json", "events.jsonl", record(1, 0, 100), events)
    pictures = tmp_path / "predictions"
    pictures.mkdir()
    for name in ("a_image", "a_truth", "a_iter_50", "a_iter_100"):
        (pictures / f"{name}.png").write_bytes(PNG)

    text = write_report([tmp_path]).read_text(encoding="utf-8")

    assert (tmp_path / CONFUSION).read_bytes().startswith(PNG)
    assert (tmp_path / CLASSES).read_bytes().startswith(PNG)
    assert "background:rgb(255,255,0)" in text
    assert "Its classes as predicted at iteration 50" in text
    assert text.count("base64,iVBORw0KGgo=") == 4


def test_a_report_is_drawn_all_the_same_where_a_confusion_matrix_is_of_no_class(tmp_path: Path) -> None:
    events = [*training(0, 100), told("validation", 100, metrics={}, confusion=[[0]])]
    write(tmp_path, "session.json", "events.jsonl", record(1, 0, 100), events)
    share = dict.fromkeys(("fwiou", "mean_f1", "mean_accuracy", "accuracy", "miou", "miou_interval"))
    evaluation = {
        "checkpoint": "iter_100.pth", "split": "val", "looked": "whole", "classes": [], "areas": {},
        "palette": [], "against": None, "too_few_images": False, "confusion": [], "num_images": 0, **share,
    }  # fmt: skip
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "iter_100.json").write_text(json.dumps(evaluation))

    assert write_report([tmp_path]).is_file()
    assert evaluated.num_left_out(tmp_path) == 1


@pytest.mark.parametrize("num_validations", [1, 2, 8, 9, 16, 50])
def test_the_table_by_class_has_at_most_eight_columns_from_first_to_last(num_validations: int) -> None:
    events = [told("validation", at, per_class={"road": 0.5}) for at in range(1, num_validations + 1)]

    found = report._class_table([session(1, 0, 100, events)])

    assert found is not None
    assert len(found["iterations"]) <= 8
    assert (found["iterations"][0], found["iterations"][-1]) == ("1", str(num_validations))


def test_a_report_in_chinese_leaves_no_label_of_its_own_in_english(output: Path) -> None:
    text = write_report([output], language="zh").read_text(encoding="utf-8")
    for hidden in (r"<style>.*?</style>", r"<footer.*?</footer>", r"<pre.*?</pre>", r"<code.*?</code>"):
        text = re.sub(hidden, "", text, flags=re.S)
    shown = re.sub(r'<(?!img)[^>]*>|src="[^"]*"', " ", text)
    allowed = {"img", "alt", "mIoU", "IoU", "mAcc", "aAcc", "UTC", "pth", "iter", "sha", "ab" * 32}
    assert set(re.findall(r"[A-Za-z]{3,}", shown)) <= allowed


def test_a_timeline_has_no_gap_and_knows_a_fault_and_the_end() -> None:
    start_s = record(1, 0, 100).started_s
    steps = (
        (10.0, "training"), (30.0, "validation_start"), (35.0, "validation"), (50.0, "failure"),
        (60.0, "training"), (80.0, "stop"),
    )  # fmt: skip
    events = [Event(event=kind, iteration=1, time_s=start_s + at_s) for at_s, kind in steps]
    spans = timeline(session(1, 0, 100, events, ended_s=start_s + 90.0))
    assert [(span.phase, round(span.end_s)) for span in spans] == [
        ("starting", 10), ("training", 30), ("validating", 35), ("training", 50), ("starting again", 60),
        ("training", 80), ("ending", 90),
    ]  # fmt: skip
    assert all(one.end_s == other.begin_s for one, other in pairwise(spans))


def test_the_pictures_lie_beside_the_page(drawn: Path) -> None:
    assert (drawn / CURVES).read_bytes().startswith(PNG)
    assert (drawn / TIME).read_bytes().startswith(PNG)


def test_the_same_run_gives_the_same_bytes(drawn: Path, page: str, tmp_path: Path) -> None:
    assert write_report([drawn], out=tmp_path).read_text(encoding="utf-8") == page


def test_what_others_wrote_cannot_become_markup(page: str) -> None:
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("num_events", [0, 1], ids=["no events", "only a start"])
def test_a_session_that_has_hardly_begun_has_a_report(tmp_path: Path, num_events: int) -> None:
    # Made here, not with the list of tests: one that is minutes old would be a session cut off.
    events = [Event(event="start", iteration=0, data={"pid": 1})][:num_events]
    begun = record(
        1,
        0,
        0,
        stop_reason="running",
        exit_code=None,
        checkpoint=None,
        timings_s={},
        started_s=time.time(),
        ended_s=None,
    )
    write(tmp_path, "session.json", "events.jsonl", begun, events)
    assert "running" in write_report([tmp_path]).read_text(encoding="utf-8")


def test_a_folder_without_a_session_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no session\.json"):
        write_report([tmp_path])


def test_drawing_leaves_matplotlibs_global_state_alone(output: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mapsage_kaggle.display.report import write_report;"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules;"
        f"write_report([Path({str(output)!r})]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# -- text


def test_numbers_stand_to_the_right_in_a_table() -> None:
    assert table([("a", 5), ("bcd", 12000)], ("name", "n")).splitlines()[2:] == ["a         5", "bcd   12000"]


def test_the_text_of_a_run_has_one_line_a_session(output: Path) -> None:
    lines = run_text([output]).splitlines()
    assert len(lines) == 2 + 3 + 1
    assert "The run is finished." in lines[-1]
    assert "训练任务已完成" in run_text([output], language="zh")


def test_a_session_says_what_its_time_went_into_the_most_first(tmp_path: Path) -> None:
    item = record(1, 0, 100)
    told = "forward and backward 61 %, all else 18 %, validating 10 %, waiting for data 6 %, optimizer 6 %"
    assert times_text(item) == told
    assert f"Time: 1m 30s: {told}" in outcome_text(item, tmp_path).splitlines()
    assert times_text(item, Words("zh")).startswith("前向与反向 61 %，")
    assert times_text(record(1, 0, 100, timings_s={"start_up": 3.0})) == ""


def test_a_record_that_timed_steps_as_a_whole_is_still_drawn() -> None:
    old = session(1, 0, 100, [], timings_s={"training_step": 60.0, "validation": 9.0, "session": 90.0})
    split = time_split(old)
    assert (split["forward_backward"], split["other"], sum(split.values())) == (60.0, 21.0, 90.0)


def test_of_a_run_of_many_sessions_the_report_keeps_losses_scores_and_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapsage_kaggle.display.history.MAX_ITERATIONS", 200)
    for index in (1, 2, 3):
        start, end = 1000 * (index - 1), 1000 * index
        events = training(start, end, loss=lambda iteration: 9.0 if iteration > 2000 else 1.0)
        last = index == 3
        folder = tmp_path if last else tmp_path / "history"
        names = (
            ("session.json", "events.jsonl")
            if last
            else (f"session_00{index}.json", f"events_00{index}.jsonl")
        )
        write(folder, *names, record(index, start, end, max_iters=3000), events)

    sessions = read_sessions([tmp_path])

    assert len(series(sessions, "iteration", "loss")) < 400
    assert len(series(sessions, "validation", "metrics", "mIoU")) == 60
    assert series(sessions, "iteration", "loss").iterations[-1] == 3000
    assert "session 3: the loss jumped from" in messages(sessions)


def test_a_thousand_sessions_fit_one_picture() -> None:
    from PIL import Image

    many = [session(index, index, index + 1, [], max_iters=1000) for index in range(1000)]

    drawn = Image.open(io.BytesIO(time_bars(many)))

    assert drawn.height < 4000
    # A bar of each session in the figure's own colours, not its outline alone.
    colours = drawn.convert("RGB").crop((300, 200, 301, drawn.height - 200)).getcolors(4000) or []
    blue = sum(count for count, (red, _, blue) in colours if blue > red + 80)
    assert blue > (drawn.height - 400) / 2
