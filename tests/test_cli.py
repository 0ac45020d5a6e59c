"""The commands: what they print, where, and how they exit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mapsage_kaggle.cli import build_parser, main
from mapsage_kaggle.setup.bundle import BundleReport
from mapsage_kaggle.training.options import Options, options_from

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(
    next(
        action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty stand-in for ``/kaggle``."""
    for name in ("input", "working", "temp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def weights(root: Path) -> Path:
    """Return a file of weights alone, attached as input."""
    path = root / "input" / "a set" / "best_mIoU_iter_40.pth"
    path.parent.mkdir()
    torch.save({"meta": {"iter": 40}, "state_dict": {"weight": torch.ones(2)}, "message_hub": {}}, path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"mapsage-kaggle {command}" in capsys.readouterr().out


def test_no_command_and_an_unknown_one_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["train"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert "usage: mapsage-kaggle" in capsys.readouterr().err


def test_the_module_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mapsage_kaggle", "scan", str(tmp_path), "--json"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"files": [], "rejected": []}


def test_scan_prints_the_document_of_the_contract(
    root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights.parent / "iter_80.pth").touch()
    assert main(["scan", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == [
        {
            "path": str(weights),
            "kind": "best",
            "iteration": 40,
            "size_bytes": weights.stat().st_size,
            "source": "a set",
        }
    ]
    assert [Path(item["path"]).name for item in document["rejected"]] == ["iter_80.pth"]
    assert main(["scan"]) == 0
    assert "best" in capsys.readouterr().out


def test_verify_tells_the_verdict_and_exits_3_only_where_it_is_rejected(
    root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(weights), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"path", "verdict", "iteration", "problems"}
    assert (document["verdict"], document["iteration"]) == ("weights-only", 40)

    damaged = root / "iter_40.pth"
    damaged.write_bytes(weights.read_bytes()[:-30])
    assert main(["verify", str(damaged), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "rejected"
    assert document["problems"]


def test_verify_names_a_file_that_is_not_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(root / "iter_1.pth")]) == 3
    assert "iter_1.pth" in capsys.readouterr().out


def test_doctor_prints_the_document_of_the_contract(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == (0 if document["ok"] else 4)
    assert document["checks"]
    for check in document["checks"]:
        assert set(check) == {"name", "ok", "level", "message"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.py"], "There is no config at nowhere.py"),
        (["train", "configs/demo.py", "--set", "no-value"], "is not key=value"),
        (["train", "configs/demo.py", "--session-limit", "soon"], "'soon' is not a duration"),
        (["train", "configs/demo.py", "--gpus", "many"], "neither auto nor a number"),
    ],
)
def test_wrong_usage_is_told_in_one_paragraph_and_exits_2(
    root: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("mapsage-kaggle: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list((root / "working").iterdir()) == []


def test_a_config_that_does_not_parse_is_told_with_the_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = root / "broken.py"
    config.write_text("model = dict(\n")
    assert main(["patch", str(config)]) == 2
    assert "broken.py does not parse" in capsys.readouterr().err


def test_patch_shows_the_diff_and_leaves_the_config_as_it_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mapsage_kaggle.data.scenes import generate_scenes

    generate_scenes(root / "input" / "scenes", train=1, val=1, size=64, seed=0)
    source = ROOT / "configs" / "demo.py"
    before = source.read_bytes()
    out = root / "effective.py"
    assert (
        main(["patch", str(source), "--resume", "never", "--set", "train_cfg.max_iters=7", "--out", str(out)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "+train_cfg.type = 'MapsageTrainLoop'" in printed
    assert f"+train_dataloader.dataset.data_root = '{root / 'input' / 'scenes'}'" in printed
    assert source.read_bytes() == before
    assert "max_iters=7" in out.read_text()
    assert list((root / "working").iterdir()) == []


def test_bundle_says_how_to_upload_what_it_made_and_what_is_still_to_fill_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, object] = {}

    def pack(out: Path, **options: object) -> BundleReport:
        asked.update(options)
        return BundleReport(
            folder=out,
            commit="0123456789abcdef",
            wheels=("a.whl",),
            left_to_image={"numpy": "2.0.2"},
            num_files=3,
            size_bytes=1000,
        )

    monkeypatch.setattr("mapsage_kaggle.setup.bundle.bundle", pack)
    assert main(["bundle", "--out", str(tmp_path), "--slug", "my-own-kit", "--python-version", "3.13"]) == 0
    told = capsys.readouterr().out
    assert (asked["slug"], asked["python"]) == ("my-own-kit", "3.13")
    assert "numpy==2.0.2\n" in told
    assert "Put your user name in place of INSERT_OWNER_HERE" in told
    assert f"kaggle datasets create -p {tmp_path} --dir-mode zip" in told
    main(["bundle", "--out", str(tmp_path), "--owner", "me"])
    assert asked["owner"] == "me"
    assert "INSERT_OWNER_HERE" not in capsys.readouterr().out


def asked_of_train(*arguments: str) -> Options:
    return options_from(Path("small.py"), vars(build_parser().parse_args(["train", "small.py", *arguments])))


def test_the_micro_batch_to_begin_with_is_an_option_of_train() -> None:
    for given, size in (([], None), (["--micro-batch", "2"], 2)):
        assert asked_of_train(*given).micro_batch == size


@pytest.mark.parametrize(("given", "policy"), [([], "adapt"), (["--on-memory", "fail"], "fail")])
def test_what_to_do_where_memory_runs_out_is_an_option_of_train(given: list[str], policy: str) -> None:
    assert asked_of_train(*given).on_memory == policy
