"""Panels: HTML for a notebook front end, text for everything else."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mapsage_kaggle.display.columns import aligned
from mapsage_kaggle.outside import visible_lines

if TYPE_CHECKING:
    from jinja2 import Environment

Tone = Literal["good", "note", "bad", ""]

MARKS: Mapping[Tone, str] = {"good": "✓", "note": "!", "bad": "✗", "": "·"}
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of a panel: verdict, name and message."""

    tone: Tone
    name: str
    message: str

    @property
    def mark(self) -> str:
        """A sign for the tone, so that colour is never the only cue."""
        return MARKS[self.tone]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under a header, with cells as they are shown.

    Attributes:
        right: Indices of the columns of numbers.
        chosen: Index of the row that was taken; None where none was.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    chosen: int | None = None

    @property
    def text(self) -> tuple[str, ...]:
        """The lines for a terminal."""
        marks = [MARKS["good"] if number == self.chosen else " " for number in range(len(self.rows))]
        lines = aligned([self.header, *self.rows], self.right)
        return tuple(f"{mark} {line}".rstrip() for mark, line in zip([" ", *marks], lines, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One thing to show. Front ends take the HTML, logs and terminals the text.

    Attributes:
        aside: What stands beside the title.
        lead: The one sentence to read.
        share: Progress, 0 to 1; None without a bar.
        facts: Names and values.
        notes: Warnings.
        lists: Longer lists, each with its summary.
        diff: A unified diff, with its summary and whether it is unfolded.
        tail: Sentences at the end.
        pictures: PNGs, or files with them, embedded in the HTML.
    """

    title: str
    aside: str = ""
    tone: Tone = ""
    lead: str = ""
    share: float | None = None
    findings: tuple[Finding, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    table: Table | None = None
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    diff: str = ""
    diff_title: str = ""
    diff_open: bool = False
    tail: tuple[str, ...] = ()
    pictures: tuple[Path | bytes, ...] = field(default=(), repr=False)

    @property
    def html(self) -> str:
        """The panel for a browser, with its own style and without scripts."""
        return visible_lines(from_template("panel.html.j2", panel=self, diff=_diff_lines(self.diff)))

    @property
    def text(self) -> str:
        """The panel for a terminal or a log."""
        lines = [
            f"{self.title}{': ' + self.lead if self.lead else ''}{'  ' + self.aside if self.aside else ''}"
        ]
        findings = [(f"{item.mark} {item.name}", item.message) for item in self.findings]
        lines += [f"  {line}" for rows in (findings, self.facts) for line in aligned(rows)]
        lines += [f"  ! {line}" for line in self.notes]
        lines += [f"  {line}" for line in self.table.text] if self.table is not None else []
        for summary, items in self.lists:
            lines += [f"  {summary}:", *(f"    - {item}" for item in items)]
        if self.diff:
            lines.append(f"  {self.diff_title}")
        return "\n".join([*lines, *self.tail])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # IPython's protocol: https://ipython.readthedocs.io/en/stable/config/integrating.html
        return {"text/plain": visible_lines(self.text), "text/html": self.html}


def show(panel: Panel) -> None:
    """Display a panel in a notebook's output, else print it."""
    if in_kernel():
        from IPython.display import display

        display(panel)  # type: ignore[no-untyped-call]
    else:
        print(visible_lines(panel.text), flush=True)


def say(line: str) -> None:
    """Print a line and flush, so that a log has it when it happens."""
    print(visible_lines(line), flush=True)


def in_kernel() -> bool:
    """Return whether this process is a Jupyter kernel."""
    return "ipykernel.kernelapp" in sys.modules


def from_template(name: str, **values: object) -> str:
    """Return a template with values put into it: escaped in HTML, as they are in Markdown."""
    return _templates().get_template(name).render(values)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    environment.filters["data_uri"] = data_uri
    return environment


def data_uri(picture: Path | bytes) -> str:
    """Return a PNG as a ``data:`` URI, so that a page needs no other file."""
    png = picture if isinstance(picture, bytes) else picture.read_bytes()
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _diff_lines(diff: str) -> Sequence[Mapping[str, str]]:
    kinds = {"+": "add", "-": "del", "@": "at"}
    return [
        {"kind": "at" if line[:4] in ("--- ", "+++ ") else kinds.get(line[:1], ""), "text": line}
        for line in diff.splitlines()
    ]
