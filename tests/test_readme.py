"""The READMEs name what there is, all of it and nothing else, and say the same in both languages."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mapsage_kaggle import errors
from mapsage_kaggle.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("README.md", "README.zh-CN.md")

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


@pytest.fixture(params=NAMES)
def readme(request: pytest.FixtureRequest) -> str:
    return (ROOT / request.param).read_text(encoding="utf-8")


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


def command_table(text: str, parsers: dict[str, argparse.ArgumentParser]) -> list[Row]:
    [table] = (item for item in tables(text) if item[1][0].strip("`").split()[0] in parsers)
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


def test_every_option_that_is_named_exists(readme: str, parsers: dict[str, argparse.ArgumentParser]) -> None:
    known = {name for parser in parsers.values() for name in parser._option_string_actions}
    lines = [line for block in blocks(readme) for line in block.splitlines() if "mapsage-kaggle " in line]
    named = options_in("\n".join([*spans(readme), *lines]))

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


def test_commands_in_examples_exist(readme: str, parsers: dict[str, argparse.ArgumentParser]) -> None:
    text = "\n".join([*spans(readme), *blocks(readme)])
    named = re.findall(r"(?<!/)\bmapsage-kaggle ([a-z]+)\b", text)

    assert named
    assert set(named) <= set(parsers)


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


def test_every_relative_link_and_picture_exists(readme: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    relative = [target for target in targets if not target.startswith("https://")]

    assert any(target.endswith(".png") for target in relative)
    for target in relative:
        assert (ROOT / target).is_file(), target


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
    [guide] = (table for table in tables(readme) if len(table) > 30)
    left = [row[0] for row in guide]

    for command in GUIDE_COMMANDS:
        [row] = {left.index(f"`{command}`")}
        assert guide[row][1], command


def test_both_languages_have_the_same_shape() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in NAMES]
    headings = [re.findall(r"^#+(?= )", without_blocks(text), re.MULTILINE) for text in texts]
    shapes = [[(len(table), {len(row) for row in table}) for table in tables(text)] for text in texts]
    codes = [[line.split("#")[0].rstrip() for line in "".join(blocks(text)).splitlines()] for text in texts]
    items = [re.findall(r"^(?:\d+\.|-) ", text, re.MULTILINE) for text in texts]

    assert headings[0] == headings[1]
    assert shapes[0] == shapes[1]
    assert codes[0] == codes[1]
    assert items[0] == items[1]


def test_a_table_has_as_many_cells_in_every_row(readme: str) -> None:
    for table in tables(readme):
        assert {len(row) for row in table} == {len(table[0])}, table[0]


def test_both_languages_name_the_same_code_in_every_row() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in NAMES]

    for one, other in zip(*map(tables, texts), strict=True):
        for mine, yours in zip(one[1:], other[1:], strict=True):
            codes = [sorted(re.findall(r"`([^`]+)`", " ".join(row))) for row in (mine, yours)]
            assert [name for name in codes[0] if "<" not in name] == [
                name for name in codes[1] if "<" not in name
            ], mine[0]


def test_the_figures_are_the_same_in_both_languages() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in NAMES]
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
