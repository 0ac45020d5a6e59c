"""Trackers over several sessions: TensorBoard and Weights & Biases show a run as one.

What is logged also goes to a journal, one line per call, which each session hands on. The next one logs that
again up to the iteration that it resumes from, and continues there: so each step is logged once. What a
killed session logged beyond its last checkpoint is left out, and what its tracker had not yet written is not
lost.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

from mapsage_kaggle.config.reading import as_list, type_name
from mapsage_kaggle.config.tracking import JOURNAL, KINDS, trackers_of
from mapsage_kaggle.engine.checkpointing import number
from mapsage_kaggle.engine.reading import emit
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import parse_json
from mapsage_kaggle.paths import remove_tree, replace_file
from mapsage_kaggle.spec import ChildSpec

FINISH_S = 60.0
"""How long a tracker may take to end; what it has not sent by then is in the journal."""
_SETTINGS = {"symlink": False, "disable_git": True, "save_code": False, "console": "off"}
"""Of Weights & Biases: an output does not keep links, and code is not uploaded unasked."""


def go_on(cfg: Config, spec: ChildSpec) -> dict[str, Any]:
    """Make the trackers of a config, and the one that a person asks for, show a run as one.

    A config that has trackers is changed in place.

    Returns:
        What was changed, as it was before; None for what was not there.
    """
    visualizer = cfg.get("visualizer") or {"type": "Visualizer"}
    backends = [dict(item) for item in as_list(visualizer.get("vis_backends") or {"type": "LocalVisBackend"})]
    names = [type_name(item["type"]) for item in backends]
    if spec.track and KINDS[spec.track] not in names:
        backends.append({"type": KINDS[spec.track]})
    folder, start = trackers_of(spec.work_dir, spec.run_id), spec.expect_iteration or 0
    for name, kind in KINDS.items():
        for index, item in enumerate(backends):
            if type_name(item["type"]) == kind:
                called = item.pop("name", kind)
                kept = {"name": called, "save_dir": str(folder / name), "start": start}
                backends[index] = {"type": "MapsageTracker", "inner": item, **kept}
    if not any(item["type"] == "MapsageTracker" for item in backends):
        return {}
    before = {key: cfg.get(key) for key in ("visualizer", "default_hooks")}
    cfg.visualizer = {**visualizer, "vis_backends": backends}
    hooks = cfg.get("default_hooks") or {}
    logger = hooks.get("logger", {"type": "LoggerHook"})
    if logger:
        # Its default counts a validation's steps in epochs, among iterations of training.
        cfg.default_hooks = {**hooks, "logger": {**logger, "log_metric_by_epoch": False}}
    return before


@VISBACKENDS.register_module(name="MapsageTracker")
class Tracker(BaseVisBackend):
    """One of mmengine's backends that shows a run from its beginning, and each step once.

    One that fails is reported and used no more: it must not end a training.

    Args:
        inner: The config of mmengine's backend.
        save_dir: The tracker's folder; what is in it is removed, but for the journal.
        start: Iterations done as the session begins.
    """

    def __init__(self, inner: Mapping[str, Any], save_dir: str, start: int) -> None:
        super().__init__(save_dir)
        self._config, self._folder, self._start = dict(inner), Path(save_dir), start
        self._is_wandb = type_name(inner["type"]) == KINDS["wandb"]
        self._inner: Any = None
        self._rows: list[dict[str, Any]] | None = None
        self._is_off = self._is_unkept = False
        self._known = -1
        self._seen: set[tuple[int, tuple[str, ...]]] = set()
        self._dropped: set[tuple[int, tuple[str, ...]]] = set()

    @property
    def experiment(self) -> Any:
        """The tracker itself, started on first use."""
        if self._inner is None:
            self._init_env()
        return self._inner.experiment

    def _init_env(self) -> None:
        rows = self._begin()
        config = _of_wandb(self._config, self._folder) if self._is_wandb else self._config
        self._inner = VISBACKENDS.build({**config, "save_dir": str(self._folder)})
        if self._is_wandb and self.experiment.run.resumed:  # online, where it knows how far it has got
            self._known = int(self.experiment.run.summary.get("iteration", -1))
        for row in rows:
            if row["step"] > self._known:
                self._draw(row)

    def _begin(self) -> list[dict[str, Any]]:
        """Truncate the journal to where the session begins, and clear the tracker's folder; once."""
        if self._rows is None:
            journal = self._folder / JOURNAL
            found = read_journal(journal)
            rows = [row for row in found if row["step"] <= self._start]
            self._dropped = {_key(row) for row in found if row["step"] > self._start}
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(journal, "".join(json.dumps(row) + "\n" for row in rows))
            for place in set(self._folder.iterdir()) - {journal}:
                remove_tree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
            for row in rows:
                self._note(row)
            self._rows = rows
        return self._rows

    # -- what mmengine calls

    def add_config(self, config: Config, **options: Any) -> None:
        """Log the config; mmengine's way uploads code as well."""
        if self._is_wandb:
            self._try(lambda: self.experiment.config.update(config.to_dict(), allow_val_change=True))
        else:
            self._try(lambda: self.experiment.add_text("config", f"```\n{config.pretty_text}\n```"))

    def add_image(self, name: str, image: Any, step: int = 0, **options: Any) -> None:
        """Log an image, in this session only: it is not in the journal."""
        self._try(lambda: self.experiment and self._inner.add_image(name, image, step, **options))

    def add_scalar(self, name: str, value: Any, step: int = 0, **options: Any) -> None:
        self.add_scalars({name: value}, step)

    def add_scalars(self, scalar_dict: Mapping[str, Any], step: int = 0, *_: Any, **options: Any) -> None:
        """Log values of a step, unless they have been logged."""
        found = {name: number(value) for name, value in scalar_dict.items()}
        values = {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
        row = {"step": int(step), "time_s": round(time.time(), 3), "values": values}
        is_new = self._keep(row)
        self._try(lambda: self._add(row, is_new=is_new))

    def close(self) -> None:
        """End, within some time, and leave no symbolic links: an output cannot keep them."""
        if self._inner is None or self._is_off:
            return
        thread = threading.Thread(target=self._try, args=(self._end,), name="tracker-end", daemon=True)
        thread.start()
        thread.join(FINISH_S)
        with suppress(OSError):
            for path in self._folder.rglob("*"):
                if path.is_symlink():
                    path.unlink(missing_ok=True)

    def _end(self) -> None:
        (self.experiment.finish if self._is_wandb else self._inner.close)()

    # -- drawing

    def _keep(self, row: Mapping[str, Any]) -> bool:
        """Append a row to the journal, whatever becomes of the tracker; False where it is there already."""
        try:
            self._begin()
            if _key(row) in self._seen:
                return False
            self._note(row)
            with (self._folder / JOURNAL).open("a", encoding="utf-8") as stream:
                stream.write("\n" + json.dumps(row))  # so that one that a full disk cut off spoils no other
        except OSError as error:
            if not self._is_unkept:
                self._is_unkept = True
                why = error.strerror or str(error)
                emit("tracker", message=Message("Curves cannot be kept for the next session ({why}).", why))
        return True

    def _note(self, row: Mapping[str, Any]) -> None:
        self._seen = {key for key in self._seen if key[0] >= row["step"]} | {_key(row)}

    def _add(self, row: Mapping[str, Any], *, is_new: bool) -> None:
        # Started in any case, to show what earlier sessions have logged.
        if self.experiment is None or not is_new or row["step"] < self._known:
            return
        if (
            row["step"] > self._known or _key(row) not in self._dropped
        ):  # what is trained anew was sent before
            self._draw(row)

    def _draw(self, row: Mapping[str, Any]) -> None:
        if self._is_wandb:
            self.experiment.log({**row["values"], "iteration": row["step"]})
            return
        for name, value in row["values"].items():
            self.experiment.add_scalar(name, value, row["step"], walltime=row["time_s"])
        self.experiment.flush()

    def _try(self, action: Callable[[], Any]) -> None:
        if self._is_off:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a remote service fails as it likes
            self._is_off = True
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            name = type_name(self._config["type"])
            emit("tracker", message=Message("{name} is told no more ({why}); training goes on.", name, why))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal; broken lines, such as a truncated last one, are left out."""
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = parse_json(line)
            values = {str(name): float(value) for name, value in row["values"].items()}
            rows.append({"step": int(row["step"]), "time_s": float(row["time_s"]), "values": values})
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return rows


def _key(row: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    return row["step"], tuple(sorted(row["values"]))


def _of_wandb(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the config of a Weights & Biases backend that resumes the run under its own id."""
    import wandb

    known = wandb.Settings()
    asked = dict(config.get("init_kwargs") or {})
    settings = {name: value for name, value in _SETTINGS.items() if hasattr(known, name)}
    asked.setdefault("project", "mapsage")
    asked.setdefault("settings", settings)
    asked |= {"id": folder.parent.name, "resume": "allow", "dir": str(folder)}
    metrics = [{"name": "iteration"}, {"name": "*", "step_metric": "iteration"}]
    return {**config, "init_kwargs": asked, "define_metric_cfg": config.get("define_metric_cfg") or metrics}
