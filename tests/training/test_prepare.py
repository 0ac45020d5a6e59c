"""What a session learns of its machine and of its run, and what the next one makes of that."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.machines import GOOD, T4
from support.standin import StandIn

from mapsage_kaggle.checkpoints.choose import Choice
from mapsage_kaggle.checkpoints.inspect import Inspection
from mapsage_kaggle.checkpoints.scan import FoundCheckpoint
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.config import requirements
from mapsage_kaggle.config.patch import apply_patch
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.config.split import ModelTraits
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.errors import EXIT_TRAINING, ConfigError, MachineError, TrainingError
from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.machine import Gpu, Machine, versions_of
from mapsage_kaggle.paths import KagglePaths, WorkDir
from mapsage_kaggle.records import CheckpointRef, Exactness, Learned, SessionRecord
from mapsage_kaggle.training import session
from mapsage_kaggle.training.exactness import exactness_of
from mapsage_kaggle.training.fallback import Outcome
from mapsage_kaggle.training.handle import train
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.prepare import Discovery, Prepared, prepare
from mapsage_kaggle.training.session import SessionRun
from mapsage_kaggle.training.shapes import BuiltModel, LazyShapes
from mapsage_kaggle.training.supervisor import Launch, Supervisor

CPU = replace(GOOD, gpus=(), num_cpus=2, ram_bytes=16 * 2**30)
TOO_FEW = "ValueError: Expected more than 1 value per channel when training, got input size [1, 8, 1, 1]"


class Shapes(LazyShapes):
    """Builds no model: it says of one that it can recompute its blocks."""

    def look(self) -> BuiltModel:
        return BuiltModel(shapes={}, classes=None, traits=ModelTraits(can_recompute=True))


class Scripted(Supervisor):
    """Starts no child: it gives the outcomes that it was told, and notes how each was launched."""

    def __init__(self, prepared: Prepared, outcomes: Sequence[Outcome]) -> None:
        super().__init__(prepared.work_dir, prepared.clock)
        self._outcomes = list(outcomes)
        self.seen: list[SessionRecord] = []
        self.specs: list[Any] = []
        self.while_running: Callable[[], None] = lambda: None

    def run(self, launch: Launch) -> Outcome:
        from mapsage_kaggle.spec import ChildSpec

        self.seen.append(SessionRecord.read(launch.work_dir / "session.json"))
        self.specs.append(ChildSpec.read(launch.spec))
        self.while_running()
        return self._outcomes.pop(0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Return a stand-in with generated scenes, whose config has a batch of 4 and ends at 24."""
    return StandIn.with_scenes(tmp_path_factory.mktemp("scenes") / "kaggle", train=4, val=1, size=64)


Begin = Callable[..., Prepared]


