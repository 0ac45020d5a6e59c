from __future__ import annotations

import ast
import configparser
import itertools
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from mapsage_kaggle.checks import MAX_PYTHON, MIN_PYTHON, MIN_TORCH
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.machine import STACK
from mapsage_kaggle.paths import bundled
from mapsage_kaggle.setup.install import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, Requirement]:
    lines = [line.strip() for line in text.splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_the_packages_listed_are_the_packages_there(setup_cfg: configparser.RawConfigParser) -> None:
    listed = set(setup_cfg["options"]["packages"].split())
    there = {
        ".".join(path.relative_to(ROOT).parts)
        for path in [ROOT / "mapsage_kaggle", *(ROOT / "mapsage_kaggle").rglob("*")]
        if path.is_dir() and any(path.glob("*.py"))
    }

    assert listed == there | {"mapsage_kaggle.configs", "mapsage_kaggle.notebooks"}


def test_the_project_file_has_the_build_table_only() -> None:
    tables = re.findall(r"^\[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert tables == ["build-system"]


def test_the_pins_are_those_that_the_kit_checks_for(setup_cfg: configparser.RawConfigParser) -> None:
    core = requirements(setup_cfg["options"]["install_requires"])
    train = requirements(setup_cfg["options.extras_require"]["train"])

    assert {name: str({**core, **train}[name].specifier) for name in STACK} == {
        name: f"=={version}" for name, version in STACK.items()
    }
    assert str(train["torch"].specifier) == f">={'.'.join(map(str, MIN_TORCH))}"


def test_the_core_asks_for_no_torch(setup_cfg: configparser.RawConfigParser) -> None:
    assert "torch" not in requirements(setup_cfg["options"]["install_requires"])


def test_what_install_adds_contains_the_core(setup_cfg: configparser.RawConfigParser) -> None:
    core = set(requirements(setup_cfg["options"]["install_requires"])) - set(STACK)

    assert core <= set(requirements("\n".join(LIBRARIES)))


def test_every_bound_has_its_reason(setup_cfg: configparser.RawConfigParser) -> None:
    """A requirement with a bound stands below a comment, of its own or of its neighbour's."""
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    block = text[text.index("install_requires") : text.index("# To work on the kit.")]
    lines = [line.strip() for line in block.splitlines()]
    bare = [
        line
        for above, line in itertools.pairwise(lines)
        if re.match(r"[\w-]+[<>=]=?\d", line)
        and not above.startswith("#")
        and not re.match(r"[\w-]+>=", above)
    ]
    assert bare == []


def test_the_supported_pythons_are_said_alike_everywhere(setup_cfg: configparser.RawConfigParser) -> None:
    (major, low), (_, high) = MIN_PYTHON, MAX_PYTHON

    assert setup_cfg["options"]["python_requires"] == f">={major}.{low},<{major}.{high + 1}"
    for minor in range(low, high + 1):
        assert f"Programming Language :: Python :: {major}.{minor}" in setup_cfg["metadata"]["classifiers"]
    assert setup_cfg["mypy"]["python_version"] == f"{major}.{low}"
    assert f'target-version = "py{major}{low}"' in (ROOT / "ruff.toml").read_text()


@pytest.mark.parametrize("folder", ["mapsage_kaggle", "configs", "notebooks", "tests"])
def test_every_source_is_grammatical_for_the_oldest_python(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=MIN_PYTHON)


def test_what_travels_with_the_kit_is_found() -> None:
    assert (bundled("configs") / "train_earthvqa_kaggle.py").is_file()
    assert bundled("notebooks").is_dir()


def test_what_does_not_travel_is_an_error_that_says_where_it_looked() -> None:
    with pytest.raises(MachineError, match=r"'nothing' is neither in .*mapsage_kaggle nor beside it"):
        bundled("nothing")


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    assert [name for name in targets.split() if name != "help" and f"make {name}" not in shown] == []


# --- built and installed ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy of what is tracked: a build leaves folders in its tree."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    ignored = {".git", ".venv", "build", "dist", "demo", "kit", "out", "__pycache__"}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not ignored.intersection(parts) and not parts[0].endswith(".egg-info"):
            target = tree.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "-qq", "wheel", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, str(tree)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow(scope_s=30)
def test_the_wheel_holds_all_that_the_tree_holds(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mapsage_kaggle").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    mapped = {
        f"mapsage_kaggle/{path.relative_to(ROOT)}"
        for folder, patterns in (("configs", ("*.py", "*.md")), ("notebooks", ("*.py", "*.ipynb", "*.md")))
        for pattern in patterns
        for path in (ROOT / folder).rglob(pattern)
    }

    assert mapped
    assert (package | mapped) - names == set()
    assert not any(name.startswith(("tests/", "configs/", "notebooks/")) for name in names)
    assert any(name.endswith(("/licenses/LICENSE", ".dist-info/LICENSE")) for name in names)


@pytest.mark.slow
def test_the_core_works_installed_without_torch(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([venv / "bin" / "python", "-m", "pip", "-qq", "install", str(wheel)], check=True)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ["MAPSAGE_KAGGLE_ROOT"] = str(tmp_path / "kaggle")
    for split in ("Train", "Val"):
        for kind, mode in (("images_png", "RGB"), ("masks_png", "L")):
            image = tmp_path / "kaggle" / "input" / "earthvqa" / split / kind / "0.png"
            image.parent.mkdir(parents=True)
            Image.new(mode, (64, 64), color=1 if mode == "L" else (90, 120, 60)).save(image)

    def run(*command: str, expect: int = 0) -> str:
        answer = subprocess.run(
            [venv / "bin" / command[0], *command[1:]],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == expect, answer.stdout + answer.stderr
        return answer.stdout

    assert "torch" not in run("python", "-m", "pip", "list", "--format=freeze")
    where = run(
        "python",
        "-c",
        "from mapsage_kaggle.paths import bundled\n"
        "from mmengine.config import Config\n"
        "print(Config.fromfile(bundled('configs') / 'train_earthvqa_kaggle.py').train_cfg.max_iters)",
    )
    assert where.split()[-1] == "40000"
    assert "scan" in run("mapsage-kaggle", "--help")
    assert run("mapsage-kaggle", "--help") == run("python", "-m", "mapsage_kaggle", "--help")
    assert json.loads(run("mapsage-kaggle", "scan", "--json")) == {"files": [], "rejected": []}
    # No torch: it cannot train, and says so.
    doctor = json.loads(run("mapsage-kaggle", "doctor", "--json", expect=4))
    assert {"torch", "stack"} <= {check["name"] for check in doctor["checks"] if not check["ok"]}
    config = str(next((venv / "lib").glob("*/site-packages/mapsage_kaggle/configs/train_earthvqa_kaggle.py")))
    run("mapsage-kaggle", "patch", config, "--resume", "never", "--out", str(tmp_path / "patched.py"))
    assert (tmp_path / "patched.py").is_file()
