from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag, parse_tag
from packaging.utils import canonicalize_name
from support.fresh import ROOT, Fresh

from mapsage_kaggle.errors import ConfigError, MachineError, UsageError
from mapsage_kaggle.machine import STACK
from mapsage_kaggle.setup import install as install_module
from mapsage_kaggle.setup.bundle import image_versions
from mapsage_kaggle.setup.install import (
    LIBRARIES,
    OPENCV,
    finish_proof,
    install,
    installed_versions,
    loaded_versions,
    must_restart,
    plan_install,
)
from mapsage_kaggle.setup.pip import explain_failure

KAGGLE = image_versions()
KAGGLE_PYTHONS = ("3.12", "3.13")
MISSING = ("addict", "ftfy", "termcolor", "yapf")
COMPLETE = {**KAGGLE, **STACK, "addict": "2.4.0", "ftfy": "6.3.1", "termcolor": "3.3.0", "yapf": "0.43.0"}
WHEELS = tuple(
    Path("/kaggle/input/mapsage-bundle/wheels") / name
    for name in (
        "addict-2.4.0-py3-none-any.whl",
        "ftfy-6.3.1-py3-none-any.whl",
        "termcolor-3.3.0-py3-none-any.whl",
        "yapf-0.43.0-py3-none-any.whl",
        "onedl_mmengine-0.10.12-py3-none-any.whl",
        "onedl_mmcv-2.3.6-py3-none-any.whl",
        "onedl_mmsegmentation-1.4.2-py3-none-any.whl",
    )
)
TAGS: frozenset[Tag] = parse_tag("cp312-cp312-manylinux_2_28_x86_64") | parse_tag("py3-none-any")
STACK_PINS = tuple(f"{name}=={version}" for name, version in STACK.items())


def test_a_config_that_is_not_there_is_refused_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install_module, "_install", lambda *args, **kwargs: pytest.fail("it was begun"))
    with pytest.raises(ConfigError, match=r"There is no config train_lovda.*train_loveda_kaggle\.py"):
        install(trains="train_lovda")


# --- the plan ---------------------------------------------------------------------------------


def test_a_complete_interpreter_needs_nothing() -> None:
    assert plan_install(COMPLETE, (), online=False, tags=TAGS).empty


def test_only_what_is_missing_is_added() -> None:
    plan = plan_install(KAGGLE, (), online=True, tags=TAGS)

    assert plan.libraries == MISSING
    assert plan.stack == STACK_PINS


@pytest.mark.parametrize("name", ["torch", "numpy", "opencv-python", "setuptools"])
def test_what_the_platform_brought_is_pinned_as_it_is(name: str) -> None:
    plan = plan_install(KAGGLE, (), online=True, tags=TAGS)

    assert f"{name}=={KAGGLE[name]}" in plan.constraints


def test_attached_wheels_go_before_the_index() -> None:
    plan = plan_install(KAGGLE, WHEELS, online=True, tags=TAGS)

    assert plan.uncovered == ()
    assert plan.wheels == WHEELS


def test_attached_wheels_suffice_without_internet() -> None:
    assert plan_install(KAGGLE, WHEELS, online=False, tags=TAGS).uncovered == ()


def test_what_is_there_already_is_not_installed_from_a_wheel_again() -> None:
    plan = plan_install({**KAGGLE, "addict": "2.4.0"}, WHEELS, online=False, tags=TAGS)

    assert plan.wheels == WHEELS[1:]


def test_what_a_missing_library_needs_in_turn_is_installed_with_it() -> None:
    wcwidth = WHEELS[0].with_name("wcwidth-0.9.4-py3-none-any.whl")

    assert wcwidth in plan_install(KAGGLE, (*WHEELS, wcwidth), online=False, tags=TAGS).wheels
    there = {**KAGGLE, "wcwidth": "0.2.0"}
    assert wcwidth not in plan_install(there, (*WHEELS, wcwidth), online=False, tags=TAGS).wheels


def test_one_missing_wheel_asks_the_index_where_there_is_one() -> None:
    plan = plan_install(KAGGLE, WHEELS[1:], online=True, tags=TAGS)

    assert plan.uncovered == ("addict",)


def test_one_missing_wheel_without_internet_is_named() -> None:
    with pytest.raises(MachineError, match=r"lack addict for this Python.*mapsage-kaggle bundle"):
        plan_install(KAGGLE, WHEELS[1:], online=False, tags=TAGS)