@pytest.fixture
def begin(scenes: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Return what prepares a session on a machine, after one that learned something."""
    # Formatting the config takes seconds, and no child is there to read it.
    monkeypatch.setattr(SessionRun, "_write_config", lambda self: "0" * 64)
    monkeypatch.setattr(session, "_wait", lambda seconds, supervisor: None, raising=False)

    def prepared(
        learned: Mapping[str, Any] | None = None,
        *,
        machine: Machine = CPU,
        extra: str = "",
        inspected: Mapping[str, Any] | None = None,
        recorded: Mapping[str, Any] | None = None,
        to_train: bool = False,
        **options: Any,
    ) -> Prepared:
        config = scenes.config(extra=extra)
        asked = Options(config=config, threads=1, work_dir=tmp_path / "work", **options)
        cfg = read_config(config)
        choice = Choice(action="fresh")
        if learned is not None or inspected or recorded:
            path = tmp_path / "before" / "iter_10.pth"
            path.parent.mkdir(exist_ok=True)
            choice = Choice(
                action="resume",
                checkpoint=FoundCheckpoint(
                    path=path, kind="iter", iteration=10, size_bytes=1, source="before", target=path
                ),
                inspection=Inspection(
                    path=path,
                    verdict="resumable",
                    **({"iteration": 10, "run_id": "r"} | dict(inspected or {})),
                ),
                record=SessionRecord(
                    run_id="r",
                    fingerprint="f",
                    **({"max_iters": 24, "learned": Learned.from_json(learned or {})} | dict(recorded or {})),
                ),
            )
        paths = KagglePaths.below(scenes.root)
        discovery = Discovery(
            options=asked,
            paths=replace(paths, temp=tmp_path / "temp"),
            cfg=cfg,
            choice=choice,
            work_dir=tmp_path / "work",
            shapes=Shapes(cfg, asked.config, tmp_path / "temp"),
        )
        clock = SessionClock(started_s=0.0, limit_s=43_200.0, reserve_s=600.0, now=lambda: 60.0)
        here = replace(machine, inputs=())
        return prepare(discovery, machine=here, clock=clock, to_train=to_train)

    return prepared


def run(prepared: Prepared, *outcomes: Outcome) -> tuple[SessionRun, Scripted]:
    supervisor = Scripted(prepared, outcomes)
    session = SessionRun(prepared, supervisor)
    session.begin()
    session.run_children()
    return session, supervisor


def out_of_memory(*, trained: int = 0) -> Outcome:
    return Outcome(kind="memory", message="Full.", iteration=10 + trained, trained=trained)


DONE = Outcome(kind="done", reason="deadline", iteration=20, trained=10)


def rung(learned: Learned) -> tuple[int | None, bool]:
    return learned.micro_batch, bool(learned.with_cp)


# --- memory ----------------------------------------------------------------------------------------------


def test_a_smaller_micro_batch_is_learned_once_an_iteration_is_done_with_it(begin: Begin) -> None:
    session, supervisor = run(begin(), out_of_memory(trained=3), out_of_memory(), DONE)
    assert [rung(record.learned) for record in supervisor.seen] == [(None, False)] * 3
    assert [rung(spec.rung) for spec in supervisor.specs] == [(None, False), (2, False), (1, False)]
    assert rung(session.learning.learned()) == (1, False)


def test_one_that_was_only_tried_leaves_what_was_learned_before(begin: Begin) -> None:
    refused = Outcome(kind="refused", message="Something else.")
    session, supervisor = run(begin({"micro_batch": 2}), out_of_memory(), refused)
    assert supervisor.specs[-1].rung.micro_batch == 1
    assert rung(session.learning.learned()) == (2, False)


def test_where_batch_norm_refuses_one_image_blocks_are_recomputed_with_two(begin: Begin) -> None:
    refused = Outcome(kind="refused", message=TOO_FEW)
    session, supervisor = run(begin(), out_of_memory(), out_of_memory(), refused, DONE)
    assert rung(supervisor.specs[-1].rung) == (2, True)
    assert rung(session.learning.learned()) == (2, True)
    assert session.prepared.patch.micro_batch == 2
    assert session.prepared.facts.with_cp


def test_a_record_with_a_micro_batch_that_was_never_trained_on_is_no_dead_end(begin: Begin) -> None:
    refused = Outcome(kind="refused", message=TOO_FEW)
    session, _ = run(begin({"micro_batch": 1}), refused, DONE)
    assert rung(session.learning.learned()) == (2, True)


def test_the_micro_batch_that_is_asked_for_goes_before_what_was_learned(begin: Begin) -> None:
    prepared = begin({"micro_batch": 1, "with_cp": True}, micro_batch=2)
    assert (prepared.patch.micro_batch, prepared.facts.with_cp) == (2, False)
    session, supervisor = run(prepared, DONE)
    assert rung(supervisor.seen[0].learned) == (1, True)
    assert rung(session.learning.learned()) == (2, False)


A100 = Gpu(name="NVIDIA A100", memory_bytes=80 * 2**30, capability=(8, 0), supported=True)
ONE_T4 = replace(GOOD, gpus=(T4,))
ON_T4 = {"micro_batch": 1, "with_cp": True, "validation_rung": 2, "pace": {"iteration_s": 2.0}}
ON_T4["machine"] = {"device": "Tesla T4", "memory_bytes": T4.memory_bytes, "ranks": 1}
ON_CPU = {"micro_batch": 1, "machine": {"device": "CPU", "memory_bytes": 16 * 2**30, "ranks": 1}}


@pytest.mark.parametrize(
    ("learned", "machine", "kept"),
    [
        (ON_T4, ONE_T4, True),
        (ON_T4, replace(GOOD, gpus=(replace(T4, memory_bytes=T4.memory_bytes * 104 // 100),)), True),
        (ON_T4, replace(GOOD, gpus=(A100,)), False),
        (ON_T4, replace(GOOD, gpus=(replace(T4, memory_bytes=2 * T4.memory_bytes),)), False),
        (ON_T4, CPU, False),
        (ON_CPU, CPU, True),
        (ON_CPU, replace(CPU, ram_bytes=8 * 2**30), True),
        (ON_CPU, replace(CPU, ram_bytes=32 * 2**30), False),
        (ON_CPU, ONE_T4, False),
        ({"micro_batch": 1}, ONE_T4, True),
    ],
)
def test_what_memory_allowed_holds_on_the_same_device_with_no_more_of_it(
    begin: Begin, learned: Mapping[str, Any], machine: Machine, kept: bool
) -> None:
    prepared = begin(learned, machine=machine)
    facts = prepared.facts
    asked = (facts.micro_batch, facts.with_cp, facts.validation_rung)
    expected = (1, learned.get("with_cp", False), learned.get("validation_rung", 0))
    assert asked == (expected if kept else (None, False, 0))
    said = [line for line in prepared.patch.warnings if "is not taken over to" in line]
    assert len(said) == (0 if kept else 1)
    assert all(Words("zh").translate(line) != line for line in said)


def test_what_was_learned_names_the_machine_that_taught_it(begin: Begin) -> None:
    session, supervisor = run(begin(machine=ONE_T4), out_of_memory(), DONE)
    assert supervisor.seen[-1].learned.machine is None
    assert session.learning.learned().machine == ON_T4["machine"]
    roomier = begin(session.learning.learned().to_json(), machine=replace(GOOD, gpus=(A100,)))
    for trained, known in ((0, (2, False)), (1, (None, False))):
        again, _ = run(roomier, replace(DONE, trained=trained))
        assert rung(again.learning.learned()) == known
        assert (again.learning.learned().machine is not None) is (trained == 0)


# --- another child -----------------------------------------------------------------------------------------


def test_where_all_that_a_session_saved_is_damaged_it_goes_on_from_where_it_began(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = CheckpointRef(file="iter_12.pth", iteration=12, sha256="a" * 64, size_bytes=1)
    found = iter([ref, None])
    monkeypatch.setattr(SessionRun, "_newest_sound", lambda self: next(found))
    prepared = begin({})
    crash = Outcome(kind="crashed", message="Bang.", trained=2, proven=12)
    session, supervisor = run(prepared, crash, crash, DONE)
    began, here = prepared.facts.checkpoint, prepared.work_dir / ref.file
    assert [spec.checkpoint for spec in supervisor.specs] == [began, here, began]
    # The config that the last child reads names it, too.
    assert session.prepared.facts.checkpoint == began
    loaded = {change.key: change.new for change in session.prepared.patch.changes}["load_from"]
    assert loaded == str(began)


# --- GPUs and precision ----------------------------------------------------------------------------------

P100 = Gpu(name="Tesla P100", memory_bytes=2**34, capability=(6, 0), supported=True)
AMP = 'optim_wrapper = dict(type="AmpOptimWrapper", optimizer=dict(type="AdamW", lr=1e-3), '


@pytest.mark.parametrize("supported", [None, False])
def test_a_gpu_that_torch_was_not_seen_to_use_counts_for_nothing(
    begin: Begin, supported: bool | None
) -> None:
    unusable = replace(GOOD, gpus=(replace(T4, supported=supported),))
    prepared = begin(machine=unusable)
    assert not prepared.facts.on_gpu
    assert prepared.patch.precision == "float32"
    with pytest.raises(MachineError, match="this machine has 0 that this torch can use"):
        begin(machine=unusable, gpus=1)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_that_needs_compiled_ops_on_a_gpu_is_refused_there_alone(
    begin: Begin, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "has_compiled_ops", lambda: compiled)
    extra = "model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='FocalLoss')))"
    assert not begin(extra=extra).facts.on_gpu
    with nullcontext() if compiled else pytest.raises(MachineError, match="uses FocalLoss on a GPU"):
        assert begin(extra=extra, machine=GOOD).facts.on_gpu


def test_a_batch_session_that_was_granted_no_gpu_is_refused_before_it_trains(begin: Begin) -> None:
    with pytest.raises(MachineError, match=r"no GPU that torch can use, and 24 iterations.*verified phone"):
        begin(to_train=True)


@pytest.mark.parametrize(
    "asked",
    [
        {"gpus": 0},
        {"machine": replace(CPU, run_type="interactive")},
        {"machine": replace(CPU, on_kaggle=False)},
        {"learned": {}, "inspected": {"iteration": 24}},
    ],
    ids=["asked for", "somebody watches", "elsewhere", "complete"],
)
def test_the_cpu_trains_where_nothing_is_lost_by_it(begin: Begin, asked: dict[str, Any]) -> None:
    assert not begin(to_train=True, **asked).facts.on_gpu


@pytest.mark.parametrize(
    ("gpu", "extra", "options", "expected"),
    [
        (T4, "", {}, ("float16", True)),
        (A100, "", {}, ("bfloat16", True)),
        (P100, "", {}, ("float32", False)),
        (T4, "", {"fast": False}, ("float32", False)),
        (T4, "", {"precision": "float32"}, ("float32", False)),
        (T4, "", {"precision": "float16", "fast": False}, ("float16", False)),
        (A100, "", {"precision": "float16"}, ("float16", False)),
        (A100, AMP + 'dtype="float16")', {}, ("float16", False)),
        (A100, AMP + 'dtype="float16")', {"precision": "bfloat16"}, ("bfloat16", False)),
        (A100, AMP + 'dtype="bfloat16", loss_scale=1.0)', {"precision": "float32"}, ("float32", False)),
    ],
)
def test_precision_is_a_person_s_then_the_config_s_then_the_gpu_s(
    begin: Begin, gpu: Gpu, extra: str, options: dict[str, Any], expected: tuple[str, bool]
) -> None:
    patch = begin(machine=replace(GOOD, gpus=(gpu,)), extra=extra, **options).patch
    assert (patch.precision, patch.chose_half) == expected


def test_bfloat16_that_a_card_only_emulates_is_not_taken(begin: Begin) -> None:
    prepared = begin(machine=ONE_T4, extra=AMP + 'dtype="bfloat16", loss_scale=1.0)')
    wrapper = apply_patch(prepared.discovery.cfg, prepared.patch).optim_wrapper
    assert (wrapper.type, wrapper.dtype, wrapper.loss_scale) == ("AmpOptimWrapper", "float16", "dynamic")
    assert any("only emulates" in line for line in prepared.patch.warnings)
    with pytest.raises(MachineError, match="which Tesla T4 only emulates"):
        begin(machine=replace(GOOD, gpus=(A100, T4)), precision="bfloat16")
    with pytest.raises(MachineError, match="which Tesla T4 only emulates"):
        begin(machine=ONE_T4, precision="bfloat16")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_not_promised_on_a_cpu(begin: Begin, precision: str) -> None:
    with pytest.raises(MachineError, match="and training is on the CPU"):
        begin(precision=precision)
    assert begin(precision="float32").patch.precision == "float32"


def test_where_half_precision_fails_the_session_and_the_run_go_on_in_float32(begin: Begin) -> None:
    failed = Outcome(kind="precision", message="Overflow.", iteration=12, trained=2)
    session, supervisor = run(begin({}, machine=ONE_T4), failed, DONE)
    assert supervisor.seen[0].exactness.precision == "float16"
    last = supervisor.seen[-1]
    assert last.exactness.precision == "float32"
    assert "the precision was float16 before, and is float32 now" in (last.exactness.reasons or ())
    learned = session.learning.learned()
    assert learned.precision == "float32"
    assert learned.ladder == ("Overflow. Going on in float32 from the newest checkpoint.",)
    again = begin(learned.to_json(), machine=ONE_T4)
    assert (again.patch.precision, again.patch.chose_half) == ("float32", False)
    session, _ = run(again, DONE)
    assert session.learning.learned().precision == "float32"
    assert begin(learned.to_json(), machine=ONE_T4, precision="float16").patch.precision == "float16"


def test_half_precision_that_a_person_asked_for_is_not_mended(begin: Begin) -> None:
    failed = Outcome(kind="precision", message="Overflow.", iteration=12, trained=2)
    session, supervisor = run(begin(machine=ONE_T4, precision="float16"), failed)
    assert len(supervisor.specs) == 1
    assert session.learning.learned().precision is None


# --- exactness -------------------------------------------------------------------------------------------

WITH = {"device": "Tesla T4", "precision": "float16", "torch": GOOD.torch, "cudnn": 91002, "threads": 1,
        "with_cp": False}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "before", "word"),
    [
        ("device", "Tesla P100", "the device was Tesla P100 before, and is Tesla T4 now"),
        ("precision", "float32", "the precision was float32 before, and is float16 now"),
        ("torch", "2.9.0+cu126", f"the version of torch was 2.9.0+cu126 before, and is {GOOD.torch} now"),
        ("cudnn", 90100, "the version of cuDNN was 90100 before, and is 91002 now"),
        ("threads", 2, "the number of CPU threads was 2 before, and is 1 now"),
        (
            "with_cp",
            True,
            "the recomputation in the backward pass (with_cp) was True before, and is False now",
        ),
    ],
)
def test_what_a_session_computes_with_otherwise_is_named(
    begin: Begin, name: str, before: Any, word: str
) -> None:
    machine = replace(ONE_T4, cudnn=91002)
    for then, expected in ((WITH, []), ({**WITH, name: before}, [word]), ({}, [])):
        recorded = {"exactness": Exactness(**then), "versions": versions_of(machine)}
        prepared = begin({}, machine=machine, recorded=recorded, deterministic=True)
        session, _ = run(prepared, DONE)
        exactness = session.record.exactness
        assert list(exactness.reasons or ()) == expected
        assert exactness.bitwise is (not expected)
        worse = "neither" if name == "precision" else "rounding"
        assert exactness.grade == (worse if expected else "bitwise")
        assert {key: getattr(exactness, key) for key in WITH} == WITH


HERE = versions_of(GOOD)


@pytest.mark.parametrize(
    ("before", "word"),
    [
        (
            {**HERE, "kit": "a" * 64, "kit_commit": "b" * 40},
            "kit was aaaaaaaaaaaa (commit bbbbbbbbbbbb) before, and is",
        ),
        ({**HERE, "numpy": "1.26.4"}, f"numpy was 1.26.4 before, and is {HERE['numpy']} now"),
        ({**HERE, "imgaug": "0.4.0"}, "imgaug was 0.4.0 before, and is absent now"),
        ({**HERE, "python": "3.11.9"}, "python was 3.11.9 before, and is 3.12.11 now"),
        ({}, "no record says which kit and which versions computed before"),
    ],
)
def test_another_kit_and_other_versions_are_named(begin: Begin, before: dict[str, str], word: str) -> None:
    session, _ = run(begin({}, recorded={"versions": before}), DONE)
    exactness = session.record.exactness
    assert (exactness.bitwise, exactness.grade) == (False, "not shown")
    assert [line for line in exactness.reasons or () if line.startswith(word)] == list(
        exactness.reasons or ()
    )
    assert session.record.versions == HERE


def test_the_same_kit_and_versions_are_no_reason(begin: Begin) -> None:
    session, _ = run(begin({}, recorded={"versions": HERE}), DONE)
    assert (session.record.exactness.bitwise, session.record.exactness.reasons) == (True, ())
    assert {"kit", "python", "torch", "numpy", "onedl-mmengine"} <= set(session.record.versions)


def test_a_first_session_that_is_restarted_lacks_no_record_of_one_before(begin: Begin) -> None:
    prepared = begin()
    restarted = replace(prepared, facts=replace(prepared.facts, action="resume"))
    before = exactness_of(prepared, Exactness(), HERE)
    assert exactness_of(restarted, before, HERE, same_session=True) == before


def test_a_batch_that_was_split_and_is_whole_now_counts_what_a_split_changes(begin: Begin) -> None:
    split = Exactness(ranks=2, micro_batch=1, split=("batch norm takes its statistics from its own part",))
    session, _ = run(begin({}, recorded={"exactness": split, "versions": HERE}), DONE)
    assert session.record.exactness.grade == "neither"
    assert "differ by more than rounding" in " ".join(session.record.exactness.reasons or ())


def test_what_was_so_at_the_session_s_start_stays_so_after_a_restart(begin: Begin) -> None:
    earlier = Exactness(**{**WITH, "torch": "2.9.0"})
    prepared = begin({}, machine=ONE_T4, recorded={"exactness": earlier}, deterministic=True)
    session, _ = run(prepared, out_of_memory(), DONE)
    reasons = " ".join(session.record.exactness.reasons or ())
    assert "the version of torch was 2.9.0 before" in reasons
    assert "each batch was split into" in reasons


# --- shared memory ---------------------------------------------------------------------------------------


def test_shared_memory_that_is_too_small_for_the_data_workers_is_told(begin: Begin) -> None:
    def told(shared_bytes: int | None, workers: int = 2) -> bool:
        machine = replace(CPU, shared_bytes=shared_bytes)
        extra = f'train_dataloader["num_workers"] = {workers}\ntrain_dataloader["persistent_workers"] = False'
        warnings = begin(machine=machine, extra=extra).patch.warnings
        return any("/dev/shm has" in line for line in warnings)

    pixels = 64 * 64  # of a crop; 4 images in each of 2 batches of each worker, 11 bytes a pixel
    needed = 2 * 2 * 4 * pixels * 11
    assert (told(needed), told(needed - 1), told(None), told(0, workers=0)) == (False, True, False, False)


# --- pace ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "crashed"])
def test_a_child_that_is_started_again_plans_by_what_was_measured_last(begin: Begin, kind: Any) -> None:
    prepared = begin({"pace": {"iteration_s": 9.0}})
    supervisor = Scripted(prepared, [Outcome(kind=kind, message="Bang.", trained=5), DONE])
    session = SessionRun(prepared, supervisor)

    def measured() -> None:
        record = SessionRecord.read(session.files.session)
        learned = replace(record.learned, pace={"iteration_s": 2.0})
        record.evolve(learned=learned).write(session.files.session)

    supervisor.while_running = measured
    session.begin()
    session.run_children()
    assert [spec.pace for spec in supervisor.specs] == [{"iteration_s": 9.0}, {"iteration_s": 2.0}]
    assert supervisor.seen[-1].learned.pace == {"iteration_s": 2.0}
    assert session.learning.learned().pace == {"iteration_s": 2.0}


# --- the end of the run ----------------------------------------------------------------------------------


def ends(prepared: Prepared) -> list[int]:
    cfg = apply_patch(prepared.discovery.cfg, prepared.patch)
    return [cfg.train_cfg.max_iters, cfg.param_scheduler[-1].end]


# The dumped config has its base's variables, too, which its own schedule need not follow.
TEXT = {"config_text": "max_iters = 480\ntrain_cfg = dict(max_iters=40, val_interval=10)\n"}


@pytest.mark.parametrize(
    "known",
    [{"recorded": {"max_iters": 40}}, {"recorded": {"max_iters": 40}, "inspected": {"iteration": 30}}],
)
def test_a_run_that_was_lengthened_keeps_its_end_and_its_schedule(begin: Begin, known: Any) -> None:
    prepared = begin(**known)
    assert prepared.patch.max_iters == 40
    assert ends(prepared) == [40, 40]
    (said,) = [line for line in prepared.patch.warnings if "goes to iteration 40" in line]
    assert "--extend-to 24" in said
    assert "EXTEND_TO = 24" in Words("zh").translate(said)
    session, supervisor = run(prepared, DONE)
    assert supervisor.specs[0].extend
    assert session.record.max_iters == 40


def test_a_checkpoint_without_a_record_says_by_its_config_where_its_run_ends(begin: Begin) -> None:
    found = begin(inspected=TEXT)
    assert found.discovery.choice.record is not None
    alone = replace(found.discovery, choice=replace(found.discovery.choice, record=None))
    prepared = prepare(alone, machine=CPU, clock=found.clock, to_train=False)
    assert ends(prepared) == [40, 40]


def test_a_run_that_was_lengthened_ends_earlier_where_that_is_said(begin: Begin) -> None:
    prepared = begin(recorded={"max_iters": 40}, extend_to=24)
    assert ends(prepared) == [24, 24]
    assert not [line for line in prepared.patch.warnings if "goes to iteration" in line]


def test_a_run_that_was_not_lengthened_keeps_the_schedule_that_it_has(begin: Begin) -> None:
    _, supervisor = run(begin(recorded={"max_iters": 24}), DONE)
    assert not supervisor.specs[0].extend


def test_a_longer_end_is_still_to_be_said(begin: Begin) -> None:
    with pytest.raises(ConfigError, match="--extend-to 24"):
        begin(recorded={"max_iters": 20})


# --- what is left at the end -----------------------------------------------------------------------------


def test_a_best_that_lost_a_bit_is_not_announced_at_the_end(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SessionRun, "_write_report", lambda self: None)
    session = SessionRun(begin(), Scripted(begin(), []))
    session.begin()
    name = "best_mIoU_iter_8.pth"
    with session._store() as store:
        write = lambda stream: stream.write(b"weights" * 100)  # noqa: E731
        ref = store.save(name, write, iteration=8, metric="mIoU", value=50.0, make_last=False)
    session.record.evolve(best=ref).write(session.files.session)
    path = session.files.path / name
    path.write_bytes(path.read_bytes().replace(b"weights", b"weighus", 1))
    record = session.end(replace(DONE, trained=0), "")
    assert record.best is None
    warnings = [
        event.data["message"] for event in read_events(session.files.events) if event.event == "warning"
    ]
    assert any(line.startswith(f"{name} is no longer what was proven") for line in warnings)
    assert f"{name} is no longer what was proven" in record.message


def test_a_best_that_lost_a_bit_since_the_run_was_complete_is_told(begin: Begin, tmp_path: Path) -> None:
    name, work = "best_mIoU_iter_8.pth", tmp_path / "work"
    with CheckpointStore(work) as store:
        write = lambda stream: stream.write(b"weights" * 100)  # noqa: E731
        store.save(name, write, iteration=8, metric="mIoU", value=50.0, make_last=False)
    (work / name).write_bytes((work / name).read_bytes().replace(b"weights", b"weighus", 1))
    prepared, seen = begin(inspected={"iteration": 24}, report=False), list[Event]()
    assert prepared.start_iteration == prepared.patch.max_iters
    record = train(prepared, sinks=[SimpleNamespace(handle=seen.append)])
    told = f"{name} is no longer what was proven, and is not the best any more: it has changed."
    assert record.message == f"The run was complete already, at iteration 24. {told}"
    assert [event.event for event in seen if event.data.get("message") == told] == ["ladder"]


def test_temporary_files_of_a_kill_are_not_in_the_finished_output(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SessionRun, "_write_report", lambda self: None)
    session = SessionRun(begin(), Scripted(begin(), []))
    session.begin()
    left = [session.files.path / "session.json.x1.tmp", session.files.history / "earlier.zip.x2.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
        os.utime(path, (time.time() - 5, time.time() - 5))
    session.end(replace(DONE, trained=0), "")
    assert [path for path in left if path.exists()] == []


def save(files: WorkDir, *, iteration: int) -> None:
    """Save a checkpoint and name it in the record, as a child does."""
    with CheckpointStore(files.path) as store:
        ref = store.save(
            f"iter_{iteration}.pth", lambda stream: stream.write(b"all of it"), iteration=iteration
        )
    SessionRecord.read(files.session).evolve(checkpoint=ref, end_iteration=iteration).write(files.session)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TypeError("a fault")])
def test_where_supervising_fails_after_a_new_checkpoint_the_session_hands_it_over(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run(supervisor: Supervisor, launch: Launch) -> Outcome:
        save(WorkDir(launch.work_dir), iteration=12)
        raise error

    monkeypatch.setattr(Supervisor, "run", run)
    record = train(begin(report=False))
    assert (record.stop_reason, record.exit_code, record.end_iteration) == ("failed", EXIT_TRAINING, 12)
    assert record.message == f"Supervising the training failed: {type(error).__name__}: {error}."
    assert type(error).__name__ in WorkDir(begin().work_dir).log.read_text()


def test_where_supervising_fails_before_that_the_session_is_refused(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(supervisor: Supervisor, launch: Launch) -> Outcome:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Supervisor, "run", run)
    with pytest.raises(TrainingError, match="No space left on device"):
        train(begin(report=False))


def test_on_a_full_disk_a_session_with_a_new_checkpoint_ends_well_and_says_so(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    session = SessionRun(begin(report=False), Scripted(begin(), []))
    session.begin()
    save(session.files, iteration=12)
    monkeypatch.setattr(tempfile, "mkstemp", full)
    monkeypatch.setattr(os, "pwrite", full)
    record = session.end(replace(DONE, iteration=12, last_event_s=time.time()), "Stopped.")
    assert (record.end_iteration, record.exit_code) == (12, 0)
    assert record.message == "Stopped. The session's record could not be written: No space left on device."
    assert SessionRecord.read(session.files.session).end_iteration == 12


def test_that_weights_alone_are_taken_is_told_in_the_language_of_the_view(begin: Begin) -> None:
    prepared = begin({})
    choice = replace(prepared.discovery.choice, action="weights-only")
    prepared = replace(prepared, discovery=replace(prepared.discovery, choice=choice))
    session = SessionRun(prepared, Scripted(prepared, []))
    session.begin()
    told = [Words("zh").translate(event.data["message"]) for event in read_events(session.files.events)]
    assert any("iter_10.pth 的权重：优化器和学习率计划重新开始" in line for line in told)


# --- owed validations ------------------------------------------------------------------------------------


def test_a_session_that_saves_nothing_hands_on_what_its_checkpoint_owes(begin: Begin) -> None:
    prepared = begin({}, inspected={"owed_validation": 10})
    session = SessionRun(prepared, Scripted(prepared, []))
    session.begin()
    assert SessionRecord.read(session.files.session).owed_validation == 10
    stopped = Outcome(kind="done", reason="user", iteration=10)
    session._carry_checkpoint = lambda: None  # type: ignore[method-assign]
    assert session.end(stopped, "").owed_validation == 10


def test_a_session_that_starts_anew_owes_nothing(begin: Begin) -> None:
    session, _ = run(begin(), DONE)
    assert SessionRecord.read(session.files.session).owed_validation is None
