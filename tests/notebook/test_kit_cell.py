"""The notebook's first step: which of the attached kits is imported, and that nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.notebooks import NOTEBOOK, ROOT, kit_cell

from mapsage_kaggle.kit import copy_kit, kit_files, kit_sha256, own_home

OWN = kit_files(own_home())
OWN_SHA256 = kit_sha256(OWN)
WHEEL = "mapsage_kaggle-0.1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def imported(notebook: Any, root: Path, *, site: str = "-S", **parameters: str | None) -> str:
    """Run the cell in a Python that has no packages at all; tell where the kit comes from, or why not."""
    values = {"KIT": None, "KIT_SHA256": None, **parameters}
    code = "import time; time.sleep = lambda s: None\n"  # a mount is waited for
    code += "\n".join(f"{name} = {value!r}" for name, value in values.items())
    code += f"\n{kit_cell(notebook)}\nimport mapsage_kaggle; print(mapsage_kaggle.__file__)"
    answer = subprocess.run(
        [sys.executable, "-I", *([site] if site else []), "-c", code],
        env={**os.environ, "MAPSAGE_KAGGLE_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout + answer.stderr


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**files, "mapsage_kaggle-0.1.0.dist-info/METADATA": b"Name: x\n"}.items():
            wheel.writestr(name, data)
    return path


def strangers() -> dict[str, bytes]:
    """Return a kit that says that it is a stranger's, and imports."""
    return {**OWN, "mapsage_kaggle/__init__.py": b"print('a stranger')\n"}


def copy_in(root: Path, sha256: str = OWN_SHA256) -> str:
    return str(root / "temp" / f"kit-{sha256[:12]}" / "mapsage_kaggle" / "__init__.py")


# -- one hash


def test_a_checkout_a_wheel_an_unpacked_wheel_and_a_copy_have_one_hash(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / WHEEL, OWN)
    unpacked = write(tmp_path / "unpacked", OWN)
    copy = copy_kit(unpacked, tmp_path / "scratch")
    assert {kit_sha256(kit_files(place)) for place in (wheel, unpacked, copy)} == {OWN_SHA256}


def test_the_hash_changes_with_a_byte_and_with_a_name() -> None:
    (name, data), *rest = OWN.items()
    assert kit_sha256({**OWN, name: data + b" "}) != OWN_SHA256
    assert kit_sha256({f"{name}x": data, **dict(rest)}) != OWN_SHA256


def test_what_lies_among_the_kits_files_is_neither_hashed_nor_copied(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", OWN)
    write(folder, {"sitecustomize.py": b"", "mapsage_kaggle/paths.so": b"", "mapsage_kaggle/a.pyc": b""})
    copy = copy_kit(folder, tmp_path / "scratch")
    assert kit_files(copy) == OWN
    assert len([path for path in copy.rglob("*") if path.is_file()]) == len(OWN)


# -- one kit


@pytest.mark.parametrize(
    "place", ["kit", "kit/mapsage-kaggle-main", f"kit/{WHEEL}", "datasets/me/kit", f"datasets/me/kit/{WHEEL}"]
)
def test_attached_code_is_found_in_either_layout_and_copied(
    notebook: Any, tmp_path: Path, place: str
) -> None:
    write(tmp_path / "input" / place, OWN)
    assert imported(notebook, tmp_path) == f"{copy_in(tmp_path)}\n"
    assert kit_files(tmp_path / "temp" / f"kit-{OWN_SHA256[:12]}") == OWN


def test_a_checkout_has_its_configs_and_notebooks_beside_it(notebook: Any, tmp_path: Path) -> None:
    for name in ("mapsage_kaggle", "configs", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / "input" / "kit" / name)
    assert imported(notebook, tmp_path) == f"{copy_in(tmp_path)}\n"


@pytest.mark.parametrize("place", [f"kit/{WHEEL}", f"datasets/me/kit/wheels/{WHEEL}"])
def test_an_attached_wheel_is_found(notebook: Any, tmp_path: Path, place: str) -> None:
    write_wheel(tmp_path / "input" / place, OWN)
    assert imported(notebook, tmp_path) == f"{copy_in(tmp_path)}\n"


def test_without_the_kit_the_error_says_what_to_attach_and_where_it_looked(
    notebook: Any, tmp_path: Path
) -> None:
    write(tmp_path / "input" / "pictures", {"a.png": b""})
    found = imported(notebook, tmp_path)
    assert "Refusal: The kit is not attached. Add Input: the data set that `mapsage-kaggle bundle`" in found
    assert "未挂载本工具" in found
    assert f"{tmp_path / 'input'}: {tmp_path / 'input' / 'pictures'}" in found
    assert "Waiting" not in found


@pytest.mark.parametrize("mount", ["input", "input/kit", "input/datasets/me/kit"])
def test_a_mount_that_is_not_up_yet_is_waited_for(notebook: Any, tmp_path: Path, mount: str) -> None:
    (tmp_path / mount).mkdir(parents=True)
    found = imported(notebook, tmp_path)
    assert found.count("Waiting for the kit to be mounted") == 12
    assert "Refusal: The kit is not attached" in found


def test_what_is_no_zip_is_named_and_passed_over(notebook: Any, tmp_path: Path) -> None:
    write(tmp_path / "input" / "a", {WHEEL: b"no zip"})
    (tmp_path / "input" / "b" / WHEEL).mkdir(parents=True)
    write(tmp_path / "input" / "kit", OWN)
    found = imported(notebook, tmp_path)
    assert f"{tmp_path / 'input' / 'a' / WHEEL} is no kit" in found
    assert copy_in(tmp_path) in found
    assert "Traceback" not in found


def test_nothing_beside_the_kit_can_be_imported(notebook: Any, tmp_path: Path) -> None:
    write(tmp_path / "input" / "kit", {**OWN, "hashlib.py": b"print('a stranger')", "prettytable.py": b""})
    code = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(kit_cell(notebook) + "\nimport prettytable")]
    )
    assert "No module named 'prettytable'" in imported(code, tmp_path)


