"""What is pushed, and what a relay that is asked for is checked for before Kaggle is."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from mapsage_kaggle.errors import MapsageError, UsageError
from mapsage_kaggle.kit import kit_files, kit_sha256, own_home
from mapsage_kaggle.paths import bundled
from mapsage_kaggle.relay import command
from mapsage_kaggle.relay.client import Quota
from mapsage_kaggle.relay.decide import Push
from mapsage_kaggle.relay.forecast import plan, plan_text
from mapsage_kaggle.relay.journal import Attempt
from mapsage_kaggle.relay.kernel import CODE_FILE, Job, attempt_of, check_machine, is_for, mark, write_kernel
from mapsage_kaggle.relay.log import read_log

NOTEBOOK = bundled("notebooks") / CODE_FILE
JOB = Job(config="demo.py", notebook=NOTEBOOK, overrides=("a.b='c'",), upload_to="alice/saved")
PUSH = Push(
    slug="mapsage-train", version=3, transport="self", expect_iteration=800, limit_s=43_140.0,
    kernel_sources=("alice/mapsage-train",), dataset_sources=("alice/kit",), run_id="abc123",
)  # fmt: skip
ATTEMPT = Attempt(
    slug="mapsage-train", version=3, token="0123456789abcdef", transport="self", expect_iteration=800,
    limit_s=43_140.0, intended_s=1_795_697_080.0, landed=True,
)  # fmt: skip


def assigned(source: str) -> dict[str, Any]:
    return {
        node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[attr-defined]
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
    }


def test_a_session_is_told_its_parameters_after_the_notebooks_own(tmp_path: Path) -> None:
    write_kernel(tmp_path / "kernel", PUSH, JOB, owner="alice", attempt=ATTEMPT)
    cells = json.loads((tmp_path / "kernel" / CODE_FILE).read_text())["cells"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    index = tags.index(["parameters"])
    assert tags[index + 1] == ["injected-parameters"]
    assert assigned(cells[index + 1]["source"]) == {
        "CONFIG": "demo.py", "RESUME": "require", "RUN": "abc123", "EXPECT_ITERATION": 800,
        "SESSION_LIMIT": "43140s", "RESERVE": "10m", "GPUS": 2, "OVERRIDES": ["a.b='c'"],
        "UPLOAD_TO": "alice/saved",
        "KIT_SHA256": kit_sha256(kit_files(own_home())),
        "EXTEND_TO": None,
    }  # fmt: skip
    own = json.loads(NOTEBOOK.read_text())["cells"]
    assert [*cells[: index + 1], *cells[index + 2 :]] == own


def test_a_sessions_first_line_tells_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kernel(tmp_path / "kernel", PUSH, JOB, owner="alice", attempt=ATTEMPT)
    cells = json.loads((tmp_path / "kernel" / CODE_FILE).read_text())["cells"]
    source = next(cell["source"] for cell in cells if cell["metadata"].get("tags") == ["injected-parameters"])
    monkeypatch.setenv("KAGGLE_CONTAINER_NAME", "kaggle-kernel-280123456-x2")
    exec(source, {})
    line = capsys.readouterr().out
    assert read_log(json.dumps([{"data": line, "time": 1.0}])).number == 280_123_456


@pytest.mark.parametrize(
    ("asked", "machine"),
    [("none", None), ("NvidiaTeslaT4", "NvidiaTeslaT4"), ("nvidiateslat4", "NvidiaTeslaT4"),
     ("NVIDIAL4", "NvidiaL4")],
)  # fmt: skip
def test_a_machine_is_known_whatever_its_case(asked: str, machine: str | None) -> None:
    assert check_machine(asked) == machine


def test_a_notebook_that_kaggle_would_not_take_for_its_size_is_refused(tmp_path: Path) -> None:
    document = json.loads(NOTEBOOK.read_text())
    document["cells"][0]["source"] = "a" * (1 << 20)
    (tmp_path / "large.ipynb").write_text(json.dumps(document))
    job = Job(config="d.py", notebook=tmp_path / "large.ipynb")
    with pytest.raises(UsageError, match="Kaggle takes 1,048,576 at most"):
        write_kernel(tmp_path / "k", PUSH, job, owner="a", attempt=ATTEMPT)


def test_a_push_is_known_again_by_the_notebooks_text_and_a_persons_is_not(tmp_path: Path) -> None:
    write_kernel(tmp_path / "kernel", PUSH, JOB, owner="alice", attempt=ATTEMPT)
    text = (tmp_path / "kernel" / CODE_FILE).read_text()
    assert attempt_of(text, "mapsage-train", 3) == ATTEMPT
    assert attempt_of(NOTEBOOK.read_text(), "mapsage-train", 3) == Attempt(
        slug="mapsage-train", version=3, landed=True
    )
    fresh = Attempt(slug="mapsage-train", version=1, token="ff", limit_s=60.0, intended_s=5.0, landed=True)
    assert attempt_of(mark(fresh), "mapsage-train", 1) == fresh
    named = mark(fresh, "abc123")
    assert named.endswith("of run abc123")
    assert attempt_of(named, "mapsage-train", 1) == fresh


def test_a_notebook_that_lacks_what_only_makes_it_surer_is_taken_and_that_is_told(tmp_path: Path) -> None:
    document = json.loads(NOTEBOOK.read_text())
    cell = next(cell for cell in document["cells"] if "parameters" in cell["metadata"].get("tags", []))
    lines = "".join(cell["source"]).splitlines(keepends=True)
    cell["source"] = [line for line in lines if not line.startswith(("RUN =", "KIT_SHA256 ="))]
    (tmp_path / "own.ipynb").write_text(json.dumps(document))
    job = Job(config="demo.py", notebook=tmp_path / "own.ipynb")
    assert write_kernel(tmp_path / "k", PUSH, job, owner="a", attempt=ATTEMPT) == ("RUN", "KIT_SHA256")
    pushed = json.loads((tmp_path / "k" / CODE_FILE).read_text())["cells"]
    injected = next(cell for cell in pushed if cell["metadata"].get("tags") == ["injected-parameters"])
    told = assigned(injected["source"])
    assert (told["EXPECT_ITERATION"], "RUN" in told, "KIT_SHA256" in told) == (800, False, False)


def test_a_version_tells_the_config_that_a_relay_has_pushed_it_for(tmp_path: Path) -> None:
    write_kernel(tmp_path / "kernel", PUSH, JOB, owner="alice", attempt=ATTEMPT)
    text = (tmp_path / "kernel" / CODE_FILE).read_text()
    assert (is_for(text, "demo.py"), is_for(text, "another.py")) == (True, False)
    assert is_for(NOTEBOOK.read_text(), "another.py")


def test_a_notebook_that_cannot_take_the_parameters_is_refused(tmp_path: Path) -> None:
    for name, text, says in (
        ("torn", "{", "no readable notebook"),
        ("other", '{"cells": []}', "no cell tagged"),
        ("old", '{"cells": [{"metadata": {"tags": ["parameters"]}, "source": "CONFIG = 1"}]}', "not have"),
    ):
        path = tmp_path / f"{name}.ipynb"
        path.write_text(text)
        with pytest.raises(UsageError, match=says):
            write_kernel(tmp_path / "k", PUSH, Job(config="d.py", notebook=path), owner="a", attempt=ATTEMPT)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"owner": "Alice Smith"}, "is no user name"),
        ({"slug": "Mapsage Train"}, "Try --slug mapsage-train"),
        ({"slug": "abc"}, "Choose a longer one"),
        ({"slug": "two--dashes"}, "Try --slug two-dashes"),
        ({"datasets": ["kit"]}, "Write it as OWNER/SLUG"),
        ({"checkpoint_dataset": "bob/saved-here"}, "is not alice's"),
        ({"checkpoint_dataset": "alice/abc"}, "6 to 50 characters"),
        ({"checkpoint_dataset": "none", "transport": "dataset"}, "needs a --checkpoint-dataset"),
        ({"until": 0}, "--until 0 is too low"),
        ({"max_sessions": -1}, "--max-sessions -1 is too low"),
        ({"session_limit": "13h"}, "ends every session at 12h"),
        ({"session_limit": "5m"}, "leaves nothing"),
        ({"session_limit": "soon"}, "is not a duration"),
        ({"poll": "0"}, "without a pause"),
        ({"machine": "nvidiaTeslaP100"}, "no kernels for it"),
        ({"machine": "TpuV6E8"}, "the kit trains on GPUs"),
        ({"machine": "NvidiaT4"}, "is none of Kaggle's"),
        ({"config": "nothing.py"}, "There is no config nothing.py"),
        ({"overrides": ["nonsense"]}, "nonsense"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_sentence_before_kaggle_is_asked(
    changes: dict[str, Any], says: str
) -> None:
    asked: dict[str, Any] = {"config": "demo.py", "owner": "alice", "slug": "mapsage-train", **changes}
    with pytest.raises(MapsageError, match=says) as caught:
        command.read(asked.pop("config"), **asked)
    assert caught.value.exit_code == 2


def test_a_config_that_only_this_machine_has_is_refused_and_one_on_kaggle_taken(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("max_iters = 3")
    with pytest.raises(UsageError, match="sessions on Kaggle do not have it"):
        command.read(str(own), owner="alice", slug="mapsage-train")
    asked = command.read("/kaggle/input/own/own.py", owner="alice", slug="mapsage-train")
    assert (asked.job.config, asked.job.stem, asked.settings.config_max_iters) == (
        "/kaggle/input/own/own.py",
        "own",
        None,
    )
    with pytest.raises(UsageError, match="Give --until N"):
        command.plan_text(asked)


def test_sessions_without_internet_are_not_told_to_upload() -> None:
    asked = command.read("demo.py", owner="alice", slug="mapsage-train", internet=False)
    assert asked.job.upload_to is None
    assert asked.settings.checkpoint_dataset == "alice/mapsage-train-checkpoints"


# -- the plan


def test_the_plan_fits_every_session_into_its_limit_and_reaches_the_end() -> None:
    found = plan(
        start=1_000, end=40_000, session_limit_s=12 * 3600, reserve_s=600, now_s=0.0, val_interval=4_000,
        pace={"iteration_s": 2.0, "validation_s": 900.0},
        quota=Quota(left_s=30 * 3600.0, allowed_s=30 * 3600.0, used_s=0.0),
    )  # fmt: skip
    assert found.reaches_end
    assert found.legs[0].start == 1_000
    assert found.legs[-1].end == 40_000
    for leg, after in zip(found.legs, found.legs[1:], strict=False):
        assert leg.end == after.start
        assert leg.seconds <= 12 * 3600 - 600
    assert found.needed_s == pytest.approx(39_000 * 2 + 10 * 900 + 600 * len(found.legs), rel=0.01)
    assert "an iteration" not in found.assumed
    assert found.finish_s == pytest.approx(found.needed_s)


def test_the_plan_says_where_it_does_not_reach_the_end_or_where_nothing_fits() -> None:
    few = plan(start=0, end=40_000, session_limit_s=3600, reserve_s=600, now_s=0.0, pace={}, most_sessions=2)
    assert (len(few.legs), few.reaches_end) == (2, False)
    assert "iteration 40,000 is not reached" in plan_text(few, end=40_000, quota_left_s=None)
    none = plan(start=0, end=40_000, session_limit_s=700, reserve_s=600, now_s=0.0, pace={})
    assert "no iteration fits" in plan_text(none, end=40_000, quota_left_s=None)
    done = plan(start=9, end=9, session_limit_s=3600, reserve_s=600, now_s=0.0, pace={})
    assert "nothing to do" in plan_text(done, end=9, quota_left_s=7200.0)


# -- the log


def test_the_kits_own_refusal_is_found_in_a_log_as_kaggle_keeps_it() -> None:
    error = "\x1b[31mmapsage_kaggle.errors.DataError\x1b[0m: No images. Add them.\n"
    pieces = [
        {"stream_name": "stdout", "time": 1.0, "data": "[10/400] loss\n"},
        {"stream_name": "stderr", "time": 9.5, "data": error},
    ]
    log = read_log(json.dumps(pieces))
    assert (log.refusal, log.exit_code, log.iteration, log.seconds) == ("No images. Add them.", 2, 10, 9.5)
    assert read_log("ValueError: something else").refusal == ""
    assert (read_log("").seen, read_log("[]").seen, read_log("no json").seen) == (False, True, True)


def test_progress_is_read_as_the_session_prints_it() -> None:
    from io import StringIO

    from mapsage_kaggle.display.text import TextSink
    from mapsage_kaggle.events import Event

    printed = StringIO()
    sink = TextSink(max_iters=400, stream=printed, every_s=0.0)
    sink.handle(Event(event="iteration", iteration=120, data={"loss": 0.5}))
    sink.handle(Event(event="validation", iteration=120, data={"metrics": {"mIoU": 51.25, "aAcc": 70.0}}))
    log = read_log(printed.getvalue())
    assert (log.iteration, log.max_iters, log.score) == (120, 400, 51.25)
