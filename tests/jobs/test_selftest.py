"""What the self-test decides of figures, and what it says of checks that are cut short."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.machines import GOOD, PATHS, T4

from mapsage_kaggle import schema
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.selftest import finding_text, selftest_text
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.jobs import selftest as job
from mapsage_kaggle.jobs.selftest import (
    SelfTest,
    kaggle_finding,
    machine_finding,
    mount_of,
    selftest,
    side_by_side,
)
from mapsage_kaggle.jobs.selftest_checks import (
    Check,
    Finding,
    checks_for,
    judge_exact,
    judge_killed,
    judge_memory,
    judge_split,
    steps_of,
)
from mapsage_kaggle.machine import Machine
from mapsage_kaggle.records import Exactness, Learned, SessionRecord

CPU = replace(GOOD, on_kaggle=False, gpus=(), num_cpus=2, inputs=())
SAME: dict[str, Any] = {
    "iterations": [12, 12], "num_values": 900, "differences": [], "apart": 0.0, "loss_scale": 128.0,
}  # fmt: skip
OTHER = {**SAME, "differences": ["state_dict.w"], "apart": 1e-5}
BITWISE = Exactness(bitwise=True, grade="bitwise")
FAST = Exactness(bitwise=False, grade="rounding", reasons=("GPU kernels may add in another order",))


# -- deciding


@pytest.mark.parametrize("must", [True, False])
def test_equal_weights_hold(must: bool) -> None:
    assert judge_exact("exact", SAME, BITWISE, must=must).state == "holds"


@pytest.mark.parametrize(
    ("found", "exactness", "must"),
    [
        (OTHER, BITWISE, True),
        (OTHER, BITWISE, False),  # the record claims more than is so
        (OTHER, FAST, True),
        ({**OTHER, "apart": 0.5}, FAST, False),
        ({**OTHER, "apart": float("nan")}, FAST, False),
        (SAME, FAST, True),  # equal by luck: the record has to say it
        ({**SAME, "iterations": [12, 7]}, BITWISE, True),
        ({**SAME, "num_values": 0}, BITWISE, True),
    ],
)
def test_a_cut_that_is_not_what_is_promised_does_not_hold(
    found: dict[str, Any], exactness: Exactness, must: bool
) -> None:
    assert judge_exact("exact", found, exactness, must=must).state == "does not hold"


def test_without_deterministic_a_difference_that_the_record_foresees_holds() -> None:
    finding = judge_exact("exact", OTHER, FAST, must=False)
    assert finding.state == "holds"
    assert "1.0e-05" in finding.message
    assert finding.figures["differing"] == 1


@pytest.mark.parametrize(
    ("found", "resumed_at", "state"),
    [
        (SAME, [5], "holds"),
        (OTHER, [5], "does not hold"),
        (SAME, [], "does not hold"),  # it was not killed, or began anew
        (SAME, [0], "does not hold"),
        ({**SAME, "loss_scale": None}, [5], "does not hold"),
    ],
)
def test_killed_holds_only_where_it_went_on_with_its_scaler(
    found: dict[str, Any], resumed_at: list[int], state: str
) -> None:
    assert judge_killed(found, BITWISE, resumed_at, "float16").state == state


MEMORY = {"micro_batch": 1, "with_cp": True, "validation_rung": 2}


@pytest.mark.parametrize(
    ("found", "learned", "kinds", "state"),
    [
        (OTHER, MEMORY, ["memory"] * 5, "holds"),
        ({**OTHER, "apart": 1e-3}, MEMORY, ["memory"] * 5, "does not hold"),
        (OTHER, {**MEMORY, "with_cp": None}, ["memory"] * 4, "does not hold"),
        (OTHER, {**MEMORY, "validation_rung": 1}, ["memory"] * 4, "does not hold"),
        (OTHER, MEMORY, ["memory"] * 4 + ["crashed"], "does not hold"),
        (OTHER, {}, [], "does not hold"),
    ],
)
def test_memory_holds_only_at_the_last_rung_and_with_the_same_weights(
    found: dict[str, Any], learned: dict[str, Any], kinds: list[str], state: str
) -> None:
    record = SessionRecord(run_id="r", fingerprint="f", learned=Learned(**learned))
    assert judge_memory(found, record, kinds, cuda=False).state == state


@pytest.mark.parametrize(("apart", "cuda", "state"), [(5e-4, True, "holds"), (5e-4, False, "does not hold")])
def test_two_ranks_are_held_to_their_device_s_rounding(apart: float, cuda: bool, state: str) -> None:
    assert judge_split("ranks", {**OTHER, "apart": apart}, FAST, "Two ranks", cuda=cuda).state == state


def test_a_step_is_the_median_and_its_share_leaves_out_what_lies_between() -> None:
    lines = [
        [at, what, at * 1.0 + (0.0 if what == "begin" else 0.25), 3e6]
        for at in range(9)
        for what in ("begin", "end")
    ]
    lines[3][2] += 100.0  # the first iterations do not count
    found = steps_of(lines)
    assert found["step_ms"] == pytest.approx(250.0)
    assert found["share"] == pytest.approx(4 * 0.25 / 3.25)
    assert found["peak_mb"] == 3.0


# -- which


def reasons(gpus: tuple[Any, ...]) -> dict[str, str]:
    return {name: check.why_not for check in checks_for(replace(GOOD, gpus=gpus)) for name in check.names}


def test_a_precision_that_the_device_does_not_have_is_said_to_be_unmeasured() -> None:
    cpu, t4 = reasons(()), reasons((T4,))
    ampere = reasons((replace(T4, name="NVIDIA A100", capability=(8, 0)),))
    assert set(cpu) == set(t4) == set(ampere)
    assert {name for name, why in cpu.items() if why} == {name for name in cpu if "float16" in name}
    assert {name for name, why in t4.items() if why} == {name for name in t4 if "bfloat16" in name}
    assert not any(ampere.values())


def test_a_machine_comes_back_from_json_as_it_was() -> None:
    document = json.loads(json.dumps(dataclasses.asdict(GOOD), default=str))
    assert schema.built(Machine, document) == GOOD


# -- making


CHECK = """
import json, sys, time
def tell(name, state):
    print(json.dumps(dict(name=name, state=state, message="Seen.", figures={})), flush=True)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SelfTest]:
    """Return what runs the self-test with checks of one's own, each a name and what its child does."""

    def run(*scripts: tuple[str, str, float], **options: Any) -> SelfTest:
        checks = tuple(Check(names=tuple(name.split("+")), run=iter, part=part) for name, _, part in scripts)
        codes = {check.names[0]: CHECK + code for check, (_, code, _) in zip(checks, scripts, strict=True)}

        def command(module: str, file: str) -> list[str]:
            return [sys.executable, "-c", codes[json.loads(Path(file).read_text())["check"]]]

        monkeypatch.setattr(job, "checks_for", lambda machine: checks)
        monkeypatch.setattr(job, "module_command", command)
        return selftest(out=tmp_path / "selftest.json", **options)

    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path))
    (tmp_path / "working").mkdir()
    monkeypatch.setattr(job, "survey", lambda *arguments, **options: CPU)
    monkeypatch.setattr(job, "versions_of", lambda machine: {})
    return run