# -- several kits


def test_identical_copies_count_as_one(notebook: Any, tmp_path: Path) -> None:
    write(tmp_path / "input" / "one", OWN)
    write_wheel(tmp_path / "input" / "two" / WHEEL, OWN)
    assert imported(notebook, tmp_path) == f"{copy_in(tmp_path)}\n"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Return a root with the own kit and a stranger's attached."""
    write_wheel(tmp_path / "input" / "datasets" / "me" / "kit" / WHEEL, OWN)
    write(tmp_path / "input" / "datasets" / "eve" / "pictures", strangers())
    return tmp_path


def test_two_different_kits_stop_the_cell_with_both_named(notebook: Any, two: Path) -> None:
    found = imported(notebook, two)
    assert "Refusal: Different kits are attached; choose one by KIT" in found
    assert str(two / "input/datasets/me/kit" / WHEEL) in found
    assert str(two / "input/datasets/eve/pictures") in found
    assert "a stranger" not in found


@pytest.mark.parametrize(
    "kit", ["me/kit", "{root}/input/datasets/me/kit", f"{{root}}/input/datasets/me/kit/{WHEEL}"]
)
def test_a_named_kit_is_taken(notebook: Any, two: Path, kit: str) -> None:
    assert imported(notebook, two, KIT=kit.format(root=two)) == f"{copy_in(two)}\n"


def test_in_the_older_layout_the_slug_alone_names_a_kit(notebook: Any, tmp_path: Path) -> None:
    write(tmp_path / "input" / "kit", OWN)
    write(tmp_path / "input" / "pictures", strangers())
    assert imported(notebook, tmp_path, KIT="me/kit") == f"{copy_in(tmp_path)}\n"


def test_the_hash_chooses_among_kits(notebook: Any, two: Path) -> None:
    assert imported(notebook, two, KIT_SHA256=OWN_SHA256) == f"{copy_in(two)}\n"


def test_where_no_kit_has_the_hash_nothing_is_imported(notebook: Any, two: Path) -> None:
    found = imported(notebook, two, KIT_SHA256="0" * 64)
    assert "Refusal: No attached kit is the one that this notebook names (sha256 000000000000)" in found
    assert "a stranger" not in found


@pytest.mark.parametrize("kit", ["me/absent", "absent", "/nowhere"])
def test_a_named_kit_that_is_not_attached_stops_the_cell(notebook: Any, two: Path, kit: str) -> None:
    assert f"that this notebook names (KIT {kit})" in imported(notebook, two, KIT=kit)


# -- an installed kit


def test_an_installed_kit_goes_before_attached_ones(notebook: Any, two: Path) -> None:
    assert imported(notebook, two, site="") == f"{mapsage_file()}\n"


def test_an_installed_kit_of_another_hash_gives_way_to_the_attached_one(notebook: Any, two: Path) -> None:
    sha256 = kit_sha256(strangers())
    assert imported(notebook, two, site="", KIT_SHA256=sha256).startswith("a stranger")


def mapsage_file() -> str:
    """Return where a fresh Python finds the installed kit."""
    code = "import mapsage_kaggle; print(mapsage_kaggle.__file__)"
    return subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