def test_a_wheel_for_another_python_does_not_count() -> None:
    other = WHEELS[0].with_name("addict-2.4.0-cp310-cp310-manylinux_2_28_x86_64.whl")

    assert plan_install(KAGGLE, (other, *WHEELS[1:]), online=True, tags=TAGS).uncovered == ("addict",)


def test_a_wheel_of_another_version_of_the_stack_does_not_count() -> None:
    other = WHEELS[5].with_name("onedl_mmcv-2.3.5-py3-none-any.whl")

    plan = plan_install(KAGGLE, (*WHEELS[:5], other, WHEELS[6]), online=True, tags=TAGS)

    assert plan.uncovered == ("onedl-mmcv==2.3.6",)


def test_a_file_that_only_ends_like_a_wheel_is_passed_over() -> None:
    odd = WHEELS[0].with_name("notes.whl")

    assert plan_install(KAGGLE, (odd, *WHEELS), online=False, tags=TAGS).uncovered == ()


def test_another_version_of_the_stack_is_replaced_and_not_pinned() -> None:
    plan = plan_install({**COMPLETE, "onedl-mmcv": "2.3.0"}, (), online=True, tags=TAGS)

    assert plan.stack == ("onedl-mmcv==2.3.6",)
    assert not any(text.startswith("onedl-mmcv==") for text in plan.constraints)


def test_numpy_1_must_change() -> None:
    plan = plan_install({**COMPLETE, "numpy": "1.26.4"}, (), online=True, tags=TAGS)

    assert plan.libraries == ("numpy>2",)
    assert "numpy==1.26.4" not in plan.constraints


@pytest.mark.parametrize("build", OPENCV)
def test_any_build_of_opencv_will_do(build: str) -> None:
    installed = {name: version for name, version in COMPLETE.items() if name != "opencv-python"}

    assert plan_install({**installed, build: "4.12.0.88"}, (), online=False, tags=TAGS).empty


def test_the_attached_build_of_opencv_is_taken() -> None:
    installed = {name: version for name, version in COMPLETE.items() if name != "opencv-python"}
    wheel = Path("/w/opencv_python-4.12.0.88-cp37-abi3-manylinux2014_x86_64.whl")
    tags = TAGS | parse_tag("cp37-abi3-manylinux2014_x86_64")

    assert plan_install(installed, (wheel,), online=False, tags=tags).libraries == ("opencv-python",)


def test_without_torch_it_says_so_and_installs_none() -> None:
    installed = {name: version for name, version in KAGGLE.items() if name != "torch"}
    with pytest.raises(MachineError, match="torch is not installed"):
        plan_install(installed, WHEELS, online=True, tags=TAGS)


def test_a_torch_that_loads_unsafely_is_refused() -> None:
    with pytest.raises(MachineError, match=r"torch 2\.5\.1\+cu121 is older than 2\.6"):
        plan_install({**KAGGLE, "torch": "2.5.1+cu121"}, WHEELS, online=True, tags=TAGS)


def test_upstream_packages_are_named_with_the_way_out() -> None:
    installed = {**KAGGLE, "mmcv-lite": "2.1.0", "mmengine": "0.10.7"}
    with pytest.raises(MachineError) as caught:
        plan_install(installed, (), online=True, tags=TAGS)

    assert "mmengine 0.10.7, mmcv-lite 2.1.0" in caught.value.problem
    assert "pip uninstall -y mmengine mmcv-lite" in caught.value.remedy
    assert "restart the kernel" in caught.value.remedy


def test_an_installed_version_that_pip_cannot_read_is_not_pinned() -> None:
    plan = plan_install({**KAGGLE, "oddity": "unknown-dirty"}, (), online=True, tags=TAGS)

    assert not any(text.startswith("oddity") for text in plan.constraints)


# --- what the plan is made from ---------------------------------------------------------------


def test_the_libraries_are_all_that_the_stack_asks_for() -> None:
    asked = set()
    for name in STACK:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                asked.add(canonicalize_name(requirement.name))

    known = {canonicalize_name(Requirement(text).name) for text in LIBRARIES}
    assert asked - known - set(STACK) == {"opencv-python"}


def test_the_installed_versions_are_by_canonical_name() -> None:
    versions = installed_versions()

    assert versions["onedl-mmengine"] == STACK["onedl-mmengine"]
    assert "pillow" in versions


