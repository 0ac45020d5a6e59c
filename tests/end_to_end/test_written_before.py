"""What the kit wrote before its modules were moved still works: an output, a config and a notebook.

Nothing here knows a module of the kit: commands, the notebook and the files that they leave are all there is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import warm
from support.notebooks import write_kernel

REPOSITORY = Path(__file__).resolve().parents[2]
WRITTEN = Path(__file__).with_name("written_before")
OUTPUT = Path("notebooks", "alice", "mapsage", "work_dirs", "tiny")
OLD = WRITTEN / "input" / OUTPUT
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())
TRAIN = ["--gpus", "0", "--threads", "1", "--session-limit", "10m", "--reserve", "10s", "--save-every", "0"]
ON_CPU = ["--device", "cpu", "--threads", "1"]


@dataclass(frozen=True)
class Kaggle:
    """A stand-in for ``/kaggle`` with the old output, its config and its scenes attached."""

    root: Path
    python: str = sys.executable

    @classmethod
    def below(cls, root: Path, python: str = sys.executable) -> Kaggle:
        for name in ("working", "temp"):
            (root / name).mkdir(parents=True)
        shutil.copytree(WRITTEN / "input", root / "input")
        for path in [*(root / "input").rglob("*"), root / "input"]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        return cls(root, python)

    @property
    def config(self) -> Path:
        return self.root / "input" / "my-code" / "tiny.py"

    @property
    def attached(self) -> Path:
        return self.root / "input" / OUTPUT

    @property
    def work_dir(self) -> Path:
        return self.root / "working" / "work_dirs" / "tiny"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "MAPSAGE_KAGGLE_ROOT": str(self.root), "OMP_NUM_THREADS": "1"}

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the kit under test, and see that it succeeds."""
        done = subprocess.run(
            [self.python, "-m", "mapsage_kaggle", *map(str, arguments)],
            env=self.environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def ask(self, *arguments: str | Path) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(checkpoint: Path) -> dict[str, Any]:
    import torch

    return torch.load(checkpoint, map_location="cpu", weights_only=False)


def losses(checkpoint: Mapping[str, Any]) -> list[float]:
    """Return the loss of every iteration, as mmengine keeps it in its message hub."""
    return checkpoint["message_hub"]["log_scalars"]["train/loss"].data[0].tolist()


def check_third_session(record: Mapping[str, Any]) -> None:
    """See that a record is of the session that took the run from 8 to its end."""
    old = read_json(OLD / "session.json")
    assert (record["stop_reason"], record["exit_code"], record["session_index"]) == ("completed", 0, 3)
    assert (record["start_iteration"], record["end_iteration"], record["max_iters"]) == (8, 12, 12)
    assert (record["run_id"], record["fingerprint"]) == (old["run_id"], old["fingerprint"])
    names = (
        "run_id", "fingerprint", "session_index", "start_iteration", "end_iteration", "max_iters",
        "stop_reason", "exit_code", "config_sha256", "timings_s", "started_s", "ended_s",
    )  # fmt: skip
    before = [*old["previous"], old]
    assert [{name: item[name] for name in names} for item in record["previous"]] == [
        {name: item[name] for name in names} for item in before
    ]
    assert [item["checkpoint"]["sha256"] for item in record["previous"]] == [
        item["checkpoint"]["sha256"] for item in before
    ]


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory: pytest.TempPathFactory) -> Kaggle:
    """Return a stand-in for what trains nothing."""
    return Kaggle.below(tmp_path_factory.mktemp("written_before") / "kaggle")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Kaggle:
    """Return a stand-in in which a third session has gone on from the old output."""
    kaggle = Kaggle.below(tmp_path_factory.mktemp("resumed") / "kaggle")
    kaggle.run("train", kaggle.config, "--resume", "require", "--expect-iteration", "8", *TRAIN)
    return kaggle


# --- judged ----------------------------------------------------------------------------------------------


def test_a_scan_lists_every_checkpoint_of_an_old_output(kaggle: Kaggle) -> None:
    found = kaggle.ask("scan")
    assert [(Path(item["path"]).name, item["kind"], item["iteration"]) for item in found["files"]] == [
        ("best_mIoU_iter_6.pth", "best", 6),
        ("iter_6.pth", "iter", 6),
        ("iter_8.pth", "iter", 8),
        ("last_checkpoint", "last_checkpoint", 8),
    ]
    assert {Path(item["path"]).parent for item in found["files"]} == {kaggle.attached}
    assert found["rejected"] == []


