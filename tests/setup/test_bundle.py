"""The bundle: complete, the same every time, found and proven on Kaggle, and enough without Internet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.fresh import Fresh
from support.notebooks import NOTEBOOK, SMALL, code_cells, kit_cell, write_kernel

from mapsage_kaggle.checks import OUTPUT_FILES
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.errors import MachineError, UsageError
from mapsage_kaggle.machine import STACK
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.setup import bundle as bundle_module
from mapsage_kaggle.setup.bundle import (
    BUNDLE_MANIFEST,
    bundle,
    extra_wheels,
    image_versions,
    leave_to_image,
    target_environment,
    wheels_for,
)
from mapsage_kaggle.setup.install import LIBRARIES, install, install_exactly
from mapsage_kaggle.setup.wheels import (
    EXTRA_LIST,
    PINS,
    BundledFile,
    BundleManifest,
    PinnedWheel,
    WheelMetadata,
    normalise,
    prove_wheels,
    read_pins,
)

ROOT = Path(__file__).resolve().parents[2]
WHEEL = "thing-1.0-py3-none-any.whl"
STACK_FOLDERS = ("mapsage_kaggle", "mmengine", "mmcv", "mmseg")
LINUX = target_environment("3.12")


# -- what is packed, and what is left to the image


def metadata(name: str, *requires: str, version: str = "1.0") -> WheelMetadata:
    return WheelMetadata(name=name, version=version, requires=requires)


def test_what_the_image_has_is_left_to_it_and_told_with_who_needs_it() -> None:
    packed = [metadata("a", "numpy>=2", "b"), metadata("b", "numpy")]
    assert leave_to_image(packed, {"numpy": "2.0.2"}, LINUX) == {"numpy": ">=2 by a; any by b"}


@pytest.mark.parametrize(
    ("requires", "told"),
    [
        ("absent>=1", r"absent>=1 \(needed by a\) is neither packed nor in the image"),
        ("numpy>=3", r"numpy>=3 \(needed by a\) is not met by numpy 2.0.2"),
        ("b>=2", r"b>=2 \(needed by a\) is not met by b 1.0"),
    ],
)
def test_a_requirement_that_nothing_meets_stops_the_build(requires: str, told: str) -> None:
    with pytest.raises(MachineError, match=told):
        leave_to_image([metadata("a", requires), metadata("b")], {"numpy": "2.0.2"}, LINUX)


def test_of_the_kits_extras_only_what_training_needs_counts() -> None:
    kit = metadata("mapsage-kaggle", 'torch>=2.6; extra == "train"', 'jupyterlab; extra == "dev"')
    assert list(leave_to_image([kit], {"torch": "2.10.0+cu128"}, LINUX)) == ["torch"]


def test_markers_are_those_of_kaggles_machine_and_not_of_this_one() -> None:
    item = metadata("a", 'b; python_version < "3.11"', 'c; sys_platform == "win32"')
    assert leave_to_image([item], {}, LINUX) == {}
    with pytest.raises(MachineError, match="b; python_version"):
        leave_to_image([item], {}, target_environment("3.10"))


def test_any_build_of_opencv_meets_the_need_for_one() -> None:
    image = {"opencv-contrib-python-headless": "4.12.0.88"}
    assert list(leave_to_image([metadata("a", "opencv-python")], image, LINUX)) == list(image)


def test_all_that_the_installer_would_add_is_pinned_or_in_the_image() -> None:
    image = image_versions()
    pinned = {canonicalize_name(Requirement(line.split(" ")[0]).name) for line in wheels_for("3.12")}
    for text in LIBRARIES:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pinned or requirement.specifier.contains(image[name]), text


def test_the_pinned_stack_is_the_stack_that_the_kit_was_tried_with() -> None:
    lines = [line.split(" ")[0] for line in wheels_for("3.12")]
    assert {f"{name}=={version}" for name, version in STACK.items()} <= set(lines)


def test_what_only_an_older_python_lacks_is_packed_for_that_one() -> None:
    assert not [line for line in wheels_for("3.12") if line.startswith("tomli")]
    assert [line for line in wheels_for("3.10") if line.startswith("tomli")]


# -- wheels built here


def write_wheel(
    path: Path, content: dict[str, str], *, date: tuple[int, ...] = (2020, 1, 1, 0, 0, 0)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(zipfile.ZipInfo(name, date), text)  # type: ignore[arg-type]
    return path


THING = {
    "thing/__init__.py": "x = 1\n",
    "thing/.mim/notes.txt": "notes\n",
    "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\nRequires-Dist: b>=1\n",
    "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
    "thing-1.0.dist-info/RECORD": "",
}


def test_the_same_content_gives_the_same_wheel_at_any_time_and_in_any_order(
    tmp_path: Path,
) -> None:
    one = write_wheel(tmp_path / "1" / WHEEL, THING)
    two = write_wheel(tmp_path / "2" / WHEEL, dict(reversed(THING.items())), date=(2024, 5, 6, 7, 8, 10))
    assert one.read_bytes() != two.read_bytes()
    normalise(one)
    normalise(two)
    assert one.read_bytes() == two.read_bytes()


def test_a_wheel_in_that_form_still_says_what_it_is_and_lists_all_its_files(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / WHEEL, THING)
    normalise(wheel)
    assert WheelMetadata.read(wheel) == metadata("thing", "b>=1")
    with zipfile.ZipFile(wheel) as archive:
        record = archive.read("thing-1.0.dist-info/RECORD").decode().splitlines()
    assert {line.split(",")[0] for line in record} == set(THING)


# -- found and proven


@pytest.fixture
def attached(tmp_path: Path) -> Path:
    """Return a bundle of two small wheels, as it is attached."""
    folder = tmp_path / "input" / "datasets" / "me" / "kit"
    for name in ("thing", "other"):
        content = {key.replace("thing", name): text.replace("thing", name) for key, text in THING.items()}
        normalise(write_wheel(folder / WHEEL.replace("thing", name), content))
    files = {path.name: BundledFile.of(path) for path in folder.iterdir()}
    manifest = BundleManifest(kit="0.1.0", commit="abc", python="3.12", image={}, files=files)
    (folder / BUNDLE_MANIFEST).write_text(json.dumps(manifest.to_json()))
    return folder


@pytest.fixture
def pins(attached: Path) -> tuple[PinnedWheel, ...]:
    """Return what the kit expects: the two wheels."""
    return tuple(PinnedWheel.of(path) for path in sorted(attached.glob("*.whl")))


def unpack(folder: Path, *, into: Callable[[Path], Path], dot_files: bool = False) -> None:
    """Unpack every wheel of a folder, as Kaggle unpacks archives."""
    for wheel in list(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if dot_files or "/." not in name]
            content = {name: archive.read(name) for name in names}
        wheel.unlink()
        for name, data in content.items():
            target = into(wheel) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


INTO: dict[str, Callable[[Path], Path]] = {
    "a folder without the ending": lambda wheel: wheel.with_suffix(""),
    "a folder of its own name": lambda wheel: wheel,
    "one folder for all": lambda wheel: wheel.parent,
}


def test_expected_wheels_are_found_under_any_mount_and_no_folder_has_none(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path
) -> None:
    older = tmp_path / "input" / "kit-of-mine"
    shutil.copytree(attached, older)
    found = prove_wheels(tmp_path / "input", pins, tmp_path / "scratch")
    assert [path.name for path in found.proven] == [WHEEL.replace("thing", "other"), WHEEL]
    assert found.others == {}
    assert prove_wheels(tmp_path / "absent", pins, tmp_path / "none").proven == ()


@pytest.mark.parametrize("into", INTO.values(), ids=INTO)
def test_unpacked_wheels_are_proven_file_by_file_and_put_together_again(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path, into: Callable[[Path], Path]
) -> None:
    unpack(attached, into=into)
    found = prove_wheels(tmp_path / "input", pins, tmp_path / "scratch")
    assert [path.name for path in found.proven] == [WHEEL.replace("thing", "other"), WHEEL]
    assert WheelMetadata.read(found.proven[1]).name == "thing"
    with zipfile.ZipFile(found.proven[1]) as archive:
        assert archive.read("thing/__init__.py") == b"x = 1\n"


def test_an_unpacked_wheel_with_all_its_files_gives_the_same_bytes_again(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path
) -> None:
    before = (attached / WHEEL).read_bytes()
    unpack(attached, into=INTO["a folder without the ending"], dot_files=True)
    assert prove_wheels(attached, pins, tmp_path / "scratch").proven[1].read_bytes() == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b"")])
def test_a_wheel_that_is_not_the_expected_file_is_named_and_no_wheel(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    damage(attached / WHEEL)
    found = prove_wheels(attached, pins, tmp_path / "scratch")
    assert [path.name for path in found.proven] == [WHEEL.replace("thing", "other")]
    assert found.others == {attached / WHEEL: "it is not the file that the kit expects"}


def test_a_whole_copy_counts_beside_a_damaged_one(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path
) -> None:
    shutil.copytree(attached, tmp_path / "input" / "another")
    flip(attached / WHEEL)
    assert len(prove_wheels(tmp_path / "input", pins, tmp_path / "scratch").proven) == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("thing/__init__.py", r"__init__\.py is not what its RECORD says"),
        ("thing-1.0.dist-info/RECORD", "its RECORD is not the one that the kit expects"),
    ],
)
def test_one_changed_byte_in_an_unpacked_wheel_makes_it_none(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path, name: str, told: str
) -> None:
    unpack(attached, into=INTO["a folder without the ending"])
    flip(attached / WHEEL.removesuffix(".whl") / name)
    found = prove_wheels(attached, pins, tmp_path / "scratch")
    assert len(found.proven) == 1
    assert re.search(told, *found.others.values())


def test_a_missing_file_of_an_unpacked_wheel_is_named(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path
) -> None:
    unpack(attached, into=INTO["one folder for all"])
    (attached / "thing" / "__init__.py").unlink()
    [problem] = prove_wheels(attached, pins, tmp_path / "scratch").others.values()
    assert "__init__.py is missing" in problem


def test_a_wheel_of_another_name_is_named_and_never_reaches_pip(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path
) -> None:
    stranger = write_wheel(attached / "prettytable-999-py3-none-any.whl", THING)
    found = prove_wheels(attached, pins, tmp_path / "scratch")
    assert found.others == {stranger: ""}
    assert {path.name for path in (tmp_path / "scratch").iterdir()} == {pin.name for pin in pins}


@pytest.mark.parametrize("text", ["a.whl", "a b c", "../a-1-py3-none-any.whl b c", "a-1.whl b c d"])
def test_a_torn_list_of_wheels_is_refused_and_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(MachineError, match=r"list\.txt cannot be used"):
        read_pins(tmp_path / "list.txt")


def test_every_pinned_requirement_is_pinned_as_a_file() -> None:
    names = {(pin.name.split("-")[0], pin.name.split("-")[1]) for pin in read_pins(PINS / "files.txt")}
    wanted = set()
    for python in ("3.10", "3.12"):
        for line in wheels_for(python):
            name, _, version = line.partition(" ")[0].partition("==")
            wanted.add((name.replace("-", "_"), version))
    assert names == wanted


def test_a_wheel_as_published_is_pinned_by_the_hash_of_its_publication() -> None:
    published = {line.rpartition("sha256:")[2] for line in wheels_for("3.10")}
    built = {pin.name.split("-")[0] for pin in read_pins(PINS / "files.txt") if pin.sha256 not in published}
    assert built == {"onedl_mmcv", "onedl_mmsegmentation"}


def test_what_is_installed_is_exactly_the_proven_files(
    attached: Path, pins: tuple[PinnedWheel, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mapsage_kaggle.setup.install.run_pip", lambda words, **_: asked.extend(words))
    found = prove_wheels(attached, pins, tmp_path / "scratch")
    install_exactly(found.proven, tmp_path)
    assert {"--no-index", "--require-hashes", "--no-deps"} <= set(asked)
    assert asked[asked.index("--find-links") + 1] == str(tmp_path / "scratch")
    lines = Path(asked[asked.index("--requirement") + 1]).read_text().splitlines()
    assert lines == [
        f"{name}==1.0 --hash=sha256:{pin.sha256}" for name, pin in zip(("other", "thing"), pins, strict=True)
    ]


# -- what comes along by --with


def item(name: str, *requires: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "version": "1.0", "requires_dist": list(requires)},
        "download_info": {"archive_info": {"hashes": {"sha256": name}}},
    }


def test_what_the_image_has_is_left_out_with_all_that_it_needs() -> None:
    items = [
        item("A", "b>=1", "torch"),
        item("b", 'c; extra == "x"'),
        item("torch", "nvidia"),
        item("nvidia"),
    ]
    lines = extra_wheels({"install": [*items, item("c")]}, ["a>=1"], {"torch"}, LINUX)
    assert lines == ("a==1.0 --hash=sha256:A", "b==1.0 --hash=sha256:b")


def test_a_requested_extra_brings_what_it_needs() -> None:
    items = [item("a", 'c; extra == "x"'), item("c")]
    assert len(extra_wheels({"install": items}, ["a[x]"], set(), LINUX)) == 2


@pytest.fixture
def extra(attached: Path, pins: tuple[PinnedWheel, ...]) -> Path:
    """Return a folder of wheels with their list, as ``bundle --with`` makes it, attached."""
    (attached / EXTRA_LIST).write_text("".join(f"{pin}\n" for pin in pins))
    return attached


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of what pip is asked for where all that training needs is there."""
    there = {**image_versions(), **STACK, "addict": "2.4", "ftfy": "6", "termcolor": "3", "yapf": "0.43"}
    asked: list[str] = []

    def install_all(wheels: Sequence[Path], scratch: Path) -> None:
        asked.extend(wheel.name.split("-")[0] for wheel in wheels)

    monkeypatch.setattr("mapsage_kaggle.setup.install.installed_versions", lambda: there)
    monkeypatch.setattr("mapsage_kaggle.setup.install.install_exactly", install_all)
    return asked