def states(test: SelfTest) -> dict[str, str]:
    return {
        name: finding.state for name, finding in test.findings.items() if name not in ("machine", "kaggle")
    }


def test_what_was_found_is_in_the_file_before_the_next_is_begun(
    make: Callable[..., SelfTest], tmp_path: Path
) -> None:
    seen: list[dict[str, str]] = []

    def look(finding: Finding) -> None:
        document = json.loads((tmp_path / "selftest.json").read_text())
        assert document["state"] == "running"
        seen.append({item["name"]: item["state"] for item in document["findings"]})

    test = make(("a+b", "tell('a', 'holds'); time.sleep(1); tell('b', 'holds')", 1.0), on_finding=look)
    assert [item.get("a") for item in seen] == [None, None, "holds", "holds"]
    assert seen[2]["b"] == "not measured"
    assert (test.exit_code, states(test)) == (0, {"a": "holds", "b": "holds"})
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_check_that_takes_too_long_is_ended_and_not_measured(make: Callable[..., SelfTest]) -> None:
    test = make(("a+b", "tell('a', 'holds'); time.sleep(600)", 0.05), limit_s=40.0)
    assert states(test) == {"a": "holds", "b": "not measured"}
    assert test.findings["b"].message == "It took longer than 2s."
    assert test.exit_code == 0


def test_a_check_that_fails_itself_breaks_no_promise(make: Callable[..., SelfTest]) -> None:
    test = make(("a", "raise OSError('no such thing')", 1.0), ("b", "tell('b', 'holds')", 1.0))
    assert states(test) == {"a": "not measured", "b": "holds"}
    assert test.findings["a"].message == "The check itself failed: OSError: no such thing"
    assert test.exit_code == 0