@pytest.mark.parametrize(
    ("name", "verdict", "iteration"),
    [
        ("iter_6.pth", "resumable", 6),
        ("iter_8.pth", "resumable", 8),
        ("best_mIoU_iter_6.pth", "weights-only", 6),
    ],
)
def test_an_old_checkpoint_gets_the_verdict_that_it_had(
    kaggle: Kaggle, name: str, verdict: str, iteration: int
) -> None:
    found = kaggle.ask("verify", kaggle.attached / name)
    assert (found["verdict"], found["iteration"]) == (verdict, iteration)
    assert bool(found["problems"]) == (verdict != "resumable")


# --- gone on with ----------------------------------------------------------------------------------------


@pytest.mark.slow(scope_s=70)
def test_an_attached_old_output_is_gone_on_with_to_the_end(resumed: Kaggle) -> None:
    record = read_json(resumed.work_dir / "session.json")
    check_third_session(record)
    assert record["checkpoint"]["file"] == "iter_12.pth"
    assert (resumed.work_dir / "last_checkpoint").read_text().strip() == "iter_12.pth"


@pytest.mark.slow
def test_records_and_events_of_both_old_sessions_travel_along(resumed: Kaggle) -> None:
    history = contents(resumed.work_dir / "history")
    for name, data in contents(OLD / "history").items():
        assert history[name] == data, name
    assert history["events_002.jsonl"] == (OLD / "events.jsonl").read_bytes()
    assert history["config_002.py"] == (OLD / "config.py").read_bytes()
    second = json.loads(history["session_002.json"])
    assert (second["session_index"], second["end_iteration"]) == (2, 8)


@pytest.mark.slow
def test_the_best_of_the_old_sessions_is_kept_while_no_later_one_is_better(resumed: Kaggle) -> None:
    best = read_json(resumed.work_dir / "session.json")["best"]
    name = "best_mIoU_iter_6.pth"
    assert (best["file"], best["value"]) == (name, 11.52)
    assert (resumed.work_dir / name).read_bytes() == (OLD / name).read_bytes()


@pytest.mark.slow
def test_the_record_says_that_an_earlier_kit_computed_before(resumed: Kaggle) -> None:
    record = read_json(resumed.work_dir / "session.json")
    reasons = record["exactness"]["reasons"]
    assert record["exactness"]["bitwise"] is False
    assert "no record says which kit and which versions computed before" in reasons
    assert "the checkpoint does not say which images it was trained on" in reasons
    assert record["data"]["count"] > 0
    assert len(record["versions"]["kit"]) == 64


@pytest.mark.slow
def test_an_old_output_is_read_and_never_written_to(resumed: Kaggle) -> None:
    assert contents(resumed.root / "input") == contents(WRITTEN / "input")


@pytest.mark.slow
def test_training_goes_on_as_it_did_where_the_old_kit_went_on(resumed: Kaggle) -> None:
    """To rounding, since CPUs of other kinds add in other orders: that moved losses by 2e-6 of themselves.

    Other draws show: the stock attention's dropout moved a loss by 0.002 of itself, samples seeded from
    another number by 0.26.
    """
    import torch

    expected = EXPECTED["resumed"]
    checkpoint = load(resumed.work_dir / "iter_12.pth")
    assert losses(checkpoint)[:8] == losses(load(OLD / "iter_8.pth"))
    assert losses(checkpoint)[8:] == pytest.approx(list(expected["losses"].values()), rel=1e-4)
    # Some of the weights. The gradients of others, such as the bias of the attention's keys, are zero but
    # for rounding, and AdamW takes whole steps along those.
    for name, values in expected["weights"].items():
        found = checkpoint["state_dict"][name].flatten()
        assert torch.allclose(found, torch.tensor(values), rtol=1e-4, atol=1e-6), name
    lines = (resumed.work_dir / "events.jsonl").read_text().splitlines()
    validations = [event for event in map(json.loads, lines) if event["event"] == "validation"]
    assert [event["iteration"] for event in validations] == [9, 12]
    for event in validations:
        for name, percent in expected["validations"][str(event["iteration"])].items():
            # Twelve steps leave many a pixel undecided: by kind of CPU 0.14 % of them went the other way.
            assert event["metrics"][name] == pytest.approx(percent, abs=0.5), event