def test_extra_wheels_are_left_alone_unless_they_are_named(
    extra: Path, tmp_path: Path, ready: list[str]
) -> None:
    install(inputs=tmp_path / "input", quiet=True, prove=False)
    assert ready == []


@pytest.mark.parametrize("named", ["me/kit", "{folder}"])
def test_named_extra_wheels_are_installed(extra: Path, tmp_path: Path, ready: list[str], named: str) -> None:
    named = named.format(folder=extra)
    install(inputs=tmp_path / "input", quiet=True, prove=False, extra_wheels=named)
    assert ready == ["other", "thing"]


def test_a_damaged_extra_wheel_is_refused_by_name(extra: Path, tmp_path: Path, ready: list[str]) -> None:
    flip(extra / WHEEL)
    with pytest.raises(MachineError, match=f"is damaged: {WHEEL} is missing or is not"):
        install(inputs=tmp_path / "input", quiet=True, prove=False, extra_wheels="me/kit")
    assert ready == []


def test_extra_wheels_that_are_not_attached_are_refused(tmp_path: Path, ready: list[str]) -> None:
    with pytest.raises(MachineError, match="EXTRA_WHEELS names me/absent"):
        install(inputs=tmp_path / "input", quiet=True, prove=False, extra_wheels="me/absent")


