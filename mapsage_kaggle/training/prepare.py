"""Find and choose a checkpoint, look at machine and data, and plan the patch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.checkpoints.choose import Choice, choose
from mapsage_kaggle.checkpoints.scan import ScanReport, scan
from mapsage_kaggle.checks import preflight, require
from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.config.fingerprint import fingerprint
from mapsage_kaggle.config.modules import CodePlaces, check_custom_imports, code_places
from mapsage_kaggle.config.monitored import check_monitored
from mapsage_kaggle.config.patch import ConfigPatch, PatchContext, plan_patch
from mapsage_kaggle.config.reading import read_config, written_value
from mapsage_kaggle.config.requirements import check_installed, check_ops_on_gpu
from mapsage_kaggle.config.testing import test_pipeline_of, why_not_single
from mapsage_kaggle.config.tracking import check_tracker
from mapsage_kaggle.config.trainable import check_trainable
from mapsage_kaggle.config.weights import weights_files
from mapsage_kaggle.data.check import check_data_of
from mapsage_kaggle.data.find import count_images, find_data, find_pretrained, find_start
from mapsage_kaggle.errors import CheckpointError, ConfigError, MachineError, MapsageError
from mapsage_kaggle.machine import Gpu, Machine, survey
from mapsage_kaggle.messages import Message, joined_by, text_of
from mapsage_kaggle.paths import KagglePaths, WorkDir, keep_caches_in
from mapsage_kaggle.records import Learned, SessionRecord, new_run_id, read_record
from mapsage_kaggle.training.follow import Follower
from mapsage_kaggle.training.history import archive_session
from mapsage_kaggle.training.options import Options, check_options
from mapsage_kaggle.training.shapes import LazyShapes

if TYPE_CHECKING:
    from mmengine.config import Config

MOUNT_WAIT_S = 60.0
_MORE_MEMORY = 1.1
"""The factor that counts as more; torch and the driver state a card's memory differently."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Discovery:
    """What there is to start from.

    Attributes:
        cfg: The person's config, with overrides.
        code: Where its own modules are imported from.
        shapes: The config's model, built on demand.
    """

    options: Options
    paths: KagglePaths
    cfg: Config
    code: CodePlaces = field(default_factory=CodePlaces)
    choice: Choice
    work_dir: Path
    shapes: LazyShapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A session that is ready to train.

    Attributes:
        facts: What the patch was planned from.
        threads: CPU threads per rank.
    """

    discovery: Discovery
    machine: Machine
    clock: SessionClock
    facts: PatchContext
    patch: ConfigPatch
    threads: int

    @property
    def options(self) -> Options:
        return self.discovery.options

    @property
    def work_dir(self) -> Path:
        return self.discovery.work_dir

    @property
    def start_iteration(self) -> int:
        """Iterations done when the session begins."""
        resumed = self.discovery.choice.resumed
        return (resumed.iteration or 0) if resumed is not None else 0


def discover(
    options: Options,
    *,
    paths: KagglePaths | None = None,
    on_wait: Callable[[str], None] | None = None,
    record_refusals: bool = True,
) -> Discovery:
    """Find the checkpoints in the inputs and the work dir, and choose what to start from.

    ``on_wait`` is called with what is being waited for. A refusal leaves a record in the work dir; without
    ``record_refusals`` nothing is written.

    Raises:
        UsageError: An option is out of range, or two contradict each other.
        ConfigError: The config does not parse, or the kit cannot train it.
        MachineError: A package that the config needs is not installed.
        CheckpointError: No acceptable checkpoint where one is needed.
    """
    check_options(options)
    paths = paths or KagglePaths.from_environment()
    keep_caches_in(paths.temp)
    code = code_places(options.config, paths.input, options.code)
    cfg = read_config(options.config, options.overrides)
    work_dir = paths.work_dir(options.config, options.work_dir)
    if options.node_rank > 0:
        # Also where the machines share the folder.
        work_dir = work_dir.with_name(f"{work_dir.name}-node{options.node_rank}")
    with _refusals(work_dir, cfg, options, record=record_refusals):
        max_iters = check_trainable(cfg, options.config, lambda: count_images(cfg, paths.input))
        check_monitored(cfg, options.config)
        check_installed(cfg, options.config, (*code.first, *code.last))
        check_tracker(options.track)
        check_custom_imports(cfg, code, paths.input)
        shapes = LazyShapes(cfg, options.config, paths.temp, code, options.pass_env)
        choice = _find_and_choose(options, paths, cfg, work_dir, max_iters, shapes, on_wait)
    return Discovery(
        options=options,
        paths=paths,
        cfg=cfg,
        code=code,
        choice=choice,
        work_dir=work_dir,
        shapes=shapes,
    )


def _find_and_choose(
    options: Options,
    paths: KagglePaths,
    cfg: Config,
    work_dir: Path,
    max_iters: int,
    shapes: LazyShapes,
    on_wait: Callable[[str], None] | None,
) -> Choice:
    if options.node_rank > 0:
        line = "Machine 0 chooses; this one starts from what it sends."
        return Choice(action="fresh", explanations=(line,), fresh="fresh_sent")
    waits = options.resume == "require" or bool(cfg.get("resume"))
    attached, here = ScanReport(root=paths.input), ScanReport(root=work_dir)
    if paths.input.is_dir():
        attached = scan(paths.input, wait_s=MOUNT_WAIT_S if waits else 0.0, on_wait=on_wait)
    if work_dir.is_dir():
        here = scan(work_dir)
    previous = read_record(WorkDir(work_dir).session)
    start = find_start(cfg, paths.input)
    missing = ""
    if cfg.get("load_from") and start is None:
        file = weights_files(str(cfg["load_from"]))[0]
        missing = Message(
            "The config's load_from is an address, {address}, and no {file} is attached.",
            cfg["load_from"],
            file,
        )
    try:
        choice = choose(
            inspect=shapes.inspect,
            resume=options.resume,
            work_dir=here.files,
            load_from=start,
            inputs=attached.files,
            rejected=(*attached.rejected, *here.rejected),
            fingerprint=fingerprint(cfg),
            config_asks_resume=bool(cfg.get("resume")),
            allow_weights_only=options.allow_weights_only,
            weights_only=options.weights_only,
            expect_iteration=options.expect_iteration,
            max_iters=max_iters,
            run=options.run,
            work_dir_run=previous.run_id if previous is not None else None,
        )
    except CheckpointError as error:
        if missing:
            raise CheckpointError(joined_by(" ", (missing, error.problem)), error.remedy) from error
        if attached.files or here.files:
            raise
        # What was found is listed file by file; where nothing was, it matters where that was.
        raise CheckpointError(
            Message("{problem} Searched: {inputs}, {work_dir}.", error.problem, paths.input, work_dir),
            error.remedy,
        ) from error
    if not missing or choice.action != "fresh":
        return choice
    if options.resume != "never":
        raise CheckpointError(
            missing,
            Message(
                "Nothing is downloaded: attach a data set that holds {file}, under any folder; or "
                "start without it: --resume never",
                file,
            ),
        )
    told = joined_by(" ", (missing, Message("Training starts without it.")))
    return replace(choice, steps_down=(*choice.steps_down, told))


def prepare(
    discovery: Discovery,
    *,
    machine: Machine | None = None,
    clock: SessionClock | None = None,
    to_train: bool = True,
) -> Prepared:
    """Survey the machine and the data, and plan the patch for what was found.

    A ``machine`` that has been surveyed, and a ``clock`` that is running already, are taken as they are.
    Where training follows (``to_train``), the machine must be able to, and a refusal leaves a record in the
    work dir; else this plans only, and writes nothing.

    Raises:
        MachineError: The machine cannot run it: no disk space, packages missing, fewer GPUs than asked for.
        ConfigError: The config cannot run here.
        DataError: The data set is missing or inconsistent.
    """
    options = discovery.options
    with _refusals(discovery.work_dir, discovery.cfg, options, record=to_train):
        machine = machine or survey(discovery.paths, work_dir=discovery.work_dir, ask=False)
        if to_train:
            require(preflight(discovery.paths, machine))
        prepared = _prepare(discovery, machine, clock)
        if to_train:
            _check_worth_it(prepared)
        if to_train and prepared.patch.is_split:
            discovery.shapes.look()  # the record says what the split changes
        return prepared


def _prepare(discovery: Discovery, machine: Machine, clock: SessionClock | None) -> Prepared:
    options, paths = discovery.options, discovery.paths
    clock = clock or SessionClock.for_this_session(
        limit_s=options.session_limit_s, reserve_s=options.reserve_s
    )
    usable = _usable(machine)
    num_gpus = len(usable) if options.gpus == "auto" else options.gpus
    if num_gpus > len(usable):
        raise MachineError(
            Message(
                "--gpus {count} was asked for, but this machine has {usable} that this torch can use.",
                num_gpus,
                len(usable),
            ),
            "Use --gpus auto, or choose another accelerator in the notebook's settings.",
        )
    gpus = usable[:num_gpus]
    _check_precision(options.precision, gpus)
    if num_gpus:
        check_ops_on_gpu(discovery.cfg, options.config)
    ranks_here = num_gpus or max(1, options.cpu_ranks)
    world_size = ranks_here * options.nnodes
    choice = discovery.choice
    learned = choice.record.learned if choice.record is not None else Learned()
    threads = options.threads or learned.threads or max(1, machine.num_cpus // ranks_here)
    roots = find_data(discovery.cfg, paths.input)
    warnings = check_data_of(discovery.cfg, roots, on_bad_image=options.on_bad_image)
    extend_to, kept = _end_of_run(discovery)
    warnings = (*kept, *warnings, *_not_afterwards(discovery.cfg))
    here = memory_of(machine, ranks_here, on_gpu=num_gpus > 0)
    # Records of earlier versions do not name the device: what they learned is kept.
    if learned.machine is not None and _is_roomier(here, learned.machine):
        line = Message(
            "What memory allowed on {before} is not taken over to {now}: each rank takes its "
            "whole share of the batch again.",
            memory_text(learned.machine),
            memory_text(here),
        )
        warnings = (line, *warnings)
        learned = Learned()
    facts = PatchContext(
        work_dir=discovery.work_dir,
        world_size=world_size,
        ranks_here=ranks_here,
        on_gpu=num_gpus > 0,
        num_cpus=machine.num_cpus,
        data_roots=roots,
        pretrained=find_pretrained(discovery.cfg, paths.input),
        checkpoint=choice.target,
        action=choice.action,
        checkpoint_seed=choice.inspection.seed if choice.inspection else None,
        micro_batch=options.micro_batch or learned.micro_batch,
        on_bad_image=options.on_bad_image,
        extend_to=extend_to,
        deterministic=options.deterministic,
        with_cp=options.micro_batch is None and bool(learned.with_cp),
        validation_rung=learned.validation_rung or 0,
        fast=options.fast,
        cache_dir=paths.temp / "decoded",
        precision=_precision(options, gpus, learned),
        precision_is_asked=options.precision != "auto",
        emulates_bfloat16=bool(_without_bfloat16(gpus)),
        shared_bytes=machine.shared_bytes,
    )
    patch = plan_patch(discovery.cfg, options.config, facts)
    patch = replace(patch, warnings=(*patch.warnings, *discovery.code.messages, *warnings))
    return Prepared(
        discovery=discovery, machine=machine, clock=clock, facts=facts, patch=patch, threads=threads
    )


def _not_afterwards(cfg: Config) -> tuple[str, ...]:
    """Return what the kit cannot do with the model once it is trained."""
    pipeline = test_pipeline_of(cfg)
    problem = why_not_single(pipeline) if pipeline else ""
    return (
        (Message("Once trained, the model can be evaluated, and not predict maps: {problem}.", problem),)
        if problem
        else ()
    )


def _check_worth_it(prepared: Prepared) -> None:
    """Refuse a Kaggle batch session on the CPU unless that was asked for.

    Raises:
        MachineError: It has no usable GPU, and there is something left to train.
    """
    machine, left = prepared.machine, prepared.patch.max_iters - prepared.start_iteration
    unwatched = machine.on_kaggle and machine.run_type == "batch"
    if unwatched and not prepared.facts.on_gpu and prepared.discovery.options.gpus == "auto" and left > 0:
        raise MachineError(
            Message(
                "Kaggle gave this session no GPU that torch can use, and {left} iterations are left "
                "to train: on the CPU they would take weeks.",
                left,
            ),
            "Set Accelerator to GPU T4 x2 in the notebook's settings, which needs an account with a "
            "verified phone number; or set --gpus 0 to train on the CPU all the same.",
        )


def device_of(prepared: Prepared) -> str:
    """Return the name of the GPU that a session computes on, or ``CPU``."""
    facts = prepared.facts
    return str(memory_of(prepared.machine, facts.ranks_here, on_gpu=facts.on_gpu)["device"])


def _usable(machine: Machine) -> list[Gpu]:
    """Return the GPUs that this torch is known to support."""
    return [gpu for gpu in machine.gpus if gpu.supported is True]


def memory_of(machine: Machine, ranks_here: int, *, on_gpu: bool) -> dict[str, Any]:
    """Return the ranks, their device and the bytes of memory of each; of unequal GPUs, the smallest."""
    if not on_gpu:
        return {"device": "CPU", "memory_bytes": machine.ram_bytes // ranks_here, "ranks": ranks_here}
    least = min(_usable(machine)[:ranks_here], key=lambda gpu: gpu.memory_bytes)
    return {"device": least.name, "memory_bytes": least.memory_bytes, "ranks": ranks_here}


def _is_roomier(here: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a rank has another device than memory was learned on, or more memory."""
    more = here["memory_bytes"] > _MORE_MEMORY * float(before.get("memory_bytes") or 0)
    return bool(here["device"] != before.get("device") or more)


