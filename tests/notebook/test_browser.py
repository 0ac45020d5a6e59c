"""The notebook and the report as people see them: JupyterLab in a real browser, on a real, small training."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from support.notebooks import write_kernel

from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.display.locale.words import LANGUAGES
from mapsage_kaggle.display.report import write_report
from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import SessionRecord

pytestmark = pytest.mark.slow(scope_s=150)

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TOKEN = "a-token-for-a-test"

SMALL = [
    "train_cfg.max_iters=4000",
    "train_cfg.val_interval=20",
    "param_scheduler.0.end=2",
    "param_scheduler.1.begin=2",
    "param_scheduler.1.end=4000",
    "train_dataloader.batch_size=2",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{CHROMIUM} is missing, and CI is to install it")
        pytest.skip(f"{CHROMIUM} is not installed (Debian's package chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


@dataclass
class Lab:
    """JupyterLab over a stand-in for ``/kaggle``."""

    root: Path
    port: int

    @property
    def work_dir(self) -> WorkDir:
        return WorkDir(self.root / "working" / "work_dirs" / "demo")

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.work_dir.events) if event.event == kind]

    def record(self) -> SessionRecord:
        """Read the record; between two sessions there is none for a moment."""
        wait_until(self.work_dir.session.is_file, seconds=20, what="a record")
        return SessionRecord.read(self.work_dir.session)

    def put_notebook(self, **parameters: Any) -> None:
        """Put the real notebook there, with parameters as papermill injects them."""
        notebook = load_notebook_node(str(ROOT / "notebooks" / "mapsage_train.ipynb"))
        defaults = {
            "CONFIG": "demo.py", "OVERRIDES": SMALL, "SESSION_LIMIT": "20m", "RESERVE": "10s", "GPUS": 0,
        }  # fmt: skip
        notebook = parameterize_notebook(notebook, {**defaults, **parameters})
        nbformat.write(notebook, self.root / "working" / "train.ipynb")

    def open(self, browser: Any) -> Notebook:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(f"http://127.0.0.1:{self.port}/lab/tree/train.ipynb?token={TOKEN}")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.wait_for_function("window.jupyterapp !== undefined")
        return Notebook(page)


@dataclass
class Notebook:
    """The notebook's page."""

    page: Any

    def command(self, name: str, **arguments: Any) -> None:
        self.page.evaluate(
            "([name, args]) => { window.jupyterapp.commands.execute(name, args) }", [name, arguments]
        )

    def wait_for_kernel(self) -> None:
        self.page.evaluate(
            """async () => {
                const context = window.jupyterapp.shell.currentWidget.sessionContext;
                await context.ready;
                await context.session.kernel.info;
            }"""
        )

    def run_all(self) -> None:
        self.wait_for_kernel()
        self.command("notebook:run-all-cells")

    def run(self, source: str) -> None:
        """Run the one cell that has this in its source."""
        cells = self.page.locator(".jp-CodeCell").filter(has_text=source)
        cells.last.locator(".jp-InputPrompt").click()
        self.command("notebook:run-cell")

    def run_new(self, source: str) -> Any:
        """Run something in a new cell at the end; return the cell once it runs."""
        self.page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt").click()
        before = self.page.locator(".jp-CodeCell").count()
        self.command("notebook:insert-cell-below")
        cell = self.page.locator(".jp-CodeCell").nth(before)
        cell.locator(".cm-content").click()
        self.page.keyboard.type(source)
        self.command("notebook:run-cell")
        cell.locator(".jp-InputPrompt", has_text="[*]").wait_for(timeout=180_000)
        return cell

    def run_up_to(self, source: str) -> None:
        """Run the cells before the one that has this in its source."""
        self.wait_for_kernel()
        cells = self.page.locator(".jp-CodeCell").filter(has_text=source)
        cells.last.locator(".jp-InputPrompt").click()
        self.command("notebook:run-all-above")

    def interrupt_kernel(self) -> None:
        self.page.evaluate(
            """async () => {
                await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt();
            }"""
        )

    def restart_kernel(self) -> None:
        self.page.evaluate(
            """async () => {
                await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart();
            }"""
        )

    def save(self) -> None:
        """Save the file, as JupyterLab does by itself every other minute."""
        self.page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save') }")

    def cell(self, source: str) -> Any:
        """Return the output of the cell that has this in its source."""
        cells = self.page.locator(".jp-CodeCell").filter(has_text=source)
        return cells.last.locator(".jp-Cell-outputWrapper")

    @property
    def view(self) -> Any:
        return self.page.locator(".mapsage-view").last

    def iteration(self) -> int:
        text = self.view.locator(".ms-right").inner_text()
        return int(text.partition("/")[0].replace(",", ""))

    def press(self, name: str) -> None:
        self.view.locator(f"button.mapsage-{name}").click()


