"""The notebook's session: what its cells call, and runs as people and papermill make them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import warm
from support.machines import GOOD
from support.notebooks import (
    ROOT,
    SMALL,
    Papermill,
    code_cells,
    kernel_environment,
    write_kernel,
)
from support.standin import processes_of

import mapsage_kaggle
from mapsage_kaggle import machine
from mapsage_kaggle.config.modules import find_config
from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.display.live import LiveView, TrainingPanel, training_panel
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Finding, Panel
from mapsage_kaggle.display.progress import Progress
from mapsage_kaggle.display.text import TextSink, headline
from mapsage_kaggle.errors import CheckpointError, ConfigError, DataError, MachineError, UsageError
from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.machine import parse_load
from mapsage_kaggle.notebook.session import NotebookSession, preflight
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import CheckpointRef, SessionRecord

# -- what the cells call


def test_the_package_offers_what_the_first_cells_call() -> None:
    assert mapsage_kaggle.__all__ == ["__version__", "install", "maps", "preflight", "selftest"]
    assert all(callable(getattr(mapsage_kaggle, name)) for name in mapsage_kaggle.__all__[1:])


@pytest.mark.parametrize("name", ["demo", "demo.py", "configs/demo.py", str(ROOT / "configs" / "demo.py")])
def test_a_config_is_found_by_path_or_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / "configs" / "demo.py"


@pytest.mark.parametrize("name", ["train_loveda", "train_loveda.py", "train_loveda_kaggle"])
def test_a_configs_name_is_completed(name: str) -> None:
    assert find_config(name) == ROOT / "configs" / "train_loveda_kaggle.py"


def test_an_unknown_config_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"There is no config nosuch.*demo\.py.*train_earthvqa_kaggle\.py"):
        find_config("nosuch")


def test_a_language_that_nothing_is_written_in_is_refused() -> None:
    with pytest.raises(UsageError, match="There are no texts in 'tlh'"):
        preflight("demo", language="tlh")


def test_a_panel_escapes_what_it_shows() -> None:
    panel = Panel(title="T", findings=(Finding(tone="bad", name="data", message="<b>&"),), diff="+a = '<i>'")
    assert "&lt;b&gt;&amp;" in panel.html
    assert "<i>" not in panel.html
    assert "✗ data  <b>&" in panel.text


def test_a_panel_gives_both_html_and_text() -> None:
    assert set(Panel(title="T")._repr_mimebundle_()) == {"text/html", "text/plain"}


# -- preflight


@pytest.fixture
def able(kaggle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a stand-in on a machine that can train, which nobody has to be asked about."""
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(kaggle))
    monkeypatch.setattr("mapsage_kaggle.notebook.session.survey", lambda paths, **_: replace(GOOD, inputs=()))
    return kaggle


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """Return the panels that cells show."""
    panels: list[Panel] = []
    monkeypatch.setattr("mapsage_kaggle.notebook.session.show", panels.append)
    return panels


def test_preflight_shows_classes_images_and_masks_and_that_no_checkpoint_is_there(
    able: Path, shown: list[Panel]
) -> None:
    preflight("demo", session_limit="2400h")
    panel = shown[0]
    assert panel.tone == "good"
    told = {item.name: item.message for item in panel.findings}
    assert told["checkpoint"].startswith("None is attached")
    assert "all sound" in told["data"]
    assert [picture[:4] for picture in panel.pictures if isinstance(picture, bytes)] == [b"\x89PNG"]
    assert len(panel.html) < 600_000


@pytest.mark.parametrize("attached", [False, True])
def test_preflight_says_whether_the_pretrained_weights_are_attached(
    able: Path, attached: bool, shown: list[Panel]
) -> None:
    place = able / "input" / "weights" / "mit_b2.pth"
    if attached:
        place.parent.mkdir()
        place.touch()
    preflight("demo", session_limit="2400h", overrides=["model.pretrained=https://host/mit_b2.pth"])
    row = next(item for item in shown[0].findings if item.name == "pretrained weights")
    assert row.tone == ("good" if attached else "note")
    assert str(place) in row.message if attached else "mit_b2.pth is not attached" in row.message