def memory_text(memory: Mapping[str, Any]) -> str:
    return f"{memory.get('device')} ({(memory.get('memory_bytes') or 0) / 2**30:.0f} GiB)"


def half_precision(gpus: Sequence[Gpu]) -> str:
    """Return the half precision that is faster than float32 on all the GPUs; empty where none is."""
    if min((gpu.capability or (0, 0) for gpu in gpus), default=(0, 0)) < (7, 0):
        return ""  # without tensor cores there is little to gain
    return "float16" if _without_bfloat16(gpus) else "bfloat16"


def _without_bfloat16(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the GPUs that do not compute in bfloat16 natively; older ones emulate it, slowly."""
    return [gpu for gpu in gpus if (gpu.capability or (0, 0)) < (8, 0)]


def _precision(options: Options, gpus: Sequence[Gpu], learned: Learned) -> str:
    """Return the precision asked for, else the one that suits the GPUs; empty leaves it to the config."""
    if options.precision != "auto":
        return options.precision
    if not options.fast or learned.precision == "float32":
        return ""
    return half_precision(gpus)


def _check_precision(asked: str, gpus: Sequence[Gpu]) -> None:
    if asked in ("float16", "bfloat16") and not gpus:
        raise MachineError(
            Message("--precision {asked} was asked for, and training is on the CPU.", asked),
            "Leave it out, or train on a GPU.",
        )
    emulating = _without_bfloat16(gpus)
    if asked == "bfloat16" and emulating:
        raise MachineError(
            Message(
                "--precision bfloat16 was asked for, which {name} only emulates, slowly.",
                emulating[0].name,
            ),
            "Use --precision float16, or leave it out.",
        )


def _end_of_run(discovery: Discovery) -> tuple[int | None, tuple[str, ...]]:
    """Return the iteration that the schedule is laid out for, None for the config's, and warnings.

    A run that was extended keeps its end, without ``--extend-to`` in every session.

    Raises:
        ConfigError: The config ends later than the run in the checkpoint, whose learning rate is 0 there.
    """
    choice, options = discovery.choice, discovery.options
    if choice.action != "resume" or options.extend_to is not None:
        return options.extend_to, ()
    wanted = int(discovery.cfg["train_cfg"]["max_iters"])
    before = choice.record.max_iters if choice.record is not None else None
    if before is None and choice.inspection is not None and choice.inspection.config_text:
        written = written_value(choice.inspection.config_text, "train_cfg.max_iters")
        before = written if isinstance(written, int) else None
    if before and wanted > before:
        raise ConfigError(
            Message(
                "{config} ends at iteration {wanted}, but the run in {path} was to end at {before}, "
                "where its learning rate is 0.",
                options.config,
                wanted,
                choice.checkpoint.path if choice.checkpoint else "?",
                before,
            ),
            Message(
                "To lengthen the run, say so with --extend-to {wanted}: the schedule is then laid out anew.",
                wanted,
            ),
        )
    if before and wanted < before:
        line = Message(
            "The run in the checkpoint goes to iteration {before}, {config} to {wanted}: it goes "
            "on to {end}. To end at {number} all the same, say so with --extend-to {same}.",
            before,
            options.config,
            wanted,
            before,
            wanted,
            wanted,
        )
        return before, (line,)
    return None, ()


@contextmanager
def _refusals(work_dir: Path, cfg: Config, options: Options, *, record: bool) -> Iterator[None]:
    """Record what is refused within, and raise it all the same."""
    try:
        yield
    except MapsageError as error:
        if record:
            _write_refusal(work_dir, cfg, options, error)
        raise


def _write_refusal(work_dir: Path, cfg: Config, options: Options, error: MapsageError) -> None:
    """Write a record that says ``refused``; what an earlier record points to stays in it.

    Nothing is written beside a training that goes on in the work dir: the record is that one's.
    """
    try:
        if Follower(work_dir).goes_on():
            return
        work_dir.mkdir(parents=True, exist_ok=True)
        files = WorkDir(work_dir)
        here = read_record(files.session)
        now = time.time()
        base = here or SessionRecord(
            run_id=new_run_id(),
            fingerprint=fingerprint(cfg),
            max_iters=int((cfg.get("train_cfg") or {}).get("max_iters") or 0),
            started_s=now,
        )
        if here is not None:
            archive_session(work_dir, files.history, here, move_events=False)
        base.evolve(
            stop_reason="refused",
            exit_code=error.exit_code,
            start_iteration=base.end_iteration,
            message=text_of(error),
            previous=here.lineage() if here is not None else (),
            ended_s=now,
        ).write(files.session)
    except OSError:
        return  # the refusal itself is what counts, and it is raised