@pytest.mark.slow
def test_an_old_work_dir_is_gone_on_with_in_place_to_the_same_bits(resumed: Kaggle, tmp_path: Path) -> None:
    import torch

    kaggle = Kaggle.below(tmp_path / "kaggle", warm.python())
    shutil.copytree(OLD, kaggle.work_dir)
    kaggle.root.joinpath("input").chmod(0o755)
    kaggle.root.joinpath("input", "notebooks").rename(tmp_path / "detached")
    kaggle.run("train", kaggle.config, *TRAIN)
    check_third_session(read_json(kaggle.work_dir / "session.json"))
    weights, same = (load(item.work_dir / "iter_12.pth")["state_dict"] for item in (kaggle, resumed))
    assert [name for name in same if not torch.equal(weights[name], same[name])] == []


# --- worked with -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_old_checkpoints_are_averaged_and_evaluated_with_the_scores_they_had(kaggle: Kaggle) -> None:
    averaged = kaggle.root / "working" / "averaged.pth"
    parents = [kaggle.attached / name for name in ("iter_6.pth", "iter_8.pth")]
    # Its config is the one beside the first: the old kit's own, patched for /kaggle.
    told = kaggle.ask("average", *parents, "--out", averaged, "--no-evaluate", *ON_CPU)
    assert [Path(item) for item in told["parents"]] == parents
    for name in ("batch_norms", "batch_norm_images"):
        assert told[name] == EXPECTED["average"][name]

    found = kaggle.ask("evaluate", kaggle.config, parents[1], "--against", averaged, *ON_CPU)
    expected = EXPECTED["evaluation"]
    assert expected.keys() <= found.keys()
    assert expected["against"].keys() <= found["against"].keys()
    assert (found["sha256"], found["iteration"]) == (expected["sha256"], 8)
    # One of 8,192 pixels may fall to another class.
    for new, old in ((found, expected), (found["against"], expected["against"])):
        for name in ("miou", "accuracy", "mean_accuracy", "fwiou"):
            assert new[name] == pytest.approx(old[name], abs=1e-3), name
        assert [item["name"] for item in new["classes"]] == [item["name"] for item in old["classes"]]
        assert [item["iou"] for item in new["classes"]] == pytest.approx(
            [item["iou"] for item in old["classes"]], abs=2e-3
        )


@pytest.mark.slow
def test_the_report_of_an_old_output_tells_of_both_its_sessions(kaggle: Kaggle) -> None:
    out = kaggle.root / "working" / "report"
    told = kaggle.run("report", kaggle.attached, "--out", out).stdout
    rows = [line.split() for line in told.splitlines()]
    sessions = [(*row[:3], row[4]) for row in rows if row and row[0].isdigit()]
    assert sessions == [("1", "0", "4", "5.65"), ("2", "4", "8", "11.52")]
    assert "11.52" in (out / "report.html").read_text()


# --- the notebook ----------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path: Path) -> Mapping[str, str]:
    """Return the environment in which ``python3`` is a kernel of this Python."""
    write_kernel(tmp_path / "jupyter", warm.python())
    return {
        "JUPYTER_PATH": str(tmp_path / "jupyter"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "PYTHONPATH": str(REPOSITORY),
    }


@pytest.mark.slow
def test_an_old_notebook_with_its_old_output_attached_completes_the_run(
    tmp_path: Path, kernel: Mapping[str, str]
) -> None:
    kaggle = Kaggle.below(tmp_path / "kaggle")
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        json.dumps(
            {
                "CONFIG": str(kaggle.config), "RESUME": "require", "EXPECT_ITERATION": 8,
                "SESSION_LIMIT": "10m", "RESERVE": "10s", "GPUS": 0, "EVALUATE": True,
            }
        )
    )  # fmt: skip
    saved = kaggle.root / "working" / "__notebook__.ipynb"
    notebook = WRITTEN / "mapsage_train.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", "-f", parameters, notebook, saved],
        env={**kaggle.environment(), **kernel}, cwd=kaggle.root / "working", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_third_session(read_json(kaggle.work_dir / "session.json"))
    (evaluation,) = (kaggle.work_dir / "evaluation").glob("best_mIoU_iter_6-*.json")
    assert read_json(evaluation)["miou"] == pytest.approx(0.1152, abs=1e-3)
    cells = [cell for cell in read_json(saved)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert cells[-1]["outputs"]
    assert (kaggle.work_dir / "report.html").is_file()
