"""The READMEs name what there is, all of it and nothing else, and say the same in both languages."""

from __future__ import annotations

import argparse
import ast
import configparser
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mapsage_kaggle import errors
from mapsage_kaggle.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("README.md", "README.zh-CN.md")
FOLDERS = (
    ".", "notebooks", "configs", "mapsage_kaggle", "mapsage_kaggle/relay", "mapsage_kaggle/checkpoints",
    "tests/benchmarks",
)  # fmt: skip
"""Each with a README in both languages; together they are what a person is told."""
MAX_TOP_BYTES = 16_000

GUIDE_COMMANDS = (
    "!pip install -U openmim",
    "!mim install mmengine",
    '!mim install "mmcv>=2.0.0"',
    '!pip install "mmsegmentation>=1.0.0"',
    '!find /kaggle/input -name "iter_*.pth" -type f',
    "!ls -la /kaggle/input/your-commit-output/MapSage_V5/work_dirs/train_*/",
    "load_from = '/kaggle/input/your-actual-path/iter_8000.pth'",
    "resume = True",
    "!python scripts/train.py configs/resume_earthvqa_kaggle.py",
    '!find /kaggle/input -name "iter_8000.pth" -type f',
    "!ls -la /kaggle/input/temp-8000tier/",
    "!tail -f /kaggle/working/MapSage_V5/work_dirs/resume_earthvqa_kaggle_*/vis_data/scalars.json",
)
"""Every command of the guide that the kit replaces."""

Row = list[str]


def read(folder: str, language: str) -> str:
    return (ROOT / folder / language).read_text(encoding="utf-8")


@pytest.fixture(params=LANGUAGES)
def readme(request: pytest.FixtureRequest) -> str:
    """Return all READMEs of a language, one behind the other."""
    return "\n".join(read(folder, request.param) for folder in FOLDERS)