# --- restart ----------------------------------------------------------------------------------


def test_a_module_of_another_version_than_on_disk_needs_a_restart() -> None:
    loaded = {"numpy": "1.26.4", "torch": "2.10.0+cu128"}

    assert must_restart(loaded, COMPLETE) == ("numpy",)


def test_a_module_whose_distribution_went_away_needs_a_restart() -> None:
    assert must_restart({"mmcv": "2.2.0"}, KAGGLE) == ("mmcv",)


def test_versions_are_compared_as_far_as_the_module_tells_them() -> None:
    assert must_restart({"cv2": "4.13.0", "torch": "2.10.0"}, KAGGLE) == ()


def test_nothing_loaded_needs_no_restart() -> None:
    assert must_restart({}, KAGGLE) == ()


def test_the_modules_of_this_very_process_are_those_on_disk() -> None:
    code = (
        "import numpy, PIL, yaml, cv2, scipy, matplotlib, mmengine\n"
        "from mapsage_kaggle.setup.install import must_restart, loaded_versions, installed_versions\n"
        "loaded = loaded_versions()\n"
        "assert {'numpy', 'PIL', 'yaml', 'cv2', 'scipy', 'matplotlib', 'mmengine'} <= set(loaded), loaded\n"
        "assert must_restart(loaded, installed_versions()) == ()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_loaded_versions_ask_for_no_import() -> None:
    assert set(loaded_versions()) <= set(sys.modules)


# --- failures ---------------------------------------------------------------------------------

OFFLINE_OUTPUT = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NameResolutionError("Failed to resolve \
'index' ([Errno -3] Temporary failure in name resolution)")': /simple/addict/
ERROR: Could not find a version that satisfies the requirement addict (from versions: none)
ERROR: No matching distribution found for addict
"""


def test_a_failed_name_look_up_means_that_internet_is_off() -> None:
    error = explain_failure(OFFLINE_OUTPUT, offline=False)

    assert "Internet is off" in error.problem
    assert "mapsage-kaggle bundle" in error.remedy


def test_a_gap_in_the_attached_wheels_is_named() -> None:
    error = explain_failure("ERROR: No matching distribution found for wcwidth\n", offline=True)

    assert error.problem.startswith("The attached wheels lack")
    assert "wcwidth" in error.problem


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: externally-managed-environment", "operating system"),
        ("ERROR: [Errno 13] Permission denied: '/usr/lib'", "cannot be written"),
        ("ERROR: ResolutionImpossible: for help", "do not go together"),
        ("something else\nERROR: odd", "pip failed: ERROR: odd"),
        ("", "pip failed: nothing"),
    ],
)
def test_failures_of_pip_are_put_in_words(output: str, words: str) -> None:
    assert words in explain_failure(output, offline=False).problem


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match="'fr'"):
        install(language="fr")


# --- for real ---------------------------------------------------------------------------------


@pytest.fixture
def model_config(tmp_path: Path) -> Path:
    """Return the config of the smallest SegFormer."""
    path = tmp_path / "tiny.py"
    path.write_text(
        """
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    backbone=dict(type="MixVisionTransformer", embed_dims=8, num_layers=[1, 1, 1, 1],
                  num_heads=[1, 1, 1, 1], init_cfg=dict(type="Pretrained", checkpoint="absent.pth")),
    decode_head=dict(type="SegformerHead", in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3], channels=8,
                     num_classes=5, norm_cfg=norm_cfg, align_corners=False,
                     loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True)),
    test_cfg=dict(mode="whole"),
)
"""
    )
    return path


@pytest.fixture
def kept_python_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give ``PYTHONPATH`` back as it was: `install` sets it for children."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    yield


def test_a_kit_that_only_this_process_can_import_is_handed_to_children(tmp_path: Path) -> None:
    code = f"""