def test_a_picked_file_gives_its_weights_alone_where_that_was_chosen(
    able: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    from mapsage_kaggle.display.widgets import CheckpointPicker
    from mapsage_kaggle.engine.jobs.inference import build_model

    cfg = read_config(ROOT / "configs" / "demo.py", ["model.decode_head.loss_decode.avg_non_ignore=True"])
    weights = tmp_path / "best_mIoU_iter_8.pth"
    state = build_model(for_inference(cfg, {})).state_dict()
    torch.save({"meta": {"iter": 8}, "state_dict": state, "message_hub": {}}, weights)
    monkeypatch.setattr("mapsage_kaggle.notebook.session.show", lambda panel: None)
    session = preflight("demo", session_limit="2400h")
    picker = CheckpointPicker(session._words, [weights], on_choice=session._pick)

    picker._how.value = True
    picker._use.click()
    assert session.discovery is None  # not before it is confirmed
    picker._sure.click()

    assert session.discovery is not None
    choice = session.discovery.choice
    assert choice.action == "weights-only"
    assert choice.checkpoint is not None
    assert choice.checkpoint.target == weights


def test_a_data_set_that_is_missing_makes_preflight_red_and_ends_the_run(
    able: Path, shown: list[Panel]
) -> None:
    shutil.rmtree(able / "input" / "scenes")
    with pytest.raises(DataError, match=r"下没有数据集.*请挂载数据集"):
        preflight("demo", session_limit="2400h", language="zh")
    assert shown[0].tone == "bad"
    assert "没有数据集" in shown[0].text


def unasked(*_: object, **__: object) -> None:
    pytest.fail("torch was asked for what it need not tell")


@pytest.mark.parametrize("resume", ["require", "/nowhere/iter_8.pth"])
def test_where_nothing_can_be_resumed_nobody_waits_for_torch_to_hear_it(
    able: Path, monkeypatch: pytest.MonkeyPatch, resume: str, shown: list[Panel]
) -> None:
    monkeypatch.setattr("mapsage_kaggle.notebook.session.survey", unasked)
    monkeypatch.setattr("mapsage_kaggle.training.prepare.MOUNT_WAIT_S", 0.0)
    with pytest.raises(CheckpointError) as refused:
        preflight("demo", session_limit="2400h", resume=resume)
    assert shown[0].tone == "bad"
    assert str(refused.value) in shown[0].text
    record = SessionRecord.read(able / "working" / "work_dirs" / "demo" / "session.json")
    assert record.stop_reason == "refused"


def test_a_checkpoint_that_is_mounted_while_preflight_waits_for_it_is_shown(
    able: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Panel]
) -> None:
    late = able / "input" / "notebooks" / "me" / "run" / "iter_8.pth"

    def mount(options: object, **_: object) -> None:
        late.parent.mkdir(parents=True)
        late.write_bytes(b"x")

    monkeypatch.setattr("mapsage_kaggle.notebook.session.has_gpu_device", lambda: True)
    monkeypatch.setattr("mapsage_kaggle.notebook.session.discover", mount)
    preflight("demo", session_limit="2400h", resume="require")
    row = next(item for item in shown[0].findings if item.name == "checkpoint")
    assert (row.tone, str(late) in row.message) == ("good", True)


@pytest.mark.parametrize("device", [True, False])
def test_a_batch_run_without_any_gpu_is_refused_before_torch_is_asked(
    able: Path, monkeypatch: pytest.MonkeyPatch, device: bool, shown: list[Panel]
) -> None:
    monkeypatch.setattr("mapsage_kaggle.notebook.session.has_gpu_device", lambda: device)
    monkeypatch.setattr("mapsage_kaggle.machine.has_gpu_device", lambda: device)
    monkeypatch.setattr("mapsage_kaggle.machine.on_kaggle", lambda environ=None: True)
    monkeypatch.setattr("mapsage_kaggle.machine.ask_torch", unasked)
    monkeypatch.setattr("mapsage_kaggle.notebook.session.survey", machine.survey)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    with pytest.raises(pytest.fail.Exception if device else MachineError, match="torch"):
        preflight("demo", session_limit="2400h")
    assert [panel.tone for panel in shown] == ["bad"] * (not device)


