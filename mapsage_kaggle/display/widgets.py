"""Interactive notebook output, made of ipywidgets; not used in a batch run.

A widget's state lives in the kernel: a browser that reconnects fetches it, and shows the present state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsage_kaggle.display.cells import short_names
from mapsage_kaggle.display.live import TrainingPanel
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel, from_template, in_kernel


def can_show_widgets() -> bool:
    """Return whether this process is a Jupyter kernel that has ipywidgets."""
    if not in_kernel():
        return False
    if "ipywidgets" in sys.modules:
        return True
    from importlib.util import find_spec

    return find_spec("ipywidgets") is not None


class Place:
    """An output of a notebook whose panel can be replaced."""

    def __init__(self, panel: Panel) -> None:
        import ipywidgets

        self._html = ipywidgets.HTML(panel.html, layout={"width": "auto"})

    def display(self) -> Place:
        _display(self._html)
        return self

    def replace(self, panel: Panel) -> None:
        """Show another panel instead. Safe from any thread."""
        self._html.value = panel.html


class TrainingSurface:
    """The training view with its buttons: a :class:`mapsage_kaggle.display.live.Surface`.

    ``on_save`` and ``on_stop`` are called when *Save now* and *Stop and save* are pressed.
    """

    def __init__(self, words: Words, *, on_save: Callable[[], None], on_stop: Callable[[], None]) -> None:
        import ipywidgets

        self._head = ipywidgets.HTML(layout={"width": "auto"})
        self._caption = ipywidgets.HTML(layout={"width": "auto"})
        self._chart = ipywidgets.Image(format="png", layout={"max_width": "60em", "display": "none"})
        self._events = ipywidgets.HTML(layout={"width": "auto"})
        self._words = words
        self._save = _button(words("view_save"), "save", words("view_save_hint"))
        self._stop = _button(words("view_stop"), "stop", words("view_stop_hint"), style="warning")
        self._on_save, self._on_stop = on_save, on_stop
        self._save.on_click(self._save_pressed)
        self._stop.on_click(self._stop_pressed)
        self._buttons = ipywidgets.HBox([self._save, self._stop], layout={"margin": "4px 0"})
        self._all = ipywidgets.VBox([self._head, self._buttons, self._caption, self._chart, self._events])
        self._all.add_class("mapsage-view")

    def display(self) -> None:
        """Show it in the output of the running cell; it may be shown in several."""
        _display(self._all)

    def show(self, panel: TrainingPanel) -> None:
        _set(self._head, value=panel.html)
        _set(self._events, value=panel.events_html)

    def show_chart(self, png: bytes) -> None:
        if not self._caption.value:
            self._caption.value = from_template("caption.html.j2", words=self._words)
            self._chart.layout.display = "block"
        self._chart.value = png

    def close(self) -> None:
        """Hide the buttons: nothing is left to be asked for."""
        self._buttons.layout.display = "none"

    def _save_pressed(self, _: object) -> None:
        self._on_save()

    def _stop_pressed(self, _: object) -> None:
        self._stop.disabled = self._save.disabled = True
        self._on_stop()


def _button(text: str, kind: str, hint: str, *, style: str = "") -> Any:
    import ipywidgets

    icons = {"save": "save", "stop": "stop", "check": "check", "sure": "check"}
    button = ipywidgets.Button(
        description=text, tooltip=hint, icon=icons.get(kind, ""), button_style=style, layout={"width": "auto"}
    )
    button.add_class(f"mapsage-{kind}")
    return button


def _set(widget: Any, *, value: str) -> None:
    """Set a value only where it differs: each assignment is a message to the browser."""
    if widget.value != value:
        widget.value = value


def _display(widget: Any) -> None:
    from IPython.display import display

    display(widget)  # type: ignore[no-untyped-call]


class CheckpointPicker:
    """Lets a person start from another checkpoint, from its weights alone, or fresh, after a confirmation.

    ``on_choice`` is called with the file (None for a fresh start) and whether only its weights are taken; it
    returns what to show then.
    """

    def __init__(
        self, words: Words, paths: Sequence[Path], *, on_choice: Callable[[Path | None, bool], Panel]
    ) -> None:
        import ipywidgets

        self._words, self._on_choice = words, on_choice
        labels = zip(short_names(paths), paths, strict=True)
        look = {"layout": {"width": "34em"}, "style": {"description_width": "9em"}}
        self._what = ipywidgets.Dropdown(
            options=[*labels, (words("pick_fresh"), None)],
            description=words("pick_what"),
            **look,
        )
        self._how = ipywidgets.RadioButtons(
            options=[(words("pick_resume"), False), (words("pick_weights"), True)],
            description=words("pick_how"),
            **look,
        )
        self._use = _button(words("pick_use"), "use", "")
        self._use.layout.align_self = "flex-start"
        self._sure = _button(words("pick_sure"), "sure", "", style="warning")
        self._cancel = _button(words("pick_cancel"), "cancel", "")
        self._question = ipywidgets.HTML()
        self._confirm = ipywidgets.VBox(
            [self._question, ipywidgets.HBox([self._sure, self._cancel])], layout={"display": "none"}
        )
        self._result = ipywidgets.HTML(layout={"width": "auto"})
        self._what.observe(self._changed, names="value")
        self._how.observe(self._changed, names="value")
        self._use.on_click(self._ask)
        self._cancel.on_click(lambda _: self._close())
        self._sure.on_click(self._chosen)
        inner = ipywidgets.VBox([self._what, self._how, self._use, self._confirm])
        self._all = ipywidgets.VBox([_folded(words("pick_title"), inner), self._result])
        self._all.add_class("mapsage-picker")
        self._changed(None)

    def display(self) -> None:
        _display(self._all)

    def _changed(self, _: object) -> None:
        self._how.disabled = self._what.value is None
        self._close()

    def _close(self) -> None:
        self._confirm.layout.display = "none"

    def _ask(self, _: object) -> None:
        path, words = self._what.value, self._words
        key = "pick_ask_fresh" if path is None else f"pick_ask_{'weights' if self._how.value else 'resume'}"
        self._question.value = _sentence(words(key, path=path))
        self._confirm.layout.display = "block"

    def _chosen(self, _: object) -> None:
        self._close()
        self._result.value = self._on_choice(self._what.value, bool(self._how.value)).html


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """A field of a form: its name in the catalogue, its present value as text, and its choices, if any."""

    name: str
    value: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FormState:
    """The verdict on what was entered: problems by field, a panel, and whether it can be used."""

    problems: Mapping[str, str]
    panel: Panel
    usable: bool


class Form:
    """Fields that are checked as they are left; nothing is used before *Use these* is pressed.

    ``on_change`` judges the texts of all fields, by name; ``on_use`` is called with them, and returns what to
    show then.
    """

    def __init__(
        self,
        words: Words,
        knobs: Sequence[Knob],
        *,
        on_change: Callable[[Mapping[str, str]], FormState],
        on_use: Callable[[Mapping[str, str]], Panel],
    ) -> None:
        import ipywidgets

        self._on_change, self._on_use = on_change, on_use
        self._fields = {item.name: (_input(item, words), ipywidgets.HTML()) for item in knobs}
        self._start = {item.name: item.value for item in knobs}
        self._quiet = False
        rows = []
        for name, (entry, problem) in self._fields.items():
            entry.observe(self._changed, names="value")
            label = ipywidgets.Label(words(f"knob_{name}"), layout={"width": "13em"})
            rows.append(ipywidgets.HBox([label, entry, problem]))
        self._panel = ipywidgets.HTML(layout={"width": "auto"})
        self._use = _button(words("form_use"), "check", "", style="primary")
        self._use.disabled = True
        self._reset = _button(words("form_reset"), "reset", "")
        self._use.on_click(self._used)
        self._reset.on_click(lambda _: self._restore())
        inner = ipywidgets.VBox([*rows, ipywidgets.HBox([self._use, self._reset]), self._panel])
        self._all = _folded(words("form_title"), inner)
        self._all.add_class("mapsage-form")

    def display(self) -> None:
        _display(self._all)

    @property
    def values(self) -> dict[str, str]:
        return {name: str(entry.value) for name, (entry, _) in self._fields.items()}

    def _changed(self, _: object) -> None:
        if self._quiet:
            return
        state = self._on_change(self.values)
        for name, (_, problem) in self._fields.items():
            text = state.problems.get(name, "")
            problem.value = _sentence(f"✗ {text}", tone="bad") if text else ""
        self._panel.value = state.panel.html
        self._use.disabled = not state.usable

    def _restore(self) -> None:
        self._quiet = True
        for name, (entry, _) in self._fields.items():
            entry.value = self._start[name]
        self._quiet = False
        self._changed(None)

    def _used(self, _: object) -> None:
        self._use.disabled = True
        self._panel.value = self._on_use(self.values).html


def _input(item: Knob, words: Words) -> Any:
    import ipywidgets

    if item.choices:
        options = [(words.get(choice), choice) for choice in item.choices]
        return ipywidgets.Dropdown(options=options, value=item.value, layout={"width": "16em"})
    entry = ipywidgets.Text(value=item.value, continuous_update=False, layout={"width": "16em"})
    entry.add_class(f"mapsage-knob-{item.name}")
    return entry


def _folded(title: str, inner: Any) -> Any:
    import ipywidgets

    return ipywidgets.Accordion([inner], titles=(title,), selected_index=None, layout={"max_width": "60em"})


def _sentence(text: str, *, tone: str = "") -> str:
    return from_template("sentence.html.j2", text=text, tone=tone)