def wait_until(true: Callable[[], bool], *, seconds: float = 120.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what or true}"
        time.sleep(0.25)


@contextmanager
def running_lab(root: Path, *, dark: bool = False) -> Iterator[Lab]:
    for name in ("working", "temp"):
        (root / name).mkdir(parents=True)
    generate_scenes(root / "input" / "scenes", train=6, val=2, size=128, seed=0)
    jupyter = root / "jupyter"
    write_kernel(jupyter / "data", sys.executable)
    # Every cell stays in the page, seen or not.
    for place, setting in (
        ("notebook-extension/tracker", {"windowingMode": "none"}),
        ("apputils-extension/themes", {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}),
        ("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False}),
    ):
        file = jupyter / "settings" / "@jupyterlab" / f"{place}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {
        **os.environ,
        "MAPSAGE_KAGGLE_ROOT": str(root),
        "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
        "JUPYTER_DATA_DIR": str(jupyter / "data"),
        "JUPYTER_CONFIG_DIR": str(jupyter / "config"),
        "JUPYTER_RUNTIME_DIR": str(jupyter / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(jupyter / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(jupyter / "workspaces"),
        "IPYTHONDIR": str(jupyter / "ipython"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    log = root / "lab.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
                "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}",
                f"--ServerApp.root_dir={root / 'working'}", "--LabApp.expose_app_in_browser=True",
                "--LabApp.news_url=None",
            ],
            env=environment, cwd=root / "working", stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, seconds=60, what="JupyterLab")
        yield Lab(root=root, port=port)
    finally:
        # The server ends its kernels; their trainings then see the end of their pipe, save and end.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def picture(place: Any, folder: Path, name: str) -> None:
    """Keep what is seen, for people who look at it; pytest keeps its folders of the last three runs."""
    place.screenshot(path=str(folder / f"{name}.png"))


def unfold(place: Any) -> None:
    place.locator(".jupyter-widget-Collapse-header").first.click()


def test_training_is_seen_saved_stopped_chosen_changed_and_resumed(browser: Any, tmp_path: Path) -> None:
    """The life of an interactive session, as one person would go through it."""
    with running_lab(tmp_path / "kaggle") as lab:
        lab.put_notebook()
        notebook = lab.open(browser)
        notebook.run_all()
        notebook.view.locator(".tiles").wait_for(timeout=180_000)
        first = notebook.iteration()
        wait_until(lambda: notebook.iteration() > first, what="progress in the view")

        saved = len(lab.events("checkpoint"))
        notebook.press("save")
        wait_until(lambda: len(lab.events("checkpoint")) > saved, what="the checkpoint asked for")
        assert not lab.events("stop")
        wait_until(lambda: bool(lab.events("validation")), what="a validation")
        picture(notebook.page, tmp_path, "training")
        picture(notebook.cell("mapsage_kaggle.preflight("), tmp_path, "preflight")

        # A page that was closed comes back with what is true then.
        notebook.save()
        notebook.page.close()
        before = lab.events("iteration")[-1].iteration
        notebook = lab.open(browser)
        notebook.view.locator(".tiles").wait_for(timeout=90_000)
        wait_until(lambda: notebook.iteration() > before, what="progress after coming back")

        notebook.press("stop")
        wait_until(lambda: lab.record().stop_reason == "user", what="the end")
        stopped = lab.record()
        assert stopped.exit_code == 0
        assert stopped.checkpoint is not None
        assert stopped.checkpoint.iteration == stopped.end_iteration > 0
        notebook.page.locator("text=Session 1: stopped").wait_for(timeout=180_000)
        picture(notebook.cell("session.what_next()"), tmp_path, "stopped")

        # Another start is a choice in two steps; until the second one nothing is changed.
        notebook.run_up_to("session.configure()")
        picker = notebook.cell("session.discover()").locator(".mapsage-picker")
        picker.wait_for(timeout=180_000)
        unfold(picker)
        picker.locator("select").select_option(label="nothing: a fresh start")
        picker.locator("button.mapsage-use").click()
        picker.locator("button.mapsage-cancel").click()
        picker.locator("select").select_option(index=0)
        picker.locator("button.mapsage-use").click()
        picture(notebook.cell("session.discover()"), tmp_path, "picker")
        picker.locator("button.mapsage-sure").click()
        picker.locator("text=Chosen by hand").wait_for(timeout=180_000)
        picker.locator("text=taken as named").wait_for()

        # The form marks what is wrong, shows what would change, and writes nothing.
        notebook.run("session.configure()")
        form = notebook.cell("session.configure()").locator(".mapsage-form")
        form.wait_for(timeout=180_000)
        unfold(form)
        form.locator(".mapsage-knob-batch input").fill("many")
        form.locator(".mapsage-knob-batch input").press("Tab")
        form.locator("text=a whole number from 1").wait_for()
        assert form.locator("button.mapsage-check").is_disabled()
        form.locator(".mapsage-knob-batch input").fill("2")
        form.locator(".mapsage-knob-val_interval input").fill("30")
        form.locator(".mapsage-knob-val_interval input").press("Tab")
        form.locator("text=+train_cfg.val_interval = 30").wait_for()
        picture(notebook.cell("session.configure()"), tmp_path, "form")
        config = lab.work_dir.config.read_text()
        form.locator("button.mapsage-check").click()
        form.locator("text=Used from now on").wait_for(timeout=180_000)
        assert lab.work_dir.config.read_text() == config

        notebook.run("session.train()")
        wait_until(lambda: lab.record().session_index == 2, what="the second session")
        wait_until(lambda: bool(lab.events("resume")) and bool(lab.events("iteration")), what="a resume")
        assert lab.record().start_iteration == stopped.end_iteration
        assert "val_interval=30" in lab.work_dir.config.read_text().replace(" ", "")

        # A restarted kernel leaves a training that saves and ends; the cells wait for it and go on.
        notebook.restart_kernel()
        notebook.run_all()
        wait_until(lambda: lab.record().session_index == 3, seconds=180, what="the third session")
        wait_until(lambda: bool(lab.events("iteration")), what="iterations after the restart")
        third = lab.record()
        assert third.previous[-1]["end_iteration"] == third.start_iteration > stopped.end_iteration

        # Interrupting a cell that waits is a stop in good order, as the button is.
        waiting = notebook.run_new("session.wait()")
        notebook.interrupt_kernel()
        wait_until(lambda: lab.record().stop_reason == "user", what="the end")
        waiting.locator("text=<session 3 of run").wait_for(timeout=180_000)

        look_at_the_report(browser, lab, tmp_path)


def look_at_the_report(browser: Any, lab: Lab, folder: Path) -> None:
    """The page in light, in dark and in Chinese; it fetches nothing."""
    for language in LANGUAGES:
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1100, "height": 1000}, color_scheme=scheme)
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            report = write_report([lab.work_dir.path], out=folder / language, language=language)
            page.goto(report.as_uri())
            wide = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 0
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
            assert page.evaluate("[...document.images].every(item => item.complete && item.naturalWidth > 0)")
            page.screenshot(path=str(folder / f"report-{language}-{scheme}.png"), full_page=True)
            page.close()