import sys, subprocess
sys.path.insert(0, {str(ROOT)!r})
from mapsage_kaggle.setup.install import share_with_children
print(share_with_children())
subprocess.run([sys.executable, "-c", "import mapsage_kaggle.paths as m; print(m.__file__)"], check=True)
"""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-u", "-c", code],
        cwd=tmp_path,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )

    assert answer.stdout.split() == [str(ROOT), str(ROOT / "mapsage_kaggle" / "paths.py")]


@pytest.mark.usefixtures("kept_python_path")
def test_where_all_is_there_it_only_proves_it(
    tmp_path: Path, model_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = install(inputs=tmp_path, offline=True, config=model_config)

    assert (report.added, report.changed) == ((), ())
    assert report.proof is not None
    assert report.proof["classes"] == 5
    assert report.proof["versions"]["mmcv"] == STACK["onedl-mmcv"]
    assert "It works" in capsys.readouterr().out


@pytest.mark.usefixtures("kept_python_path")
def test_before_training_the_proof_goes_on_while_others_look_around(
    tmp_path: Path, model_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()

    def prove(config: Path) -> dict[str, int]:
        assert looked.wait(60.0)
        return {"parameters": 10**6, "classes": 5}

    monkeypatch.setattr(install_module, "warm_up", lambda _: None)
    monkeypatch.setattr(install_module, "prove_in_child", prove)
    report = install(inputs=tmp_path, offline=True, config=model_config, trains=model_config)
    assert report.proof is None
    assert "It works" not in capsys.readouterr().out
    looked.set()
    for said in (True, False):
        finish_proof()
        assert ("It works" in capsys.readouterr().out) is said


@pytest.mark.usefixtures("kept_python_path")
def test_a_proof_that_fails_is_told_to_whoever_goes_on_each_time(
    tmp_path: Path, model_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_module, "warm_up", lambda _: None)
    monkeypatch.setattr(install_module, "prove_in_child", Mock(side_effect=MachineError("no such head")))
    monkeypatch.setattr(install_module, "_going_on", None)
    install(inputs=tmp_path, offline=True, trains=model_config)
    for _ in range(2):
        with pytest.raises(MachineError, match="no such head"):
            finish_proof()


@pytest.mark.usefixtures("kept_python_path")
def test_a_model_that_cannot_be_built_is_an_error_of_the_machine(tmp_path: Path, model_config: Path) -> None:
    model_config.write_text(model_config.read_text().replace("SegformerHead", "NoSuchHead"))

    with pytest.raises(MachineError, match="NoSuchHead"):
        install(inputs=tmp_path, offline=True, quiet=True, config=model_config)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory, real_bundle: Path) -> Path:
    """Return the bundle's folder, attached."""
    folder = tmp_path_factory.mktemp("input") / "datasets" / "me" / "bundle"
    shutil.copytree(real_bundle, folder)
    return folder


@pytest.mark.slow(scope_s=110)
def test_the_wheels_of_the_stack_are_pure_python(wheelhouse: Path) -> None:
    for name in STACK:
        (wheel,) = wheelhouse.glob(f"{name.replace('-', '_')}-*.whl")
        assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_a_fresh_interpreter_is_made_ready_from_attached_wheels_alone(
    tmp_path: Path, wheelhouse: Path, model_config: Path
) -> None:
    fresh = Fresh(tmp_path / "venv", lacking={*MISSING, *STACK, "wcwidth", "platformdirs", "mapsage-kaggle"})
    inputs = wheelhouse.parents[2]

    answer = fresh.install(inputs, model_config)

    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert "10 attached wheels are, byte for byte," in answer.stdout or "9 attached wheels" in answer.stdout
    added = {text.split("==")[0] for text in report["added"]}
    assert added == {*MISSING, *STACK, "wcwidth", "platformdirs"}
    assert report["changed"] == []
    assert report["restart"] == []
    assert any(text.startswith("torch==") for text in report["kept"])
    assert report["proof"]["classes"] == 5
    assert report["python_path"] == str(ROOT)

    again = fresh.install(inputs, model_config)
    assert json.loads(again.stdout.splitlines()[-1])["added"] == []


@pytest.mark.slow
def test_a_strangers_newer_wheel_is_named_and_left_alone(
    tmp_path: Path, wheelhouse: Path, model_config: Path
) -> None:
    lacking = {*MISSING, *STACK, "wcwidth", "platformdirs", "prettytable", "mapsage-kaggle"}
    fresh = Fresh(tmp_path / "venv", lacking=lacking)
    inputs = tmp_path / "input"
    shutil.copytree(wheelhouse, inputs / "bundle")
    stranger = inputs / "pictures" / "prettytable-999-py3-none-any.whl"
    write_stranger(stranger)

    answer = fresh.install(inputs, model_config, offline=None)

    assert answer.returncode == 0, answer.stderr
    assert f"Left alone, since the kit does not know it: {stranger}" in answer.stdout
    report = json.loads(answer.stdout.splitlines()[-1])
    [added] = [text for text in report["added"] if text.startswith("prettytable==")]
    assert added != "prettytable==999"