@pytest.fixture(params=FOLDERS)
def twins(request: pytest.FixtureRequest) -> list[str]:
    """Return a README in both languages."""
    return [read(request.param, language) for language in LANGUAGES]


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    [commands] = (
        action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(commands.choices)


def blocks(text: str) -> list[str]:
    """Return what is between fences."""
    return re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```\w*\n.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[list[Row]]:
    """Return every table as rows of cells, header first, without the line of dashes."""
    found = []
    for is_table, lines in itertools.groupby(
        without_blocks(text).splitlines(), lambda line: line.startswith("|")
    ):
        if is_table:
            cells = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines]
            rows = [[cell.strip() for cell in row] for row in cells]
            assert all(set(cell) <= set(":-") for cell in rows[1]), rows[0]
            found.append([rows[0], *rows[2:]])
    return found


def spans(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(next(name for name in itertools.chain([anchor], numbered(anchor)) if name not in found))
    return found


def numbered(anchor: str) -> Iterator[str]:
    return (f"{anchor}-{number}" for number in itertools.count(1))


def links(text: str) -> list[str]:
    """Return the targets of all links and pictures that do not lead out of the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))
    return [target for target in targets if not target.startswith("https://")]


def every_readme() -> list[Path]:
    made = {"build", "dist", "demo", "out", "kit"}
    found = ((path, path.relative_to(ROOT).parts[0]) for path in sorted(ROOT.rglob("README*.md")))
    return [path for path, top in found if top not in made and not top.startswith(".")]


def command_table(text: str, parsers: dict[str, argparse.ArgumentParser]) -> list[Row]:
    [table] = (item for item in tables(text) if item[1][0].strip("`").split()[0] == next(iter(parsers)))
    return table[1:]


def test_every_command_is_in_the_table_and_no_other(
    readme: str, parsers: dict[str, argparse.ArgumentParser]
) -> None:
    named = [row[0].strip("`").split()[0] for row in command_table(readme, parsers)]

    assert named == list(parsers)


def test_a_command_is_shown_with_options_that_it_has(
    readme: str, parsers: dict[str, argparse.ArgumentParser]
) -> None:
    for row in command_table(readme, parsers):
        own = set(parsers[row[0].strip("`").split()[0]]._option_string_actions)

        assert options_in(" ".join(row)) <= own, row[0]


def test_every_option_of_every_command_is_named(
    readme: str, parsers: dict[str, argparse.ArgumentParser]
) -> None:
    there = {name for parser in parsers.values() for name in parser._option_string_actions}
    lines = "\n".join([*spans(readme), *blocks(readme)])

    assert {name for name in there if name.startswith("--")} - options_in(lines) == set()


def test_every_option_that_is_named_exists(readme: str, parsers: dict[str, argparse.ArgumentParser]) -> None:
    known = {name for parser in parsers.values() for name in parser._option_string_actions}
    lines = [line for block in blocks(readme) for line in block.splitlines() if "mapsage-kaggle " in line]
    own = [span for span in spans(readme) if not span.startswith("kaggle ")]
    named = options_in("\n".join([*own, *lines]))

    assert len(named) > 10
    assert named - known == set()


def test_the_options_of_train_are_shown_with_their_defaults(
    readme: str, parsers: dict[str, argparse.ArgumentParser]
) -> None:
    train = parsers["train"]
    rows = {row[0]: row[2] for table in tables(readme) for row in table[1:] if row[0].startswith("`--")}

    assert len(rows) > 10
    for shown, default in rows.items():
        names = re.findall(r"--[a-z-]+", shown)
        defaults = [train.get_default(train._option_string_actions[name].dest) for name in names]
        if default.startswith("`") and "/" not in default:
            assert default == ", ".join(f"`{value}`" for value in defaults), shown
        else:
            assert not any(isinstance(value, str) and value for value in defaults), shown


def test_every_option_of_train_has_its_row(readme: str, parsers: dict[str, argparse.ArgumentParser]) -> None:
    [table] = (table for table in tables(readme) if "`train`" in table[0][0])
    named = [name for row in table[1:] for name in re.findall(r"--[a-z-]+", row[0])]

    assert sorted([*named, "--help"]) == sorted(
        name for name in parsers["train"]._option_string_actions if name.startswith("--")
    )


def test_every_parameter_of_the_notebook_has_its_row_and_default(readme: str) -> None:
    source = (ROOT / "notebooks" / "mapsage_train.py").read_text(encoding="utf-8")
    [cell] = re.findall(r'^# %% tags=\["parameters"\]\n(.*?)^# %%', source, re.MULTILINE | re.DOTALL)
    there = [
        (f"`{ast.unparse(line.targets[0])}`", ast.literal_eval(line.value))
        for line in ast.parse(cell).body
        if isinstance(line, ast.Assign)
    ]
    [table] = (table for table in tables(readme) if table[1][0] == "`CONFIG`")

    assert [(row[0], ast.literal_eval(row[1].strip("`"))) for row in table[1:]] == there


def test_commands_in_examples_exist(readme: str, parsers: dict[str, argparse.ArgumentParser]) -> None:
    text = "\n".join([*spans(readme), *blocks(readme)])
    named = re.findall(r"(?<!/)\bmapsage-kaggle ([a-z]+)\b", text)

    assert named
    assert set(named) <= set(parsers)


def test_every_command_of_an_example_parses(readme: str) -> None:
    lines = [line.strip().removeprefix("$ ") for block in blocks(readme) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if re.match(r"mapsage-kaggle \S", line)]

    assert len(commands) > 5
    for command in commands:
        build_parser().parse_args(command[1:])


def test_every_extra_that_is_to_be_installed_exists(readme: str) -> None:
    setup_cfg = configparser.RawConfigParser()
    setup_cfg.read(ROOT / "setup.cfg", encoding="utf-8")
    named = re.findall(r'pip install (?:-e )?"(?:\.|mapsage-kaggle)\[(\w+)\]"', readme)

    assert set(named) >= {"relay", "train"}
    assert set(named) <= set(setup_cfg["options.extras_require"])


def test_the_scheduled_example_is_a_workflow_whose_commands_parse(readme: str) -> None:
    [workflow] = (yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", readme, re.M | re.S))
    steps = workflow["jobs"]["relay"]["steps"]
    runs = [shlex.split(step["run"]) for step in steps if "run" in step]
    [asked] = (build_parser().parse_args(run[1:]) for run in runs if run[0] == "mapsage-kaggle")

    assert asked.once
    assert (asked.owner, asked.datasets) == ("YOU", ["YOU/mapsage-kaggle", "YOU/earthvqa"])
    assert ["pip", "install", ".[relay]"] in runs
    assert steps[-1]["env"] == {"KAGGLE_API_TOKEN": "${{ secrets.KAGGLE_API_TOKEN }}"}


def test_every_exit_code_is_explained(readme: str, parsers: dict[str, argparse.ArgumentParser]) -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    [explained] = (table for table in tables(readme) if [row[0] for row in table[1:3]] == ["0", "2"])
    used = {int(code) for row in command_table(readme, parsers) for code in row[2].split(",")}

    assert {int(row[0]) for row in explained[1:]} == codes
    assert used == codes


def test_the_readmes_that_are_checked_are_those_that_there_are() -> None:
    there = {str(path.relative_to(ROOT)) for path in every_readme()}

    kept_as_written = {"tests/end_to_end/written_before/README.md"}
    assert there - kept_as_written == {
        str(Path(folder) / language) for folder in FOLDERS for language in LANGUAGES
    }


@pytest.mark.parametrize("path", every_readme(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_and_anchor_of_a_readme_holds(path: Path) -> None:
    for target in links(path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path

        assert there.is_relative_to(ROOT), target
        assert there.is_file() or (there / "README.md").is_file(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [("## Exit codes", "exit-codes"), ("## 在 Kaggle：五步", "在-kaggle五步"), ("# `a_b` – c", "a_b--c")],
)
def test_an_anchor_is_made_as_github_makes_it(heading: str, anchor: str) -> None:
    assert anchors(heading) == {anchor}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_leads_to_readmes_of_its_own_language(folder: str) -> None:
    for own, other in (LANGUAGES, LANGUAGES[::-1]):
        led_to = [Path(target.partition("#")[0]).name for target in links(read(folder, own))]

        assert led_to.count(other) == 1, own


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_first_readme_is_short_and_leads_to_all_others(language: str) -> None:
    text = read(".", language)

    assert len(text.encode()) <= MAX_TOP_BYTES
    assert {target.partition("#")[0] for target in links(text)} >= {
        f"{folder}/{language}" for folder in FOLDERS if folder != "."
    }


def test_every_file_of_the_repository_that_is_named_exists(readme: str) -> None:
    own = r"(?<![\w/.-])(?:configs|notebooks|tests|mapsage_kaggle)/[\w./*-]*"
    named = {name for text in [*spans(readme), *blocks(readme)] for name in re.findall(own, text)}

    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_every_make_target_that_is_named_exists(readme: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    text = "\n".join([*spans(readme), *blocks(readme)])
    named = set(re.findall(r"\bmake ([a-z]+)\b", text))

    assert named >= {"demo", "test"}
    assert named <= targets


def test_every_command_of_the_guide_has_a_row(readme: str) -> None:
    rows = [row for table in tables(readme) for row in table]

    for command in GUIDE_COMMANDS:
        answers = [row[1] for row in rows if row[0] == f"`{command}`"]
        assert answers, command
        assert all(answers), command


def test_both_languages_have_the_same_shape(twins: list[str]) -> None:
    headings = [re.findall(r"^#+(?= )", without_blocks(text), re.MULTILINE) for text in twins]
    shapes = [[(len(table), {len(row) for row in table}) for table in tables(text)] for text in twins]
    codes = [[line.split("#")[0].rstrip() for line in without_labels(text).splitlines()] for text in twins]
    items = [re.findall(r"^(?:\d+\.|-) ", text, re.MULTILINE) for text in twins]

    assert headings[0] == headings[1]
    assert shapes[0] == shapes[1]
    assert codes[0] == codes[1]
    assert items[0] == items[1]


def without_labels(text: str) -> str:
    """Return what is between fences, diagrams without what their boxes and arrows say."""
    diagrams = re.findall(r"^```mermaid\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "".join(re.sub(r'"[^"]*"', "", block) if block in diagrams else block for block in blocks(text))


def test_a_table_has_as_many_cells_in_every_row(readme: str) -> None:
    for table in tables(readme):
        assert {len(row) for row in table} == {len(table[0])}, table[0]


def test_both_languages_name_the_same_code_in_every_row(twins: list[str]) -> None:
    for one, other in zip(*map(tables, twins), strict=True):
        for mine, yours in zip(one[1:], other[1:], strict=True):
            codes = [sorted(re.findall(r"`([^`]+)`", " ".join(row))) for row in (mine, yours)]
            assert [name for name in codes[0] if "<" not in name] == [
                name for name in codes[1] if "<" not in name
            ], mine[0]


def test_the_figures_are_the_same_in_both_languages() -> None:
    texts = [read("tests/benchmarks", language) for language in LANGUAGES]
    measured = [
        [
            sorted(re.findall(r"\d[\d.,]*", " ".join(row)))
            for table in tables(text)
            if len(table[0]) == 4
            for row in table
        ]
        for text in texts
    ]

    assert measured[0]
    assert measured[0] == measured[1]
