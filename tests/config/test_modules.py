"""Which folders a config's own modules are imported from: what is attached is data unless it is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mapsage_kaggle.config.modules import CodePlaces, check_custom_imports, code_places, use_code
from mapsage_kaggle.errors import ConfigError, UsageError
from mapsage_kaggle.paths import bundled
from mapsage_kaggle.processes import clean_environment, module_command, run_for_json

KEYS = (
    "KAGGLE_USER_SECRETS_TOKEN",
    "KAGGLE_DATA_PROXY_TOKEN",
    "KAGGLE_API_V1_TOKEN",
    "KAGGLE_API_TOKEN",
    "KAGGLE_KEY",
    "WANDB_API_KEY",
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "GOOGLE_APPLICATION_CREDENTIALS",
)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an input folder with a picture data set that would run code of its own."""
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path))
    hostile = tmp_path / "input" / "pictures"
    hostile.mkdir(parents=True)
    (hostile / "pyproject.toml").touch()
    for name in ("sitecustomize", "usercustomize"):
        (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    (hostile / "evil.pth").write_text(f"import os; open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    return tmp_path / "input"


def package(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"place = {str(folder)!r}\n")
    return folder


def config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text("model = dict()\n")
    return folder / "mine.py"


# -- which folders


def test_an_attached_folder_that_looks_like_code_is_none(inputs: Path, tmp_path: Path) -> None:
    places = code_places(config(tmp_path / "own" / "configs"), inputs)
    assert places == CodePlaces(last=(tmp_path / "own" / "configs", tmp_path / "own"))


@pytest.mark.parametrize("source", ["repo", "datasets/me/repo"])
def test_code_that_came_with_an_attached_config_counts_up_to_its_source(inputs: Path, source: str) -> None:
    root = package(inputs / source, "ours")
    places = code_places(config(root / "configs" / "big"), inputs)
    assert places.last == (root / "configs" / "big", root / "configs", root)
    assert places.first == ()


def test_the_kits_own_configs_bring_no_folder(inputs: Path) -> None:
    assert code_places(bundled("configs") / "demo.py", inputs) == CodePlaces()


def test_a_named_folder_is_told_and_goes_behind_what_is_installed(inputs: Path, tmp_path: Path) -> None:
    named = package(inputs / "code", "ours")
    places = code_places(bundled("configs") / "demo.py", inputs, [named])
    assert (places.first, places.last) == ((), (named,))
    assert places.messages == (f"Code is imported from {named}.",)


def test_a_named_folder_that_shadows_an_installed_package_goes_first(inputs: Path) -> None:
    named = package(inputs / "code", "mmseg")
    places = code_places(bundled("configs") / "demo.py", inputs, [named])
    assert (places.first, places.last) == ((named,), ())
    assert places.messages == (f"Code is imported from {named}, before the installed mmseg.",)


def test_what_came_with_the_config_and_shadows_an_installed_package_is_refused(inputs: Path) -> None:
    root = package(inputs / "repo", "mmseg")
    with pytest.raises(ConfigError, match=f"holds mmseg, which is installed, too.*--code {root}"):
        code_places(config(root / "configs"), inputs)
    assert code_places(config(root / "configs"), inputs, [root]).first == (root,)


@pytest.mark.parametrize("name", ["mapsage_kaggle", "tests", "tools"])
def test_a_copy_of_the_kit_and_folders_that_nobody_imports_shadow_nothing(inputs: Path, name: str) -> None:
    root = package(inputs / "repo", name)
    assert code_places(config(root / "configs"), inputs).last == (root / "configs", root)


def test_a_clone_in_another_attached_folder_is_no_matter(inputs: Path, tmp_path: Path) -> None:
    package(inputs / "output" / "mmsegmentation", "mmseg")
    assert code_places(config(tmp_path / "own"), inputs).first == ()


def test_a_named_folder_that_is_none_is_refused(inputs: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        code_places(bundled("configs") / "demo.py", inputs, [inputs / "absent"])


def test_a_child_takes_what_shadows_first_and_the_rest_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/installed"])
    use_code(CodePlaces(first=(Path("/a"),), last=(Path("/b"), Path("/installed"))).to_json())
    assert sys.path == ["/a", "/installed", "/b"]


# -- what a config wants


def test_a_module_in_an_attached_folder_is_refused_with_the_line_that_names_it(inputs: Path) -> None:
    folder = package(inputs / "code" / "deep", "ours")
    with pytest.raises(ConfigError, match=f"names ours.heads, which is neither.*--code {folder}"):
        check_custom_imports({"custom_imports": {"imports": ["ours.heads"]}}, CodePlaces(), inputs)


@pytest.mark.parametrize("imports", ["json", ["json.tool", "os"], [], None])
def test_what_is_installed_needs_no_naming(inputs: Path, imports: object) -> None:
    check_custom_imports({"custom_imports": {"imports": imports}}, CodePlaces(), inputs)


def test_a_module_beside_the_config_needs_no_naming(inputs: Path, tmp_path: Path) -> None:
    package(inputs / "code", "ours")
    places = CodePlaces(last=(package(tmp_path / "own", "ours"),))
    check_custom_imports({"custom_imports": {"imports": "ours"}}, places, inputs)


def test_a_module_that_is_nowhere_is_left_to_the_child(inputs: Path) -> None:
    check_custom_imports({"custom_imports": {"imports": ["nowhere_at_all"]}}, CodePlaces(), inputs)


# -- the environment of a child


@pytest.mark.parametrize("name", KEYS)
def test_a_child_gets_no_credentials_unless_they_are_passed(name: str) -> None:
    environ = {name: "secret", "PATH": "/bin"}
    assert name not in clean_environment(environ)
    assert clean_environment(environ, passed=[name])[name] == "secret"
    assert clean_environment(environ, credentials=True)[name] == "secret"


@pytest.mark.parametrize(
    "name", ["PATH", "KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_USERNAME", "TOKENIZERS_PARALLELISM"]
)
def test_other_variables_stay(name: str) -> None:
    assert clean_environment({name: "value"})[name] == "value"


def test_an_attached_folder_in_python_path_is_left_out(inputs: Path, tmp_path: Path) -> None:
    places = [str(inputs / "pictures"), str(tmp_path / "own"), ""]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    kept = clean_environment(environ)["PYTHONPATH"].split(os.pathsep)
    assert kept == [str(Path(__file__).parents[2]), str(tmp_path / "own")]


def test_nothing_beside_an_attached_kit_runs_in_its_children(inputs: Path, tmp_path: Path) -> None:
    """The kit lies flat in a data set, beside a ``sitecustomize`` and unpacked wheels."""
    home = Path(__file__).parents[2]
    for name in ("mapsage_kaggle", "configs", "notebooks"):
        (inputs / "pictures" / name).symlink_to(home / name)
    package(inputs / "pictures", "prettytable")
    code = f"""
import sys
sys.path.insert(0, {str(inputs / "pictures")!r})
import pathlib
pathlib.Path.resolve = pathlib.Path.absolute  # the links stand for copies
from mapsage_kaggle.processes import run_for_json
print(run_for_json([sys.executable, "-c", '''
import json, sys, mapsage_kaggle
from mapsage_kaggle.paths import bundled
print(json.dumps([mapsage_kaggle.__file__, str(bundled("configs")), sys.path]))
'''], timeout_s=60))
"""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import site; site.main()\n{code}"],
        env=environ, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path / "temp" / "kit-") in done.stdout
    assert str(inputs) not in done.stdout
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("first", [True, False])
def test_a_child_of_the_engine_finds_code_before_or_behind_what_is_installed(
    tmp_path: Path, first: bool
) -> None:
    folder = package(tmp_path / "code", "yaml")  # installed, too
    (folder / "own.py").write_text(
        "import json, sys, yaml; print(json.dumps([yaml.__file__, *sys.argv[1:]]))"
    )
    (folder / "sitecustomize.py").write_text("raise SystemExit('a stranger')")
    places = CodePlaces(first=(folder,)) if first else CodePlaces(last=(folder,))
    done = run_for_json(module_command(*places.start("own"), "a", "b"), timeout_s=60)
    assert done[1:] == ["a", "b"]
    assert done[0].startswith(str(folder)) is first