def write_stranger(path: Path) -> None:
    path.parent.mkdir(parents=True)
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "raise SystemExit('a stranger')\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )


@pytest.mark.slow
def test_the_index_serves_what_no_wheel_is_attached_for(
    tmp_path: Path, wheelhouse: Path, model_config: Path
) -> None:
    """onedl-mmcv comes as source, and torch can be imported here: nothing is compiled all the same."""
    fresh = Fresh(tmp_path / "venv", lacking={*MISSING, *STACK, "wcwidth", "platformdirs", "mapsage-kaggle"})
    inputs = tmp_path / "input"
    inputs.mkdir()
    for wheel in wheelhouse.glob("addict-*.whl"):
        (inputs / wheel.name).symlink_to(wheel)

    answer = fresh.install(inputs, model_config, offline=None, PIP_NO_BUILD_ISOLATION="0")

    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert {f"{name}=={version}" for name, version in STACK.items()} <= set(report["added"])
    assert report["changed"] == []
    assert list(fresh.site.glob("mmcv/_ext*")) == []


@pytest.mark.slow
def test_without_internet_and_wheels_it_says_so_soon_and_installs_no_half(
    tmp_path: Path, model_config: Path
) -> None:
    fresh = Fresh(tmp_path / "venv", lacking={"addict", *STACK, "mapsage-kaggle"})

    answer = fresh.install(
        tmp_path / "absent",
        model_config,
        offline=None,
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="https://index.invalid/simple",
        PIP_FIND_LINKS="",
        PIP_NO_CACHE_DIR="1",
    )

    assert answer.returncode == 1
    assert "Internet is off in this session. Turn it on" in answer.stderr
    assert list(fresh.site.glob("onedl*")) == []


@pytest.mark.slow
def test_a_module_imported_in_another_version_asks_for_a_restart(
    tmp_path: Path, wheelhouse: Path, model_config: Path
) -> None:
    fresh = Fresh(tmp_path / "venv", lacking={*STACK, "mapsage-kaggle"})
    older = fresh.site / "mmengine"
    older.mkdir()
    (older / "__init__.py").write_text("__version__ = '0.10.8'\n")
    info = fresh.site / "onedl_mmengine-0.10.8.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onedl-mmengine\nVersion: 0.10.8\n")
    (info / "RECORD").write_text(
        "mmengine/__init__.py,,\nonedl_mmengine-0.10.8.dist-info/METADATA,,\n"
        "onedl_mmengine-0.10.8.dist-info/RECORD,,\n"
    )

    answer = fresh.install(wheelhouse.parents[2], model_config, before="import mmengine")

    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert report["changed"] == ["onedl-mmengine 0.10.8 -> 0.10.12"]
    assert report["restart"] == ["mmengine"]
    assert "Restart the kernel now" in answer.stdout


@pytest.mark.slow
@pytest.mark.parametrize("python", KAGGLE_PYTHONS)
def test_kaggles_pythons_can_be_served_from_binary_wheels_alone(
    tmp_path: Path, wheelhouse: Path, python: str
) -> None:
    """The requirement set resolves for CPython on manylinux, with what the image has, without a compiler.

    torch is left out: the image has it, and its wheel is large.
    """
    report, image = tmp_path / "report.json", tmp_path / "image.txt"
    had = {name: version for name, version in image_versions(python).items() if name != "torch"}
    image.write_text("".join(f"{name}=={version}\n" for name, version in had.items()))
    libraries = [text for text in LIBRARIES if not text.startswith("setuptools")]
    command = [sys.executable, "-m", "pip", "-qq", "install", "--dry-run", "--ignore-installed"]
    command += ["--target", str(tmp_path / "never"), "--report", str(report), "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={python}", "--platform=manylinux_2_28_x86_64"]
    command += ["--platform=manylinux2014_x86_64", "--find-links", str(wheelhouse)]
    command += ["--constraint", str(image)]
    subprocess.run([*command, *libraries, "opencv-python", *STACK_PINS], check=True)

    items = json.loads(report.read_text())["install"]
    versions = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in items}
    assert {name: versions[name] for name in STACK} == dict(STACK)
    assert "torch" not in versions
    assert all(item["download_info"]["url"].endswith(".whl") for item in items)