def test_one_promise_that_does_not_hold_is_exit_code_5(make: Callable[..., SelfTest], tmp_path: Path) -> None:
    test = make(("a", "tell('a', 'does not hold')", 1.0), ("b", "tell('b', 'holds')", 1.0))
    assert test.exit_code == 5
    assert json.loads((tmp_path / "selftest.json").read_text())["exit_code"] == 5
    assert "✗ a: does not hold" in finding_text(test.findings["a"], Words())
    assert selftest_text(test, Words()).startswith("1 hold, 1 do not, 1 are not measured")


def test_where_no_promise_was_measured_it_is_exit_code_4(make: Callable[..., SelfTest]) -> None:
    test = make(("a", "tell('a', 'holds')", 1.0), limit_s=1.0)
    assert test.exit_code == 4
    assert test.findings["a"].message == "No time was left of 1s."


def test_ctrl_c_ends_the_children_and_keeps_what_was_found(
    make: Callable[..., SelfTest], tmp_path: Path
) -> None:
    def interrupt(finding: Finding) -> None:
        if finding.name == "a":
            signal.raise_signal(signal.SIGINT)

    code = "tell('a', 'holds'); time.sleep(600)"
    test = make(("a+b", code, 1.0), on_finding=interrupt)
    assert (test.state, test.exit_code) == ("interrupted", 130)
    document = json.loads((tmp_path / "selftest.json").read_text())
    assert [item["state"] for item in document["findings"][2:]] == ["holds", "not measured"]
    assert list((tmp_path / "temp").iterdir()) == []


def test_only_some_checks_may_be_asked_for_by_name(make: Callable[..., SelfTest]) -> None:
    scripts = ("a", "tell('a', 'holds')", 1.0), ("b", "tell('b', 'does not hold')", 1.0)
    assert states(make(*scripts, only=["a"])) == {"a": "holds"}
    with pytest.raises(UsageError, match=r"There is no check 'c'. Choose of a, b"):
        make(*scripts, only=["c"])


@pytest.mark.parametrize(
    ("num_cpus", "load", "num"), [(1, 0.0, 1), (2, 0.2, 2), (2, 6.0, 1), (4, 1.0, 3), (16, 0.0, 3)]
)
def test_a_busy_machine_makes_one_check_at_a_time(num_cpus: int, load: float, num: int) -> None:
    assert side_by_side(num_cpus, load) == num


# -- facts


def test_what_only_kaggle_tells_is_unmeasured_elsewhere_and_read_there(tmp_path: Path) -> None:
    assert kaggle_finding(CPU, PATHS, {}).state == "not measured"
    mounted = replace(GOOD, inputs=(tmp_path,))
    finding = kaggle_finding(mounted, PATHS, {"KAGGLE_CONTAINER_NAME": "kaggle_x-271828182-y"})
    assert (finding.state, finding.figures["session"]) == ("measured", 271828182)
    assert "TOKEN" not in json.dumps(finding.to_json())
    assert finding.figures["inputs"][0]["stat_ms"] >= 0


def test_a_folder_is_on_the_innermost_mount_that_holds_it(tmp_path: Path) -> None:
    inner = tmp_path / "in put"
    inner.mkdir()
    mounts = tmp_path / "mounts"
    place = str(inner).replace(" ", "\\040")
    mounts.write_text(f"o / overlay rw 0 0\nx {place} fuse.gcsfuse ro,nosuid 0 0\n")
    assert mount_of(inner, mounts)["kind"] == "fuse.gcsfuse"
    assert mount_of(inner, mounts)["read_only"] is True
    assert mount_of(tmp_path, mounts)["read_only"] is False


def test_every_sentence_of_a_finding_has_its_chinese() -> None:
    record = SessionRecord(run_id="r", fingerprint="f", learned=Learned(**MEMORY))
    findings = [
        machine_finding(GOOD),
        kaggle_finding(GOOD, PATHS, {}),
        kaggle_finding(CPU, PATHS, {}),
        judge_exact("a", SAME, BITWISE, must=True),
        judge_exact("a", OTHER, BITWISE, must=True),
        judge_exact("a", OTHER, FAST, must=False),
        judge_killed(SAME, BITWISE, [5], "float16"),
        judge_killed(SAME, BITWISE, [], "float16"),
        judge_memory(SAME, record, ["memory"], cuda=False),
        judge_memory(SAME, record, [], cuda=False),
        judge_split("a", SAME, BITWISE, "Two GPUs", cuda=True),
    ]
    for written in findings:
        finding = Finding.from_json(json.loads(json.dumps(written.to_json())))
        assert finding.message == written.message
        assert Words("zh").translate(finding.message) != finding.message, finding.message
