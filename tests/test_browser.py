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

from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.scenes import generate_scenes

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
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

    def run_all(self) -> None:
        self.page.evaluate(
            """async () => {
                const context = window.jupyterapp.shell.currentWidget.sessionContext;
                await context.ready;
                await context.session.kernel.info;
            }"""
        )
        self.command("notebook:run-all-cells")

    def save(self) -> None:
        """Save the file, as JupyterLab does by itself every other minute."""
        self.page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save') }")

    def cell(self, source: str) -> Any:
        """Return the output of the cell that has this in its source."""
        cells = self.page.locator(".jp-CodeCell").filter(has=self.page.locator(f"text={source}"))
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
    kernel = jupyter / "data" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    )
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


def picture(page: Any, folder: Path, name: str) -> None:
    page.screenshot(path=str(folder / f"{name}.png"))


def test_buttons_save_and_stop_while_training_goes_on_and_a_restarted_kernel_resumes(
    browser: Any, tmp_path: Path
) -> None:
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
        notebook.page.locator("text=Session 1: stopped").wait_for(timeout=60_000)
        picture(notebook.page, tmp_path, "stopped")