# -- what is refused, and what is left behind


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"slug": "Kit"}, "'Kit' cannot be a data set's name"),
        ({"owner": "a b"}, "'a b' is no Kaggle user name"),
        ({"python": "3.9"}, "does not run on Python 3.9"),
    ],
)
def test_names_that_kaggle_would_refuse_are_refused_here(
    tmp_path: Path, options: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        bundle(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_of_other_origin_is_left_alone(attached: Path) -> None:
    (attached / "thesis.docx").touch()
    with pytest.raises(UsageError, match=r"no bundle put there: thesis\.docx"):
        bundle(attached)
    assert (attached / WHEEL).is_file()


def test_ctrl_c_leaves_an_earlier_bundle_as_it_was_and_no_scratch(
    attached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "run_pip", interrupt)
    before = sorted(attached.iterdir())
    with pytest.raises(KeyboardInterrupt):
        bundle(attached, say=lambda line: None)
    assert sorted(attached.iterdir()) == before
    assert list(attached.parent.iterdir()) == [attached]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("ERROR: Temporary failure in name resolution", "The package index cannot be reached"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n Got sha256 0123", "is not the file that .*0123"),
        ("ERROR: odd", "pip failed: ERROR: odd"),
    ],
)
def test_failures_of_pip_are_told_for_this_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, told: str
) -> None:
    monkeypatch.setattr(bundle_module, "run_pip", lambda *_, **__: output)
    with pytest.raises(MachineError, match=told):
        bundle(tmp_path / "out", say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_an_installed_kit_says_that_it_takes_a_checkout(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "mapsage_kaggle", tmp_path / "mapsage_kaggle", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-m", "mapsage_kaggle", "bundle", "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert f"from a git checkout of the kit, and {tmp_path} is none" in done.stderr


# -- the real one


@pytest.mark.slow(scope_s=130)
def test_the_bundle_is_complete_small_and_the_same_every_time(real_bundle: Path, tmp_path: Path) -> None:
    manifest = BundleManifest.read(real_bundle / BUNDLE_MANIFEST)
    there = {str(path.relative_to(real_bundle)) for path in real_bundle.rglob("*") if path.is_file()}
    assert there == {*manifest.files, BUNDLE_MANIFEST, "dataset-metadata.json"}
    assert len(there) < 50 < OUTPUT_FILES
    assert {"mapsage_train.ipynb", "configs/train_earthvqa_kaggle.py", "left_to_image.txt"} <= there
    assert {"README.md", "README.zh-CN.md", "configs/README.md"} <= there
    assert json.loads((real_bundle / "dataset-metadata.json").read_text())["id"] == "me/mapsage-kaggle"
    assert not [name for name in there if any(part.startswith(".") for part in Path(name).parts)]
    assert not list(real_bundle.parent.glob("*.making-*"))

    again = tmp_path / "elsewhere" / "again"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    bundle(again, owner="me", python=python, say=lambda line: None)
    for name in there:
        assert (again / name).read_bytes() == (real_bundle / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_one_bundle_serves_both_of_kaggles_pythons(real_bundle: Path, tmp_path: Path, python: str) -> None:
    wheels = sorted(real_bundle.glob("*.whl"))
    packed = [WheelMetadata.read(wheel) for wheel in wheels]
    assert leave_to_image(packed, image_versions(python), target_environment(python))
    command = [
        sys.executable,
        "-m",
        "pip",
        "-qq",
        "download",
        "--no-index",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--implementation=cp", f"--python-version={python}", "--platform=manylinux_2_28_x86_64"]
    command += ["--find-links", str(real_bundle), "--dest", str(tmp_path)]
    needed = [f"{item.name}=={item.version}" for item in packed]
    subprocess.run([*command, *needed], check=True)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [wheel.name for wheel in wheels]


def interpreter(version: str) -> str | None:
    """Return a Python of this machine by its version, on its path or under pyenv; None where it has none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
    return found[-1] if found else shutil.which(f"python{version}")


@pytest.mark.soak
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_bundle_installs_offline_on_both_of_kaggles_pythons(
    real_bundle: Path, tmp_path: Path, version: str
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    [site] = (tmp_path / "venv" / "lib").glob("python3.*/site-packages")
    own = tmp_path / "venv" / "bin" / "python"
    wheels = sorted(real_bundle.glob("*.whl"))
    install = [own, "-m", "pip", "-qq", "install", "--no-index", "--no-deps", *wheels]
    subprocess.run(without_network(*install), check=True)
    subprocess.run(
        [own, "-m", "compileall", "-q", "-f", *(str(site / name) for name in STACK_FOLDERS)], check=True
    )
    code = "import mapsage_kaggle, addict, ftfy, platformdirs, termcolor, wcwidth, yapf"
    subprocess.run([own, "-W", "error", "-c", code], check=True)


def attach(real_bundle: Path, target: Path) -> Path:
    """Mount a bundle as Kaggle does; the data set's own metadata is not among its files."""
    shutil.copytree(real_bundle, target, ignore=shutil.ignore_patterns("dataset-metadata.json"))
    return target


def lock(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    """Return an interpreter with what Kaggle's image has, and nothing that the bundle brings."""
    lacking = {canonicalize_name(line.split("==")[0]) for line in wheels_for("3.10")}
    # Jupyter itself stands on these two: where a kernel runs, they are there.
    lacking -= {"platformdirs", "wcwidth"}
    return Fresh(tmp_path / "venv", lacking={*lacking, "mapsage-kaggle"})


def without_network(*command: str | Path) -> list[str]:
    """Return a command that runs where only this machine itself can be reached, or skip."""
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare and ip are not installed")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make a network namespace")
    return [*alone, *map(str, command)]


@pytest.mark.slow
def test_the_wheels_unpacked_by_kaggle_are_enough_without_a_network(
    real_bundle: Path, fresh: Fresh, tmp_path: Path
) -> None:
    root = tmp_path / "kaggle"
    folder = attach(real_bundle, root / "input" / "mapsage-kaggle")
    unpack(folder, into=INTO["a folder of its own name"])
    lock(folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = (
        f"KIT = KIT_SHA256 = None\n{kit_cell(notebook)}\nimport dataclasses, json, mapsage_kaggle\n"
        "report = mapsage_kaggle.install(prove=False)\n"
        "print(json.dumps(dataclasses.asdict(report), default=str))\n"
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)}
    # What this machine keeps wheels in must not help.
    environ |= {"MAPSAGE_KAGGLE_ROOT": str(root), "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = subprocess.run(
        without_network(fresh.python, "-c", code),
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert {f"{name}=={version}" for name, version in STACK.items()} <= set(report["added"])
    assert report["changed"] == []
    assert Path(report["python_path"]).parent == root / "temp"


@pytest.mark.slow
def test_the_real_notebook_trains_from_the_bundle_alone_without_a_network(
    real_bundle: Path, fresh: Fresh, tmp_path: Path
) -> None:
    root = tmp_path / "kaggle"
    for name in ("working", "temp"):
        (root / name).mkdir(parents=True)
    folder = attach(real_bundle, root / "input" / "datasets" / "me" / "mapsage-kaggle")
    lock(folder)
    generate_scenes(root / "input" / "datasets" / "me" / "scenes", train=4, val=2, size=128, seed=0)
    write_kernel(tmp_path / "jupyter", fresh.python)
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        json.dumps(
            {"CONFIG": "demo.py", "OVERRIDES": SMALL, "SESSION_LIMIT": "10m", "RESERVE": "10s", "GPUS": 0}
        )
    )
    saved = root / "working" / "__notebook__.ipynb"
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)}
    environ |= {
        "MAPSAGE_KAGGLE_ROOT": str(root),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "JUPYTER_PATH": str(tmp_path / "jupyter"),
        "IPYTHONDIR": str(tmp_path / "jupyter" / "ipython"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
    }
    papermill = [sys.executable, "-m", "papermill", "--no-progress-bar", "-f", parameters]
    done = subprocess.run(
        without_network(*papermill, folder / "mapsage_train.ipynb", saved),
        cwd=root / "working",
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = "".join(
        output.get("text", "")
        for cell in code_cells(nbformat.read(saved, as_version=4))
        for output in cell.outputs
    )
    assert "attached wheels are, byte for byte, those that the kit was tried with" in printed
    assert "from the attached wheels" in printed
    record = SessionRecord.read(root / "working" / "work_dirs" / "demo" / "session.json")
    assert (record.stop_reason, record.end_iteration) == ("completed", 12)