def test_a_missing_data_set_is_told_before_torch_is_asked(
    able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(able / "input" / "scenes")
    monkeypatch.setattr("mapsage_kaggle.notebook.session.survey", unasked)
    with pytest.raises(DataError):
        preflight("demo", session_limit="2400h")


def test_of_two_data_sets_that_fit_both_are_named_and_the_parameter_that_chooses(able: Path) -> None:
    first, second = able / "input" / "scenes", able / "input" / "more"
    shutil.copytree(first, second)
    with pytest.raises(DataError, match=r'name it: OVERRIDES = \["data_root=FOLDER"\]') as refused:
        preflight("demo", session_limit="2400h")
    assert all(str(place) in str(refused.value) for place in (first, second))


def test_a_config_by_epochs_is_told_with_its_numbers_by_iterations(able: Path) -> None:
    with pytest.raises(ConfigError, match=r"train that one:\n# \d+ images are \d+ iterations an epoch"):
        preflight("demo", overrides=["train_cfg.type=EpochBasedTrainLoop", "train_cfg.max_epochs=2"])


def test_a_cell_refuses_in_the_language_of_the_notebook(able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapsage_kaggle.notebook.session.show", lambda panel: None)
    session = preflight("demo", session_limit="2400h", language="zh")
    with pytest.raises(UsageError, match=r"^还没有查找检查点。 请从头依次运行各单元格。$"):
        session.configure()


# -- the evaluation


class Ended:
    """A training that is over."""

    running = False

    def __init__(self, record: SessionRecord) -> None:
        self.record = record

    def wait(self) -> SessionRecord:
        return self.record


def evaluated_in(
    able: Path, monkeypatch: pytest.MonkeyPatch, *, limit: str, seconds: float | None, enabled: bool = True
) -> tuple[list[Panel], list[str]]:
    """Return the panels of an evaluate cell, and what it ran, in a session with so long a life."""
    shown: list[Panel] = []
    ran: list[str] = []
    monkeypatch.setattr("mapsage_kaggle.notebook.session.show", shown.append)
    session = preflight("demo", session_limit=limit, reserve="0m")
    best = CheckpointRef(file="best_mIoU_iter_8.pth", iteration=8, sha256="0" * 64, size_bytes=1)
    work_dir = WorkDir(session.work_dir)
    work_dir.path.mkdir(parents=True, exist_ok=True)
    record = SessionRecord(run_id="x", fingerprint="y", best=best)
    session.handle = Ended(record)  # type: ignore[assignment]
    if seconds is not None:
        line = {"event": "validation", "time_s": 1.0, "iteration": 8, "seconds": seconds}
        work_dir.events.write_text(json.dumps(line) + "\n")

    def fail(session: NotebookSession) -> None:
        ran.append("evaluation")
        raise CheckpointError("It is gone.", "Look for it.")

    monkeypatch.setattr("mapsage_kaggle.notebook.session._evaluate_best", fail)
    session.evaluate(enabled)
    return shown[1:], ran


def test_no_evaluation_begins_that_the_session_has_no_time_for(
    able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The machine has been up for less than 240 h, and validations took an hour of them each.
    [panel], ran = evaluated_in(able, monkeypatch, limit="2400h", seconds=1e8)
    assert "No evaluation" in panel.lead
    assert ran == []


def test_without_a_timed_validation_an_evaluation_needs_an_hour_left(
    able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ran = evaluated_in(able, monkeypatch, limit="2400h", seconds=None)
    assert ran == ["evaluation"]


def test_an_evaluation_that_fails_is_shown_and_not_raised(
    able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [panel], ran = evaluated_in(able, monkeypatch, limit="2400h", seconds=5.0)
    assert ran == ["evaluation"]
    assert "are not touched by that. It is gone." in panel.lead


def test_the_evaluation_can_be_switched_off(able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [panel], ran = evaluated_in(able, monkeypatch, limit="2400h", seconds=5.0, enabled=False)
    assert "EVALUATE is False" in panel.lead
    assert ran == []


# -- the views of training


def told(event: str, iteration: int, **data: Any) -> Event:
    return Event(event=event, iteration=iteration, data=data)


class Shown:
    """A surface that keeps what it was given."""

    def __init__(self) -> None:
        self.panels: list[TrainingPanel] = []
        self.charts: list[bytes] = []

    def show(self, panel: TrainingPanel) -> None:
        self.panels.append(panel)

    def show_chart(self, png: bytes) -> None:
        self.charts.append(png)


def test_the_live_view_is_updated_twice_a_second_at_most_and_stays_small() -> None:
    shown = Shown()
    view = LiveView(shown, Words(), max_iters=10_000)
    for iteration in range(1, 5000):
        view.handle(told("iteration", iteration, loss=1.0, lr=1e-3, iteration_s=0.1, left_s=60.0))
        view.handle(told("warning", iteration, message="an image was skipped"))
    view.handle(told("stop", 5000, message="done", reason="user"))
    view.close()
    assert len(shown.panels) < 20
    last = shown.panels[-1]
    assert (last.aside, last.state) == ("5,000 / 10,000", "stopped")
    assert len(last.notices) <= 8
    assert len(last.html + last.events_html) < 12_000
    assert len(shown.charts[-1]) < 60_000


def test_twelve_hours_of_events_leave_a_bounded_state_that_still_spans_them() -> None:
    progress = Progress(max_iters=40_000)
    for iteration in range(1, 40_001):
        progress.take(told("iteration", iteration, loss=1.0 / iteration, iteration_s=1.0))
        if iteration % 50 == 0:
            progress.take(told("validation", iteration, metrics={"mIoU": iteration / 400}))
    assert len(progress.losses) <= 400
    assert len(progress.scores) <= 200
    assert progress.losses[0][0] < 400
    assert progress.losses[-1][0] == 40_000
    assert progress.best == (40_000, 100.0)


def test_training_that_went_back_to_a_checkpoint_drops_what_is_trained_again() -> None:
    progress = Progress(max_iters=100)
    for iteration in range(1, 41):
        progress.take(told("iteration", iteration, loss=1.0))
    progress.take(told("restart", 40, message="crashed"))
    progress.take(told("training", 30, max_iters=100))
    assert (progress.iteration, progress.losses[-1][0]) == (30, 30)


def test_the_view_says_where_session_and_run_are_going() -> None:
    progress = Progress(max_iters=40_000)
    plan = {"reach": 12_000, "sessions_left": 3, "finish_s": 86_400.0, "finish_by_quota_s": None}
    progress.take(told("iteration", 1000, loss=0.5, iteration_s=1.0, data_s=0.25, left_s=3600.0, plan=plan))
    progress.take(Event(event="checkpoint", iteration=900, time_s=1000.0, data={"file": "iter_900.pth"}))
    panel = training_panel(progress, Words(), now_s=1060.0)
    assert panel.reach.startswith(
        "This session will get to about 12,000 · then 3 more session(s) · done about 1970-01-02"
    )
    assert panel.reach_share == 0.3
    tiles = {tile.name: (tile.value, tile.aside) for tile in panel.tiles}
    assert tiles["pace"] == ("1.00 s/iteration", "25 % waiting for data")
    assert tiles["last checkpoint"][1].startswith("1m 00s ago")


def test_memory_and_load_of_each_gpu_are_shown() -> None:
    loads = parse_load("3050, 15360, 97\n[N/A], x\n1024, 15360, [N/A]\n")
    panel = training_panel(Progress(max_iters=10), Words(), now_s=0.0, gpus=loads)
    assert [(tile.name, tile.value, tile.aside) for tile in panel.tiles] == [
        ("GPU 0", "3.0 / 15.0 GiB", "97 % busy"),
        ("GPU 1", "1.0 / 15.0 GiB", ""),
    ]


def test_plain_lines_come_at_a_rate_that_a_saved_notebook_bears(capsys: pytest.CaptureFixture[str]) -> None:
    sink = TextSink(max_iters=1000, every_s=3600.0)
    for iteration in range(1, 1000):
        sink.handle(told("iteration", iteration, loss=1.0))
    for _ in range(2):
        sink.handle(told("checkpoint", 500, file="iter_500.pth", size_bytes=1_000_000))
    sink.handle(told("validation", 500, metrics={"aAcc": 70.0, "mIoU": 50.0}, best=True))
    assert capsys.readouterr().out.splitlines() == [
        "[1/1000]  loss 1.0000",
        "[500] saved and verified: iter_500.pth (1.0 MB)",
        "[500] validation: mIoU 50.00 %, aAcc 70.00 % (best so far)",
    ]


def test_scores_have_their_own_unit_and_a_score_of_zero_is_told() -> None:
    event = told("validation", 500, metrics={"aAcc": 70.0, "rmse": 0.35, "mIoU": 0.0})
    progress = Progress(max_iters=1000)
    progress.take(event)
    (notice,) = training_panel(progress, Words(), now_s=0.0).notices
    for text in (headline(event), notice.text):
        assert "mIoU 0.00 %, aAcc 70.00 %, rmse 0.35" in text
        assert "rmse 0.35 %" not in text


def test_the_lines_of_a_batch_run_are_told_in_chinese_too(capsys: pytest.CaptureFixture[str]) -> None:
    sink = TextSink(max_iters=1000, words=Words("zh"))
    sink.handle(told("iteration", 1, loss=1.0, lr=1e-3, iteration_s=0.5, left_s=60.0, iterations_left=100))
    sink.handle(told("stop", 101, message="Stopped on request; everything is saved."))
    assert capsys.readouterr().out.splitlines() == [
        "[1/1000]  损失 1.0000  学习率 0.001  0.50 秒/迭代  剩余 1m 00s  预计到第 101 次迭代",
        "[101] 已停止：已按要求停止，所有内容都已保存。",
    ]


def test_a_memory_policy_that_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="on_memory='shrink' means nothing"):
        preflight("demo", on_memory="shrink")  # type: ignore[arg-type]


def test_numbers_in_a_text_are_grouped() -> None:
    assert Words()("from_to", start=0, end=40_000) == "0 to 40,000"


# -- real runs of it

FAILING_MODULE = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mapsage_kaggle.errors import TrainingError


@HOOKS.register_module()
class FailsLater(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 9:
            raise TrainingError("the disk caught fire")
"""


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Return a stand-in for ``/kaggle`` with a few scenes attached."""
    for name in ("working", "temp"):
        (tmp_path / name).mkdir()
    generate_scenes(tmp_path / "input" / "scenes", train=4, val=2, size=128, seed=0)
    return tmp_path


def papermill(kaggle: Path, *, cold: bool = False, **parameters: Any) -> tuple[int, Any, str]:
    """Run the notebook as Kaggle does; return the exit code, the saved notebook and the log."""
    done = Papermill(kaggle, sys.executable if cold else warm.python())(**parameters)
    return done.code, done.saved, done.log


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


@pytest.mark.slow(scope_s=120)
def test_a_batch_run_trains_and_saves_a_notebook_with_pictures_and_without_widgets(kaggle: Path) -> None:
    code, saved, log = papermill(kaggle, cold=True, EVALUATE=True)
    assert code == 0, log
    outputs = outputs_of(saved)
    assert not [
        item for item in outputs if "application/vnd.jupyter.widget-view+json" in item.get("data", {})
    ]
    assert "widgets" not in saved.metadata
    pages = "".join(item.data["text/html"] for item in outputs if "text/html" in item.get("data", {}))
    assert "data:image/png;base64," in pages
    assert "12 / 12" in pages
    assert "IoU by class, %" in pages
    assert "frequency-weighted IoU" in pages
    assert "on 2 images of val" in pages
    assert (kaggle / "working" / "__notebook__.ipynb").stat().st_size < 5_000_000
    work_dir = kaggle / "working" / "work_dirs" / "demo"
    assert SessionRecord.read(work_dir / "session.json").stop_reason == "completed"
    assert "frequency-weighted IoU" in WorkDir(work_dir).report.read_text()
    assert len(list(WorkDir(work_dir).evaluation.glob("*.png"))) == 2


@pytest.mark.slow
def test_nothing_to_resume_from_ends_a_batch_run_before_it_trains(kaggle: Path) -> None:
    code, saved, log = papermill(kaggle, RESUME="require")
    assert code != 0
    assert "CheckpointError" in log
    work_dir = kaggle / "working" / "work_dirs" / "demo"
    assert SessionRecord.read(work_dir / "session.json").stop_reason == "refused"
    assert not list(work_dir.glob("*.pth"))
    assert not [
        cell for cell in code_cells(saved) if "session.train()" in cell.source and cell.execution_count
    ]


@pytest.mark.slow
def test_a_failure_after_a_new_checkpoint_completes_the_notebook_in_red(kaggle: Path) -> None:
    """The person's own module, beside the config, brings the hook that fails in iteration 10."""
    code_folder = kaggle / "input" / "my-code"
    code_folder.mkdir()
    (code_folder / "my_failing_hook.py").write_text(FAILING_MODULE)
    config = code_folder / "mine.py"
    config.write_text(
        f"_base_ = [{str(ROOT / 'configs' / 'demo.py')!r}]\n"
        "custom_imports = dict(imports=['my_failing_hook'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='FailsLater')]\n"
    )
    changes = ["train_cfg.val_interval=12", "default_hooks.checkpoint.interval=6"]
    code, saved, log = papermill(kaggle, CONFIG=str(config), OVERRIDES=[*SMALL, *changes], EVALUATE=True)
    assert code == 0, log
    record = SessionRecord.read(kaggle / "working" / "work_dirs" / "mine" / "session.json")
    assert (record.stop_reason, record.end_iteration) == ("failed", 6)
    *_, evaluation, last = (item.data for item in outputs_of(saved) if "data" in item)
    assert "No evaluation: nothing has been validated yet" in evaluation["text/html"]
    assert 'class="ms-panel bad"' in last["text/html"]
    assert "the disk caught fire" in last["text/html"]
    assert "must resume at iteration 6" in last["text/html"]


class Interactive:
    """A kernel in which somebody runs cell after cell."""

    def __init__(self, kaggle: Path) -> None:
        from jupyter_client.manager import start_new_kernel

        self.kernel, self.client = start_new_kernel(kernel_name="python3", cwd=str(kaggle / "working"))

    def run(self, source: str) -> str:
        """Run a cell to its end, and return what it shows as text."""
        heard: list[str] = []

        def hear(message: Any) -> None:
            content = message["content"]
            heard.append(content.get("text", "") + content.get("data", {}).get("text/plain", ""))

        reply = self.client.execute_interactive(source, output_hook=hear, timeout=240)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(heard)

    def run_up_to(self, notebook: Any, source: str) -> str:
        """Run the cells before the one that has this in its source, for a training that takes long."""
        overrides = [line.replace("12", "4000") for line in SMALL]
        heard = ""
        for cell in code_cells(notebook):
            if source in cell.source:
                break
            heard += self.run(cell.source)
            if "parameters" in cell.metadata.get("tags", []):
                self.run(f"CONFIG, GPUS, OVERRIDES, RESERVE = 'demo.py', 0, {overrides!r}, '10s'")
        return heard

    def close(self) -> None:
        """End it."""
        self.client.stop_channels()
        self.kernel.shutdown_kernel(now=True)


@pytest.fixture
def interactive(kaggle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Interactive]]:
    """Return what starts a kernel; with ``cold`` it is a process that imports for itself."""
    started: list[Interactive] = []

    def start(*, cold: bool = False) -> Interactive:
        write_kernel(kaggle / "jupyter", sys.executable if cold else warm.python())
        for name, value in kernel_environment(kaggle, "Interactive").items():
            monkeypatch.setenv(name, value)
        started.append(Interactive(kaggle))
        return started[-1]

    yield start
    for kernel in started:
        kernel.close()


def wait_for(kaggle: Path, kind: str, at_least: int = 0) -> Event:
    """Return the first event of a kind, as soon as there is one."""
    log, end = kaggle / "working" / "work_dirs" / "demo" / "events.jsonl", time.monotonic() + 120.0
    while time.monotonic() < end:
        for event in read_events(log):
            if event.event == kind and event.iteration >= at_least:
                return event
        time.sleep(0.1)
    raise AssertionError(f"no {kind} event: {read_events(log)}")


@pytest.mark.slow
def test_cell_by_cell_training_returns_at_once_and_an_interrupt_stops_it_in_order(
    kaggle: Path, notebook: Any, interactive: Callable[..., Interactive]
) -> None:
    kernel = interactive()
    kernel.run_up_to(notebook, "session.what_next()")
    assert "True" in kernel.run("session.handle.running")
    wait_for(kaggle, "iteration")
    # As the interrupt button does; jupyter_client's own way leaves an event loop in a timer's thread.
    group = os.getpgid(kernel.kernel.provisioner.pid)
    threading.Timer(3.0, os.killpg, (group, signal.SIGINT)).start()
    assert re.search(
        r"<session 1 of run \w+: user, iterations 0 to \d+ of 4000>", kernel.run("session.wait()")
    )
    assert "Session 1: stopped" in kernel.run("session.what_next()")
    assert "False" in kernel.run("session.handle.running")
    record = SessionRecord.read(kaggle / "working" / "work_dirs" / "demo" / "session.json")
    assert (record.stop_reason, record.exit_code) == ("user", 0)


@pytest.mark.slow
def test_a_session_stopped_in_the_middle_of_a_cell_goes_on_from_what_was_proven(
    kaggle: Path, notebook: Any, interactive: Callable[..., Interactive]
) -> None:
    """Kaggle's *Stop session* kills all of its processes at once."""
    kernel = interactive(cold=True)
    kernel.run_up_to(notebook, "session.what_next()")
    kernel.client.execute("session.wait()")
    wait_for(kaggle, "iteration", wait_for(kaggle, "checkpoint", 6).iteration + 1)
    while left := processes_of(kaggle):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    killed = SessionRecord.read(kaggle / "working" / "work_dirs" / "demo" / "session.json")
    assert killed.stop_reason == "running"
    assert killed.checkpoint is not None
    overrides = [line.replace("12", "4000") for line in SMALL]
    session = preflight("demo", session_limit="2400h", gpus=0, overrides=overrides)
    session.discover()
    assert session.discovery is not None
    choice = session.discovery.choice
    assert choice.action == "resume"
    assert choice.inspection is not None
    assert choice.inspection.iteration == killed.checkpoint.iteration


class NothingToTrain:
    """Stands for a training, and for its view."""

    running = False
    live = None

    def __init__(self, *_: Any, **options: Any) -> None:
        pass

    def start(self) -> NothingToTrain:
        return self

    def wait(self) -> None:
        pass

    def close_after(self, wait: Callable[[], None]) -> None:
        pass


@pytest.mark.parametrize(
    ("on_kaggle", "run_type", "times"),
    [(True, "interactive", 1), (True, "batch", 0), (False, "interactive", 0)],
)
def test_an_idle_session_of_kaggle_s_is_told_once_what_keeps_its_files(
    able: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    on_kaggle: bool, run_type: Any, times: int,
) -> None:  # fmt: skip
    machine = replace(GOOD, inputs=(), on_kaggle=on_kaggle, run_type=run_type)
    monkeypatch.setattr("mapsage_kaggle.notebook.session.survey", lambda paths, **_: machine)
    monkeypatch.setattr("mapsage_kaggle.notebook.session.View", NothingToTrain)
    monkeypatch.setattr("mapsage_kaggle.training.handle.TrainingHandle", NothingToTrain)
    session = preflight("demo", session_limit="2400h", gpus=0)
    session.discover()
    session.configure()
    session.train()
    told = capsys.readouterr().out
    assert told.count("Save & Run All, UPLOAD_TO, or Persistence (in the notebook's settings) keep") == times
