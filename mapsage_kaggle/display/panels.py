"""What the notebook's cells show: each panel as HTML for a front end and as text for everything else."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jinja2 import Environment

Tone = Literal["good", "note", "bad", ""]

MARKS: Mapping[Tone, str] = {"good": "✓", "note": "!", "bad": "✗", "": "·"}
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of a panel: how it stands, its name, and what it means."""

    tone: Tone
    name: str
    message: str

    @property
    def mark(self) -> str:
        """The sign that stands for the tone, so that colour is never the only one."""
        return MARKS[self.tone]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One thing to show. Front ends take the HTML, logs and terminals the text.

    Attributes:
        title: A word or two.
        aside: What stands beside the title.
        tone: How it stands, as a whole.
        lead: The one sentence to read.
        share: How far it is, 0 to 1; None without a bar.
        findings: Verdicts.
        facts: Names and values.
        notes: What a person should not overlook.
        lists: Longer lists, each with its summary.
        diff: A unified diff.
        diff_title: Its summary.
        tail: Sentences at the end.
        pictures: PNG files, put into the HTML itself.
    """

    title: str
    aside: str = ""
    tone: Tone = ""
    lead: str = ""
    share: float | None = None
    findings: tuple[Finding, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    diff: str = ""
    diff_title: str = ""
    tail: tuple[str, ...] = ()
    pictures: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def html(self) -> str:
        """The panel for a browser, with its own style and without scripts."""
        template = templates().get_template("panel.html.j2")
        return template.render(
            style=style(),
            title=self.title,
            aside=self.aside,
            tone=self.tone,
            lead=self.lead,
            share=None if self.share is None else min(1.0, max(0.0, self.share)),
            checks=self.findings,
            facts=self.facts,
            notes=self.notes,
            lists=self.lists,
            diff=list(_diff_lines(self.diff)),
            diff_title=self.diff_title,
            tail=self.tail,
            pictures=[data_uri(path) for path in self.pictures],
        )

    @property
    def text(self) -> str:
        """The panel for a terminal or a log."""
        lines = [
            f"{self.title}{': ' + self.lead if self.lead else ''}{'  ' + self.aside if self.aside else ''}"
        ]
        width = max((len(item.name) for item in self.findings), default=0)
        lines += [f"  {item.mark} {item.name:<{width}}  {item.message}" for item in self.findings]
        width = max((len(name) for name, _ in self.facts), default=0)
        lines += [f"  {name:<{width}}  {value}" for name, value in self.facts]
        lines += [f"  ! {line}" for line in self.notes]
        for summary, items in self.lists:
            lines += [f"  {summary}:", *(f"    - {item}" for item in items)]
        if self.diff:
            lines.append(f"  {self.diff_title}")
        return "\n".join([*lines, *self.tail])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # IPython's protocol: https://ipython.readthedocs.io/en/stable/config/integrating.html
        return {"text/plain": self.text, "text/html": self.html}


def show(panel: Panel) -> None:
    """Show a panel where this runs: in a notebook's output, else on standard output."""
    if in_kernel():
        from IPython.display import display

        display(panel)  # type: ignore[no-untyped-call]
    else:
        print(panel.text, flush=True)


def say(line: str) -> None:
    """Print a line at once, so that a log has it when it happens."""
    print(line, flush=True)


def in_kernel() -> bool:
    """Tell whether this process is a Jupyter kernel."""
    return "ipykernel.kernelapp" in sys.modules


@cache
def templates() -> Environment:
    """Return the templates of this room; everything put into them is escaped."""
    from jinja2 import Environment, FileSystemLoader

    return Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


@cache
def style() -> Any:
    """Return the style sheet, marked as safe to stand in HTML as it is."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))


def data_uri(picture: Path) -> str:
    """Return a PNG as a ``data:`` address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _diff_lines(diff: str) -> Sequence[Mapping[str, str]]:
    kinds = {"+": "add", "-": "del", "@": "at"}
    return [{"kind": kinds.get(line[:1], ""), "text": line} for line in diff.splitlines()]
