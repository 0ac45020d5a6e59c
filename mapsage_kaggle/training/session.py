"""A session from beginning to end: find, choose, configure, train, hand over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mapsage_kaggle import configure, dataset
from mapsage_kaggle.checkpoints.choose import Choice, choose
from mapsage_kaggle.checkpoints.inspect import Inspection, inspect
from mapsage_kaggle.checkpoints.scan import ScanReport, scan
from mapsage_kaggle.checkpoints.store import CheckpointStore, SaveFailed, greater_is_better
from mapsage_kaggle.clock import DEFAULT_LIMIT_S, DEFAULT_RESERVE_S, SessionClock, decaying_maximum
from mapsage_kaggle.environment import Machine, preflight, require, survey
from mapsage_kaggle.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_TRAINING,
    CheckpointError,
    ConfigError,
    DataError,
    MachineError,
    MapsageError,
    TrainingError,
    UsageError,
)
from mapsage_kaggle.events import Event, EventLog, ProgressSink, last_word_s, read_events
from mapsage_kaggle.paths import KagglePaths, WorkDir
from mapsage_kaggle.records import CheckpointRef, SessionRecord, complete_timings, new_run_id
from mapsage_kaggle.spec import drop_requests
from mapsage_kaggle.supervise import Ladder, Launch, Outcome, Supervisor, decide_next
from mapsage_kaggle.upload import LAST_LIMIT_S, Uploader, check_handle

if TYPE_CHECKING:
    from mmengine.config import Config

SHAPES_TIMEOUT_S = 180.0
MOUNT_WAIT_S = 60.0
_MAX_CHANGES = 200
_RUNG = ("micro_batch", "with_cp", "machine")
"""What a record has learned of memory in training, and on what, by name."""
_MORE_MEMORY = 1.1
"""By this factor; torch and the driver do not state the same card's memory alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a person may ask of a session. Defaults are right for Kaggle.

    Attributes:
        config: The training config.
        resume: ``auto``, ``require``, ``never``, or the file to resume from.
        allow_weights_only: Whether weights alone may be taken where nothing can be resumed.
        weights_only: Take only the weights of the file that ``resume`` names, even where it could be
            resumed.
        expect_iteration: The iteration that must be resumed from, else nothing is trained.
        extend_to: A new, later end for the run.
        session_limit_s: How long the platform lets the session live.
        reserve_s: What is kept free at its end.
        work_dir: Where to write; by default ``<working>/work_dirs/<config name>``.
        gpus: ``auto`` or a number, on this machine; 0 trains on the CPU.
        cpu_ranks: Workers on this machine where it trains on the CPU.
        threads: CPU threads per rank; by default those of the run's earlier sessions, else the cores.
        deterministic: Whether only deterministic algorithms may run on a GPU.
        fast: Whether the kit may swap in its own, faster parts.
        on_bad_image: ``fail`` or ``skip``.
        on_memory: ``adapt`` goes on with smaller micro-batches, ``fail`` ends where memory runs out.
        micro_batch: Images per forward pass and rank to begin with, whatever earlier sessions have
            learned of memory; None for what they learned, else the whole share of a rank.
        overrides: ``key=value`` with dotted keys.
        save_every_s: Seconds between checkpoints by the clock; 0 for none.
        budget_bytes: What the work dir may hold in checkpoints.
        hang_after_s: How long training may say nothing before it is started again.
        nnodes: Machines that train together, with as many workers each.
        node_rank: This machine's number. Machine 0 chooses the checkpoint and keeps what is saved;
            the others take over from it what they start from, and write only their own log, beside
            the work dir, in one that ends in ``-node<number>``.
        rdzv_endpoint: ``host:port`` where they meet.
        upload_to: The data set, ``owner/slug``, that the newest checkpoint is uploaded to while training
            goes on; None for none.
        upload_every_s: Seconds from one upload to the next.
    """

    config: Path
    resume: Literal["auto", "require", "never"] | Path = "auto"
    allow_weights_only: bool = False
    weights_only: bool = False
    expect_iteration: int | None = None
    extend_to: int | None = None
    session_limit_s: float = DEFAULT_LIMIT_S
    reserve_s: float = DEFAULT_RESERVE_S
    work_dir: Path | None = None
    gpus: int | Literal["auto"] = "auto"
    cpu_ranks: int = 1
    threads: int | None = None
    deterministic: bool = False
    fast: bool = True
    on_bad_image: Literal["fail", "skip"] = "fail"
    on_memory: Literal["adapt", "fail"] = "adapt"
    micro_batch: int | None = None
    overrides: tuple[str, ...] = ()
    save_every_s: float = 300.0
    budget_bytes: int = 4_000_000_000
    hang_after_s: float = 600.0
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str = ""
    upload_to: str | None = None
    upload_every_s: float = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Discovery:
    """What there is to start from.

    Attributes:
        options: What was asked.
        paths: Kaggle's folders.
        cfg: The person's config, with overrides.
        report: What was found in the inputs.
        choice: What the session starts from, and why.
        work_dir: Where it will write.
    """

    options: Options
    paths: KagglePaths
    cfg: Config
    report: ScanReport
    choice: Choice
    work_dir: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A session that is ready to train.

    Attributes:
        discovery: What it starts from.
        machine: What it runs on.
        clock: How long it has.
        facts: What the patch was planned from.
        patch: What changes in the config.
        threads: CPU threads per rank.
    """

    discovery: Discovery
    machine: Machine
    clock: SessionClock
    facts: configure.Facts
    patch: configure.ConfigPatch
    threads: int

    @property
    def options(self) -> Options:
        """What was asked."""
        return self.discovery.options

    @property
    def work_dir(self) -> Path:
        """Where it writes."""
        return self.discovery.work_dir

    @property
    def start_iteration(self) -> int:
        """Iterations done when it begins."""
        choice = self.discovery.choice
        if choice.action != "resume" or choice.inspection is None:
            return 0
        return choice.inspection.iteration or 0


# -- find and choose


def check_options(options: Options) -> None:
    """Look at what can be told of the options without looking at anything else.

    Raises:
        UsageError: One has a value that means nothing.
    """
    for name, value, least in (
        ("--gpus", options.gpus if options.gpus != "auto" else 0, 0),
        ("--cpu-ranks", options.cpu_ranks, 1),
        ("--threads", options.threads, 1),
        ("--micro-batch", options.micro_batch, 1),
        ("--expect-iteration", options.expect_iteration, 0),
        ("--extend-to", options.extend_to, 1),
        ("--nnodes", options.nnodes, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} {value} is too low.", f"Give {least} or more.")
    if not 0 <= options.node_rank < options.nnodes:
        raise UsageError(
            f"--node-rank {options.node_rank} does not fit --nnodes {options.nnodes}.",
            "Machines are numbered from 0.",
        )
    if options.upload_to is not None:
        check_handle(options.upload_to)
        if options.upload_every_s <= 0:
            raise UsageError("--upload-every must be more than nothing.", "Give a time, such as 1h.")
    if options.nnodes > 1 and not options.rdzv_endpoint:
        raise UsageError(
            f"--nnodes {options.nnodes} needs --rdzv-endpoint.",
            "Give HOST:PORT of machine 0, the same on all of them.",
        )


def discover(
    options: Options,
    *,
    paths: KagglePaths | None = None,
    on_wait: Callable[[str], None] | None = None,
    record_refusals: bool = True,
) -> Discovery:
    """Find the checkpoints that are attached or here, and choose what to start from.

    Args:
        options: What was asked.
        paths: Kaggle's folders; by default those of this machine.
        on_wait: Told what is being waited for.
        record_refusals: Whether a refusal leaves a record in the work dir; False writes nothing.

    Raises:
        UsageError: An option has a value that means nothing.
        ConfigError: The config does not parse, or cannot be trained by the kit.
        CheckpointError: No acceptable checkpoint where one is needed. Nothing is trained; the work
            dir gets a record that says ``refused``.
    """
    check_options(options)
    paths = paths or KagglePaths.from_environment()
    keep_caches_in(paths.temp)
    cfg = configure.read_config(options.config, options.overrides)
    work_dir = (options.work_dir or paths.work_dir(options.config)).absolute()
    if options.node_rank > 0:
        # Also right where the machines share the folder.
        work_dir = work_dir.with_name(f"{work_dir.name}-node{options.node_rank}")
    with _refusals(work_dir, cfg, options, record=record_refusals):
        max_iters = configure.check_trainable(cfg, options.config)
        report, choice = _find_and_choose(options, paths, cfg, work_dir, max_iters, on_wait)
    return Discovery(options=options, paths=paths, cfg=cfg, report=report, choice=choice, work_dir=work_dir)


def keep_caches_in(scratch: Path) -> None:
    """Send there what mmengine's config reader (by way of yapf) and matplotlib would write into the home."""
    os.environ.setdefault("XDG_CACHE_HOME", str(scratch / "cache"))
    os.environ.setdefault("MPLCONFIGDIR", str(scratch / "matplotlib"))


def _find_and_choose(
    options: Options,
    paths: KagglePaths,
    cfg: Config,
    work_dir: Path,
    max_iters: int,
    on_wait: Callable[[str], None] | None,
) -> tuple[ScanReport, Choice]:
    if options.node_rank > 0:
        line = "Machine 0 chooses; this one starts from what it sends."
        nothing = ScanReport(root=paths.input, files=(), rejected=(), records=())
        return nothing, Choice(action="fresh", explanations=(line,))
    waits = options.resume == "require" or bool(cfg.get("resume"))
    report = (
        scan(paths.input, wait_s=MOUNT_WAIT_S if waits else 0.0, on_wait=on_wait)
        if paths.input.is_dir()
        else ScanReport(root=paths.input, files=(), rejected=(), records=())
    )
    here = scan(work_dir) if work_dir.is_dir() else None
    shapes = _LazyShapes(cfg, options.config, paths.temp)
    load_from = cfg.get("load_from")
    try:
        choice = choose(
            inspect=shapes.inspect,
            resume=options.resume,
            work_dir=here.files if here is not None else (),
            load_from=Path(load_from) if load_from else None,
            inputs=report.files,
            rejected=(*report.rejected, *(here.rejected if here is not None else ())),
            fingerprint=configure.fingerprint(cfg),
            config_asks_resume=bool(cfg.get("resume")),
            allow_weights_only=options.allow_weights_only,
            weights_only=options.weights_only,
            expect_iteration=options.expect_iteration,
            max_iters=max_iters,
        )
    except CheckpointError as error:
        found = (*report.files, *(here.files if here is not None else ()))
        if found:
            raise
        # What was found is told file by file; where nothing was, it matters where that was.
        raise CheckpointError(
            f"{error.problem} Searched: {paths.input}, {work_dir}.", error.remedy
        ) from error
    return report, choice


class _LazyShapes:
    """Builds the config's model, for comparison, only once a checkpoint has to be judged."""

    def __init__(self, cfg: Config, source: Path, scratch: Path) -> None:
        self._cfg = cfg
        self._source = source
        self._scratch = scratch
        self._known: tuple[dict[str, tuple[int, ...]], tuple[str, ...] | None] | None = None

    def inspect(self, path: Path, *, manifest_sha256: str | None = None, full: bool = True) -> Inspection:
        if not full:
            return inspect(path, manifest_sha256=manifest_sha256, full=False)
        if self._known is None:
            self._known = config_shapes(self._cfg, self._source, self._scratch)
        shapes, classes = self._known
        return inspect(path, shapes=shapes, classes=classes, manifest_sha256=manifest_sha256)


def config_shapes(
    cfg: Config, source: Path, scratch: Path
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...] | None]:
    """Return the names and shapes of the config's model, and the classes of its data set.

    Raises:
        ConfigError: The model cannot be built; the message quotes why.
        MachineError: torch or mmsegmentation are not installed.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    file = scratch / f"shapes-{os.getpid()}.py"
    file.write_text(cfg.dump() if hasattr(cfg, "dump") else cfg.pretty_text, encoding="utf-8")
    innermost = configure.dataset_of(cfg)
    kind = innermost.get("type", "")
    data = {
        "type": kind if isinstance(kind, str) else kind.__name__,
        "metainfo": {"classes": list(classes)} if (classes := _own_classes(innermost)) else {},
    }
    env = dict(os.environ, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    env["PYTHONPATH"] = os.pathsep.join(
        [*map(str, import_paths(source)), *filter(None, [env.get("PYTHONPATH")])]
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mapsage_kaggle.engine.shapes", str(file), json.dumps(data)],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SHAPES_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(
            f"Building the model of {source} took more than {SHAPES_TIMEOUT_S:.0f} s."
        ) from error
    finally:
        file.unlink(missing_ok=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "No module named 'torch'" in last or "No module named 'mm" in last:
            raise MachineError(f"The training packages are missing: {last}.", "Run the install cell first.")
        raise ConfigError(
            f"The model of {source} cannot be built: {last}.", "Check the model and custom_imports."
        )
    document = json.loads(done.stdout.strip().splitlines()[-1])
    shapes = {name: tuple(shape) for name, shape in document["shapes"].items()}
    classes = document["classes"]
    return shapes, tuple(classes) if classes is not None else None


def _own_classes(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a data set's config states itself, if it does."""
    metainfo = data.get("metainfo")
    return tuple(metainfo.get("classes", ())) if isinstance(metainfo, Mapping) else ()


def import_paths(config: Path, inputs: Path | None = None) -> tuple[Path, ...]:
    """Return the folders that a config's own modules may live in.

    Its own folder and that folder's parent, attached code repositories, and the kit's own place.
    """
    kit = Path(__file__).resolve().parents[1]
    folder = config.resolve().parent
    found = [folder, folder.parent]
    if inputs is not None and inputs.is_dir():
        found += _code_repositories(inputs)
    return tuple(dict.fromkeys([*found, kit]))


def _code_repositories(inputs: Path, depth: int = 4) -> list[Path]:
    """Return attached folders that look like code: with a setup file, or a package right below them."""
    found: list[Path] = []
    level = [inputs]
    for _ in range(depth):
        below: list[Path] = []
        for folder in level:
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            names = {entry.name for entry in entries}
            if folder != inputs and names & {"setup.py", "setup.cfg", "pyproject.toml"}:
                found.append(folder)
                continue
            # A data set's folders hold thousands of files and no code: nothing to descend into.
            below += [Path(entry.path) for entry in entries[:200] if entry.is_dir(follow_symlinks=False)]
        level = below
    return sorted(found)


# -- configure


def prepare(
    discovery: Discovery,
    *,
    machine: Machine | None = None,
    clock: SessionClock | None = None,
    to_train: bool = True,
) -> Prepared:
    """Look at the machine and the data, and plan the patch for what was found.

    Args:
        discovery: What was found.
        machine: This machine, where it has been surveyed already.
        clock: The session's time, where it is known already.
        to_train: Whether training follows: the machine must then be able to, and a refusal leaves a
            record in the work dir. False plans only, and writes nothing.

    Raises:
        MachineError: The machine cannot run it: no disk, no packages, not the GPUs asked for.
        ConfigError: The config cannot run here.
        DataError: The data set is missing or inconsistent.
    """
    options = discovery.options
    with _refusals(discovery.work_dir, discovery.cfg, options, record=to_train):
        machine = machine or survey(discovery.paths, work_dir=discovery.work_dir)
        if to_train:
            require(preflight(discovery.paths, machine))
        return _prepare(discovery, machine, clock)


def _prepare(discovery: Discovery, machine: Machine, clock: SessionClock | None) -> Prepared:
    options, paths = discovery.options, discovery.paths
    clock = clock or SessionClock.for_this_session(
        limit_s=options.session_limit_s, reserve_s=options.reserve_s
    )
    usable = sum(1 for gpu in machine.gpus if gpu.supported is not False)
    num_gpus = usable if options.gpus == "auto" else options.gpus
    if num_gpus > usable:
        raise MachineError(
            f"--gpus {num_gpus} was asked for, but this machine has {usable} that this torch can use.",
            "Use --gpus auto, or choose another accelerator in the notebook's settings.",
        )
    ranks_here = num_gpus or max(1, options.cpu_ranks)
    world_size = ranks_here * options.nnodes
    choice = discovery.choice
    learned: Mapping[str, Any] = choice.record.learned if choice.record is not None else {}
    threads = options.threads or int(learned.get("threads", 0)) or max(1, machine.num_cpus // ranks_here)
    roots = find_data(discovery.cfg, paths.input)
    warnings = check_data_of(discovery.cfg, roots, on_bad_image=options.on_bad_image)
    extend_to, kept = _end_of_run(discovery, options)
    warnings = (*kept, *warnings)
    here = _memory_of(machine, num_gpus, ranks_here)
    if _is_roomier(here, learned.get("machine")):
        line = (
            f"What memory allowed on {_told(learned['machine'])} is not taken over to {_told(here)}: each "
            "rank takes its whole share of the batch again."
        )
        warnings = (line, *warnings)
        learned = {name: value for name, value in learned.items() if name not in (*_RUNG, "validation_rung")}
    facts = configure.Facts(
        work_dir=discovery.work_dir,
        world_size=world_size,
        ranks_here=ranks_here,
        on_gpu=num_gpus > 0,
        num_cpus=machine.num_cpus,
        data_roots=roots,
        pretrained=find_pretrained(discovery.cfg, paths.input),
        checkpoint=choice.checkpoint.target if choice.checkpoint else None,
        action=choice.action,
        checkpoint_seed=choice.inspection.seed if choice.inspection else None,
        micro_batch=options.micro_batch or learned.get("micro_batch"),
        on_bad_image=options.on_bad_image,
        extend_to=extend_to,
        deterministic=options.deterministic,
        with_cp=options.micro_batch is None and bool(learned.get("with_cp", False)),
        validation_rung=int(learned.get("validation_rung", 0)),
        fast=options.fast,
        cache_dir=paths.temp / "decoded",
        precision=_precision(machine, num_gpus) if options.fast else "",
    )
    patch = configure.plan(discovery.cfg, options.config, facts)
    patch = replace(patch, warnings=(*patch.warnings, *warnings))
    return Prepared(
        discovery=discovery, machine=machine, clock=clock, facts=facts, patch=patch, threads=threads
    )


def _memory_of(machine: Machine, num_gpus: int, ranks_here: int) -> dict[str, Any]:
    """Return what a rank has for memory: the device's name, and its bytes."""
    gpus = [gpu for gpu in machine.gpus if gpu.supported is not False][:num_gpus]
    if not gpus:
        return {"device": "CPU", "memory_bytes": machine.ram_bytes // ranks_here, "ranks": ranks_here}
    least = min(gpus, key=lambda gpu: gpu.memory_bytes)
    return {"device": least.name, "memory_bytes": least.memory_bytes, "ranks": ranks_here}


def _is_roomier(here: Mapping[str, Any], before: Any) -> bool:
    """Whether a rank has another device than the one that memory was learned of, or more of it.

    Records of earlier versions do not say what that was: what they learned is kept.
    """
    if not isinstance(before, Mapping):
        return False
    more = here["memory_bytes"] > _MORE_MEMORY * float(before.get("memory_bytes") or 0)
    return bool(here["device"] != before.get("device") or more)


def _told(memory: Mapping[str, Any]) -> str:
    return f"{memory.get('device')} ({(memory.get('memory_bytes') or 0) / 2**30:.0f} GiB)"


def _precision(machine: Machine, num_gpus: int) -> str:
    """Return in which half precision all the GPUs compute faster than in float32; empty where none."""
    capabilities = [gpu.capability for gpu in machine.gpus if gpu.supported is not False][:num_gpus]
    if not capabilities or any(item is None or item < (7, 0) for item in capabilities):
        return ""  # without tensor cores there is little to gain
    return "bfloat16" if all(item is not None and item >= (8, 0) for item in capabilities) else "float16"


def _end_of_run(discovery: Discovery, options: Options) -> tuple[int | None, tuple[str, ...]]:
    """Return the end that the schedule is to be laid out for, None for the config's, and what to say of it.

    A run that has been lengthened keeps its end, without being told so in every session.

    Raises:
        ConfigError: The config's end is later than that of the run in the checkpoint: the learning rate
            would stay at the old end.
    """
    choice = discovery.choice
    if choice.action != "resume" or options.extend_to is not None:
        return options.extend_to, ()
    wanted = int(discovery.cfg["train_cfg"]["max_iters"])
    before = choice.record.max_iters if choice.record is not None else None
    if before is None and choice.inspection is not None and choice.inspection.config_text:
        written = configure.written_value(choice.inspection.config_text, "train_cfg.max_iters")
        before = written if isinstance(written, int) else None
    if before and wanted > before:
        raise ConfigError(
            f"{options.config} ends at iteration {wanted}, but the run in "
            f"{choice.checkpoint.path if choice.checkpoint else '?'} was to end at {before}, where its "
            "learning rate is 0.",
            f"To lengthen the run, say so with --extend-to {wanted}: the schedule is then laid out anew.",
        )
    if before and wanted < before:
        line = (
            f"The run in the checkpoint goes to iteration {before}, {options.config} to {wanted}: it goes on "
            f"to {before}. To end at {wanted} all the same, say so with --extend-to {wanted}."
        )
        return before, (line,)
    return None, ()


def find_data(cfg: Mapping[str, Any], inputs: Path) -> dict[str, Path]:
    """Return where the config's data roots are here, by the name that the config gives them.

    A root that exists as written is kept. One that does not is looked for below the inputs: the
    kit's own data sets by their shape, others by the folders that the config expects within them.

    Raises:
        DataError: One is not to be found, or several fit.
    """
    found: dict[str, Path] = {}
    for name, kind in configure.data_roots_of(cfg).items():
        if Path(name).is_dir():
            found[name] = Path(name).absolute()
            continue
        layout = {"EarthVQADataset": "earthvqa", "LoveDASplitDataset": "loveda"}.get(kind)
        if layout is not None:
            roots = dataset.find_data_roots(inputs) if inputs.is_dir() else ()
            chosen = dataset.choose_data_root(roots, searched=inputs, layout=layout)  # type: ignore[arg-type]
            found[name] = chosen.path
        elif (place := _find_by_layout(cfg, name, inputs)) is not None:
            found[name] = place
    return found


def check_data_of(cfg: Mapping[str, Any], roots: Mapping[str, Path], *, on_bad_image: str) -> tuple[str, ...]:
    """Check the kit's own data sets before training starts; return what is only worth a warning.

    Raises:
        DataError: Files are missing, do not match, cannot be decoded, or hold values out of range.
    """
    warnings: list[str] = []
    kinds = configure.data_roots_of(cfg)
    for name, path in roots.items():
        classes = {
            "EarthVQADataset": dataset.EARTHVQA_CLASSES,
            "LoveDASplitDataset": dataset.LOVEDA_CLASSES,
        }.get(kinds.get(name, ""))
        if classes is None:
            _check_not_empty(cfg, name, path)
            continue
        report = dataset.check_data(path, len(classes))
        if on_bad_image == "fail":
            report.raise_for_problems()
        warnings += [str(problem) for problem in report.problems[:5]]
    return tuple(warnings)


def _find_by_layout(cfg: Mapping[str, Any], root: str, inputs: Path) -> Path | None:
    """Return the folder below the inputs that holds what the config expects in ``root``.

    Of several, the one that has ``root``'s own name; of those, the one that lies highest. A root of
    which the config says nothing is looked for by its name alone; None where that is not to be found
    either, since the data set may know better.

    Raises:
        DataError: Nothing has the layout, or several have.
    """
    layout = _layout_of(cfg, root)
    own_name = Path(root).name.casefold()

    def fits(folder: Path) -> bool:
        if not layout:
            return folder.name.casefold() == own_name
        return all((folder / item).exists() for item in layout)

    found = [folder for level in _levels(inputs) for folder in level if fits(folder)]
    named = [folder for folder in found if folder.name.casefold() == own_name]
    best = _highest(named or found)
    if len(best) == 1 or not (layout or best):
        return best[0] if best else None
    expected = ", ".join(map(str, layout)) or Path(root).name
    if best:
        raise DataError(
            f"{len(best)} folders below {inputs} may be the config's data_root {root!r} (with {expected}): "
            f"{', '.join(map(str, best))}.",
            "Detach all but one, or name it in the config or with --set: "
            "train_dataloader.dataset.data_root=FOLDER, and the same for val_dataloader.",
        )
    raise DataError(
        f"The config's data_root {root!r} does not exist, and no folder below {inputs} holds {expected}.",
        "Attach the data set as input, or set data_root to where it lies; if it was attached just now, wait "
        "a minute and try again.",
    )


def _layout_of(cfg: Mapping[str, Any], root: str) -> tuple[Path, ...]:
    """Return what the config expects to find in a data root, relative to it."""
    wanted: list[str] = []
    for name in ("train_dataloader", "val_dataloader"):
        for item in configure.datasets_of((cfg.get(name) or {}).get("dataset") or {}):
            if item.get("data_root") != root:
                continue
            prefix = item.get("data_prefix")
            places = [*(prefix.values() if isinstance(prefix, Mapping) else ()), item.get("ann_file")]
            wanted += [place for place in places if isinstance(place, str) and place]
    return tuple(dict.fromkeys(map(Path, wanted)))


def _levels(folder: Path, depth: int = 6) -> Iterator[list[Path]]:
    """Yield a folder, then the folders in it, and so on downwards."""
    level = [folder] if folder.is_dir() else []
    for _ in range(depth):
        yield level
        level = [
            Path(entry.path)
            for parent in level
            for entry in _scandir(parent)
            if entry.is_dir(follow_symlinks=False)
        ]


def _highest(folders: Sequence[Path]) -> list[Path]:
    least = min((len(folder.parts) for folder in folders), default=0)
    return [folder for folder in folders if len(folder.parts) == least]


def _check_not_empty(cfg: Mapping[str, Any], root: str, path: Path) -> None:
    """Look for the files of a data set that the kit knows only by its config.

    Raises:
        DataError: A folder that the config reads is missing or has nothing in it.
    """
    for item in _layout_of(cfg, root):
        place = path / item
        if not place.exists():
            raise DataError(
                f"The data root {path} has no {item}, which the config reads.", "Attach the whole data set."
            )
        if place.is_dir() and not _scandir(place):
            raise DataError(
                f"{place} is empty.",
                "Attach the whole data set; if it was attached just now, wait a minute and try again.",
            )


def _scandir(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)[:500]
    except OSError:
        return []


def find_pretrained(cfg: Mapping[str, Any], inputs: Path) -> dict[str, Path]:
    """Return the attached file for each pretrained weight of the config, by the config's name for it."""
    from mapsage_kaggle.walk import walk

    names = configure.pretrained_of(cfg)
    found = {name: Path(name).absolute() for name in names if Path(name).is_file()}
    missing = [name for name in names if name not in found]
    if not missing or not inputs.is_dir():
        return found
    wanted = {file: name for name in missing for file in configure.weights_files(name)}
    for path in sorted(walk(inputs, want_file=lambda name: name in wanted).files):
        found.setdefault(wanted[Path(path).name], Path(path))
    return found


# -- train


class TrainingHandle:
    """A session that is being trained, in a thread. Ask it to stop, to save, or wait for it."""

    def __init__(self, prepared: Prepared, sinks: Sequence[ProgressSink] = ()) -> None:
        self.prepared = prepared
        self.supervisor = Supervisor(
            prepared.work_dir, prepared.clock, sinks, hang_after_s=prepared.options.hang_after_s
        )
        self._record: SessionRecord | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mapsage-supervisor", daemon=True)
        self._done = threading.Event()
        self.interrupted = False

    def start(self) -> TrainingHandle:
        """Begin; returns at once."""
        self._thread.start()
        return self

    @property
    def running(self) -> bool:
        """Whether it is still going on."""
        return self._thread.ident is not None and not self._done.is_set()

    def stop(self) -> None:
        """Ask it to save and stop. Safe from any thread."""
        self.supervisor.request_stop()

    def save(self) -> None:
        """Ask it for a checkpoint now."""
        self.supervisor.request_save()

    def wait(self) -> SessionRecord:
        """Wait for its end and return the record.

        Ctrl-C (a cell's interrupt) once: everything is saved, and the record returned as usual.
        Twice: out at once, with the last proven checkpoint intact.

        Raises:
            MapsageError: It failed before there was anything new to hand over.
        """
        # Not Thread.join: interrupted, it may take a living thread for a dead one (CPython issue 90882).
        while not self._done.is_set():
            try:
                self._done.wait(0.2)
            except KeyboardInterrupt:
                if self.interrupted:
                    self.supervisor.kill()
                self.interrupted = True
                self.supervisor.request_stop()
        if self._error is not None:
            raise self._error
        assert self._record is not None
        return self._record

    def _run(self) -> None:
        try:
            self._record = _train(self.prepared, self.supervisor)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
        finally:
            self._done.set()


def train(prepared: Prepared, *, sinks: Sequence[ProgressSink] = ()) -> SessionRecord:
    """Train until the end, the deadline or a stop request, and hand over.

    Returns:
        The final record. Its ``exit_code`` tells how it ended.

    Raises:
        MapsageError: It failed before there was anything new to hand over; the record says so too.
    """
    return TrainingHandle(prepared, sinks).start().wait()


def _train(prepared: Prepared, supervisor: Supervisor) -> SessionRecord:
    session = _Session(prepared, supervisor)
    session.begin()
    with session.uploads():
        try:
            outcome, message = session.run_children()
        except BaseException as error:
            failed = Outcome(kind="error", message=str(error), iteration=prepared.start_iteration)
            session.end(failed, str(error))
            raise
        return session.end(outcome, message)


class _Session:
    """The steps of one session around its children."""

    def __init__(self, prepared: Prepared, supervisor: Supervisor) -> None:
        self.prepared = prepared
        self.supervisor = supervisor
        self.files = WorkDir(prepared.work_dir)
        patch = prepared.patch
        share = -(-patch.effective_batch // prepared.facts.world_size)
        self.ladder = Ladder(
            micro_batch=patch.micro_batch,
            above=min(share, 2 * patch.micro_batch) if patch.micro_batch < share else None,
            with_cp=prepared.facts.with_cp,
            validation_rung=prepared.facts.validation_rung,
        )
        self.steps: list[str] = []
        self.restarts = 0
        choice = prepared.discovery.choice
        learned: Mapping[str, Any] = choice.record.learned if choice.record is not None else {}
        self.pace: Mapping[str, float] = learned.get("pace", {})
        self.proven_rung = {name: learned[name] for name in _RUNG if name in learned}
        self.record = SessionRecord(run_id="", fingerprint="")
        self._log = EventLog(self.files.events)

    # -- before

    def begin(self) -> None:
        """Make the work dir, carry the history over, and write the first record."""
        prepared, choice = self.prepared, self.prepared.discovery.choice
        try:
            self.files.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                f"The work dir {self.files.path} cannot be made: {error.strerror}.",
                "Choose another one with --work-dir.",
            ) from error
        with self._store() as store:
            drop_requests(self.files)  # of a session that is over; from now on none is lost
            here, before = _read_closed(self.files), choice.record
            same_place = choice.checkpoint is not None and choice.checkpoint.target.parent == self.files.path
            source = (
                choice.checkpoint.target.parent if choice.checkpoint is not None and not same_place else None
            )
            if before is not None and choice.checkpoint is not None:
                events = read_events(WorkDir(choice.checkpoint.target.parent).events)
                before = before.closed(last_word_s(events))
            self._carry_history(source, here)
            if same_place or here is not None:
                store.start_at(prepared.start_iteration)
            if source is not None and before is not None and choice.action == "resume":
                self._carry_best(store, before, source)
        sha256 = self._write_config()
        continued = before if choice.action == "resume" else None
        run_id = (
            continued.run_id
            if continued is not None
            else (choice.inspection.run_id if choice.action == "resume" and choice.inspection else None)
        )
        self.record = SessionRecord(
            run_id=run_id or new_run_id(),
            fingerprint=prepared.patch.fingerprint,
            session_index=continued.session_index + 1 if continued is not None else 1,
            start_iteration=prepared.start_iteration,
            end_iteration=prepared.start_iteration,
            max_iters=prepared.patch.max_iters,
            best=continued.best if continued is not None else None,
            owed_validation=choice.inspection.owed_validation
            if choice.action == "resume" and choice.inspection is not None
            else None,
            config_sha256=sha256,
            changes=self._changes(source or (self.files.path if same_place else None)),
            learned=self._learned(),
            exactness=self._exactness(),
            previous=continued.lineage() if continued is not None else (),
            started_s=time.time() - prepared.clock.elapsed_s(),
        )
        self.record.write(self.files.session)
        log = self._log
        for line in choice.steps_down:
            log.append(Event(event="ladder", iteration=prepared.start_iteration, data={"message": line}))
        warnings = prepared.patch.warnings
        if choice.action == "weights-only" and choice.checkpoint is not None:
            path = choice.checkpoint.path
            line = f"Weights only from {path}: optimizer and schedule start anew, at iteration 0."
            warnings = (line, *warnings)
        for line in warnings:
            log.append(Event(event="warning", iteration=prepared.start_iteration, data={"message": line}))

    def _store(self) -> CheckpointStore:
        patch = self.prepared.patch
        metric = patch.save_best[0] if patch.save_best else ""
        return CheckpointStore(
            self.files.path,
            budget_bytes=self.prepared.options.budget_bytes,
            greater_is_better=greater_is_better(metric, patch.best_rules.get(metric)),
        )

    def _carry_history(self, source: Path | None, here: SessionRecord | None) -> None:
        """Copy an earlier output's history, or put this work dir's own last session into it."""
        history = self.files.history
        if here is not None:
            here.write(self.files.session)  # closed, before the events that tell its end are put away
            _archive(self.files.path, history, here, move_events=True)
        else:
            self.files.events.unlink(missing_ok=True)
        if source is None:
            return
        origin = WorkDir(source)
        for old, new in ((origin.history, history), (origin.predictions, self.files.predictions)):
            if not old.is_dir():
                continue
            new.mkdir(exist_ok=True)
            for file in sorted(old.iterdir()):
                if file.is_file():
                    _copy(file, new / file.name)
        record = _read_closed(origin)
        if record is not None:
            _archive(source, history, record, move_events=False)

    def _carry_best(self, store: CheckpointStore, record: SessionRecord, source: Path) -> None:
        best = record.best
        if best is None or best.metric is None or best.value is None or not (source / best.file).is_file():
            return
        try:
            store.carry_over(
                source / best.file,
                iteration=best.iteration,
                metric=best.metric,
                value=best.value,
                sha256=best.sha256,
            )
        except SaveFailed as error:
            self.steps.append(
                f"The best checkpoint of the sessions before could not be carried over: {error}"
            )

    def _write_config(self) -> str:
        effective = configure.apply(self.prepared.discovery.cfg, self.prepared.patch)
        return configure.write(effective, self.prepared.patch, self.files.path)

    def _changes(self, before: Path | None) -> tuple[str, ...]:
        """Return what differs from the config of the session before."""
        if before is None:
            return ()
        index = self.prepared.discovery.choice.record
        name = f"config_{index.session_index:03d}.py" if index is not None else ""
        for file in (self.files.history / name, WorkDir(before).config):
            if name and file.is_file() and file != self.files.config:
                old = file.read_text(encoding="utf-8", errors="replace")
                lines = configure.changes_between(old, self.files.config.read_text(encoding="utf-8"))
                return lines[:_MAX_CHANGES]
        return ()

    def _learned(self) -> dict[str, Any]:
        learned: dict[str, Any] = {"threads": self.prepared.threads, "ladder": list(self.steps)}
        learned |= self.proven_rung
        if self.ladder.validation_rung:
            learned["validation_rung"] = self.ladder.validation_rung
            learned.setdefault("machine", self._memory())
        if self.pace:
            learned["pace"] = dict(self.pace)
        return learned

    def _rung(self) -> dict[str, Any]:
        """Return what will be learned of memory once an iteration is done as it is tried now."""
        rung: dict[str, Any] = {}
        if self.ladder.micro_batch * self.prepared.facts.world_size < self.prepared.patch.effective_batch:
            rung["micro_batch"] = self.ladder.micro_batch
        if self.ladder.with_cp:
            rung["with_cp"] = True
        if rung:
            rung["machine"] = self._memory()
        return rung

    def _memory(self) -> dict[str, Any]:
        facts = self.prepared.facts
        return _memory_of(self.prepared.machine, facts.ranks_here if facts.on_gpu else 0, facts.ranks_here)

    def _exactness(self) -> dict[str, Any]:
        facts, reasons = self.prepared.facts, list(self.prepared.patch.exactness)
        if facts.on_gpu and not facts.deterministic:
            reasons.append("GPU kernels may add in another order (train with --deterministic to forbid it)")
        inspection = self.prepared.discovery.choice.inspection
        if facts.action == "resume" and inspection is not None and inspection.run_id is None:
            reasons.append("the checkpoint was made by stock mmengine, which walks the data in another order")
            if inspection.seed is None:
                seed = self.prepared.patch.seed
                reasons.append(f"the checkpoint does not say its seed; the config's is taken ({seed})")
        patch = self.prepared.patch
        now = {"ranks": facts.world_size, "micro_batch": patch.micro_batch}
        earlier = self.record.exactness or (
            self.prepared.discovery.choice.record.exactness if self.prepared.discovery.choice.record else {}
        )
        before = {name: earlier.get(name, now[name]) for name in now}
        if facts.action == "resume" and before != now:
            equal = "; the two differ by more than rounding" if patch.split else ": equal to rounding"
            reasons.append(
                f"each batch was split into {before['micro_batch']} image(s) on {before['ranks']} rank(s), "
                f"and now into {now['micro_batch']} on {now['ranks']}{equal}"
            )
        return {"bitwise": not reasons, "reasons": reasons, **now, "split": list(patch.split)}

    # -- children

    def run_children(self) -> tuple[Outcome, str]:
        """Train with one child after another until one ends in good order, or nothing helps."""
        prepared = self.prepared
        done = prepared.start_iteration >= prepared.patch.max_iters
        inspection = prepared.discovery.choice.inspection
        if done and (inspection is None or inspection.owed_validation is None):
            return (
                Outcome(kind="done", reason="completed", iteration=prepared.start_iteration),
                f"The run was complete already, at iteration {prepared.start_iteration}.",
            )
        # Whatever came before the first child is part of starting.
        before = {"start_up": round(prepared.clock.elapsed_s(), 2)}
        self.record = self.record.evolve(timings_s=before)
        self.record.write(self.files.session)
        spec, last = self._first_spec(), None
        while True:
            if self._stop_asked():
                return self._stopped_before_a_child(last)
            if prepared.clock.left_s() <= 0 or self.supervisor.left_to_hand_over_s() < 0:
                return self._late_for_a_child(last)
            outcome = last = self.supervisor.run(self._launch(spec))
            self.record = _read_record(self.files.session) or self.record
            timings = outcome.data.get("timings_s") or self.record.timings_s
            self.record = self.record.evolve(timings_s=timings)
            if outcome.trained > 0:
                self.proven_rung = self._rung()
            # Only one that ended in good order says it; of others, the record has what was measured last.
            self.pace = outcome.data.get("pace") or self.record.learned.get("pace") or self.pace
            step = decide_next(
                self.ladder,
                outcome,
                can_recompute=self._can_recompute(),
                time_left_s=prepared.clock.left_s(),
                adapt=prepared.options.on_memory == "adapt",
            )
            if step.ladder is None:
                return outcome, step.message
            if self._stop_asked():
                return outcome, outcome.message
            self._tell("restart", outcome.iteration, message=step.message, kind=outcome.kind)
            self.steps.append(step.message)
            self.ladder = step.ladder
            self.restarts += 1
            _wait(step.wait_s, self.supervisor)
            if self._stop_asked():
                return self._stopped_before_a_child(outcome)
            spec = self._next_spec()

    def _stop_asked(self) -> bool:
        return self.supervisor.stopping

    def _stopped_before_a_child(self, last: Outcome | None) -> tuple[Outcome, str]:
        """Return the end that a person asked for where no child was running; ``last`` was the one before."""
        message = "Stopped on request before training began."
        if last is not None:
            message = f"{last.message} Stopped on request before it was tried again."
        return self._end_without_a_child("user", last), message

    def _late_for_a_child(self, last: Outcome | None) -> tuple[Outcome, str]:
        """Return the end of a session whose time was up where no child was running."""
        message = "The session's time was up before training began."
        if last is not None:
            message = f"{last.message} The session's time was up before it was tried again."
        return self._end_without_a_child("deadline", last), message

    def _end_without_a_child(self, reason: str, last: Outcome | None) -> Outcome:
        proven = last.proven if last is not None else None
        return Outcome(
            kind="done",
            reason=reason,
            iteration=self.prepared.start_iteration if proven is None else proven,
            proven=proven,
            data={"timings_s": self.record.timings_s},
        )

    def _first_spec(self) -> dict[str, Any]:
        prepared, choice = self.prepared, self.prepared.discovery.choice
        return self._spec(
            action=choice.action,
            checkpoint=choice.checkpoint.target if choice.checkpoint else None,
            sha256=choice.inspection.sha256 if choice.inspection else None,
            expect=prepared.start_iteration if choice.action == "resume" else None,
        )

    def _next_spec(self) -> dict[str, Any]:
        """Return the spec of a child that goes on from the newest proven checkpoint."""
        newest = self._newest_sound()
        prepared = self.prepared
        facts = replace(
            prepared.facts,
            micro_batch=self.ladder.micro_batch,
            with_cp=self.ladder.with_cp,
            validation_rung=self.ladder.validation_rung,
        )
        if newest is not None:
            path = self.files.path / newest.file
            facts = replace(facts, checkpoint=path, action="resume", checkpoint_seed=prepared.patch.seed)
            spec = self._spec("resume", path, newest.sha256, newest.iteration)
        else:
            spec = self._first_spec()
        patch = configure.plan(prepared.discovery.cfg, prepared.options.config, facts)
        self.prepared = replace(prepared, facts=facts, patch=patch)
        sha256 = self._write_config()
        learned, exactness = self._learned(), self._exactness()
        self.record = self.record.evolve(
            config_sha256=sha256, learned=learned, exactness=exactness,
            # A child that took us for gone has closed the record.
            stop_reason="running", exit_code=None, message="", ended_s=None,
        )  # fmt: skip
        self.record.write(self.files.session)
        return spec

    def _newest_sound(self) -> CheckpointRef | None:
        """Return the newest checkpoint of this work dir that still is what was proven."""
        with self._store() as store:
            for ref in sorted(store.proven(), key=lambda ref: ref.iteration, reverse=True):
                if ref.metric is not None:
                    continue
                verdict = inspect(self.files.path / ref.file, manifest_sha256=ref.sha256)
                if verdict.verdict == "resumable":
                    store.start_at(ref.iteration)
                    return ref
                message = (
                    f"{ref.file} is no longer sound ({'; '.join(verdict.problems)}); going further back."
                )
                self._tell("ladder", ref.iteration, message=message)
                self.steps.append(message)
        return None

    def _spec(
        self, action: str, checkpoint: Path | None, sha256: str | None, expect: int | None
    ) -> dict[str, Any]:
        prepared, options = self.prepared, self.prepared.options
        return {
            "config": self.files.config,
            "work_dir": self.files.path,
            "clock_started_s": prepared.clock.started_s,
            "limit_s": prepared.clock.limit_s,
            "reserve_s": prepared.clock.reserve_s,
            "action": action,
            "checkpoint": checkpoint,
            "checkpoint_sha256": sha256,
            "expect_iteration": expect,
            "run_id": self.record.run_id,
            "fingerprint": self.record.fingerprint,
            "threads": prepared.threads,
            "save_interval": prepared.patch.save_interval,
            "save_every_s": options.save_every_s,
            "budget_bytes": options.budget_bytes,
            "save_best": prepared.patch.save_best,
            "best_rules": dict(prepared.patch.best_rules),
            "deterministic": options.deterministic,
            "pace": dict(self.pace),
            "extend": prepared.facts.extend_to is not None,
            "validation_rung": self.ladder.validation_rung,
            "restarted": self.restarts > 0,
            "rung": dict.fromkeys(_RUNG) | self._rung(),
            "launched_s": prepared.clock.elapsed_s(),
        }

    def _launch(self, spec: Mapping[str, Any]) -> Launch:
        from mapsage_kaggle.spec import ChildSpec

        prepared, options = self.prepared, self.prepared.options
        scratch = prepared.discovery.paths.temp
        scratch.mkdir(parents=True, exist_ok=True)
        file = scratch / f"child-{self.record.run_id}.json"
        ChildSpec(**spec).write(file)
        return Launch(
            spec=file,
            work_dir=self.files.path,
            num_workers=prepared.facts.ranks_here,
            threads=prepared.threads,
            gpus=prepared.facts.on_gpu,
            import_paths=import_paths(options.config, prepared.discovery.paths.input),
            scratch=scratch,
            nnodes=options.nnodes,
            node_rank=options.node_rank,
            rdzv_endpoint=options.rdzv_endpoint,
            deterministic=options.deterministic,
        )

    @contextmanager
    def uploads(self) -> Iterator[None]:
        """Upload the newest checkpoint now and then where that is asked for, and once more at the end."""
        prepared, options = self.prepared, self.prepared.options
        if options.upload_to is None or options.node_rank > 0:
            yield
            return
        uploader = Uploader(
            self.files,
            options.upload_to,
            every_s=options.upload_every_s,
            scratch=prepared.discovery.paths.temp,
            after=prepared.start_iteration,
        )
        uploader.start()
        try:
            yield
        finally:
            # Half the reserve, as everywhere in the supervisor, less what Kaggle needs for the output.
            left_s = self.supervisor.left_to_hand_over_s()
            uploader.finish(min(LAST_LIMIT_S, left_s), cancelled=lambda: self.supervisor.killed)
            self.supervisor.pass_on(("upload", "warning"))

    def _can_recompute(self) -> bool:
        backbone = (self.prepared.discovery.cfg.get("model") or {}).get("backbone") or {}
        return str(backbone.get("type", "")).rpartition("::")[2] in (
            "MixVisionTransformer", "ResNet", "ResNetV1c", "ResNetV1d", "SwinTransformer",
        )  # fmt: skip

    def _tell(self, event: str, iteration: int, /, **data: Any) -> None:
        self._log.append(Event(event=event, iteration=iteration, data=data))

    # -- after

    def end(self, outcome: Outcome, message: str) -> SessionRecord:
        """Make sure that the output alone is enough to go on from, and write the last record.

        Raises:
            TrainingError: It failed and there is nothing new to hand over.
        """
        self._carry_checkpoint()
        record = _read_record(self.files.session) or self.record
        reason, code = outcome.reason, EXIT_DONE
        if outcome.kind != "done":
            reason, code = ("user", EXIT_DONE) if outcome.kind == "killed" else ("failed", EXIT_TRAINING)
        timings = outcome.data.get("timings_s") or record.timings_s
        newest = record.checkpoint
        record = record.evolve(
            stop_reason=reason,
            exit_code=code,
            end_iteration=newest.iteration if newest is not None else outcome.iteration,
            learned=self._learned(),
            timings_s=complete_timings(timings, self.prepared.clock.elapsed_s()),
            message=message or outcome.message,
            ended_s=time.time(),
        )
        record.write(self.files.session)
        drop_requests(self.files)
        self._tell("end", record.end_iteration, reason=reason, exit_code=code, message=record.message)
        self._write_report()
        if outcome.told_s is not None:
            # What the next session must leave for all this.
            self._measure_finish(time.time() - outcome.told_s)
            record = record.evolve(learned=self._learned())
            record.write(self.files.session)
        if code == EXIT_TRAINING and record.end_iteration <= record.start_iteration:
            raise TrainingError(record.message, f"The whole log is in {self.files.log}.")
        return record

    def _measure_finish(self, seconds: float) -> None:
        expected_s = decaying_maximum(self.pace.get("finish_s"), seconds)
        self.pace = {**self.pace, "finish_s": round(expected_s, 3)}

    def _write_report(self) -> None:
        """Draw the report. A picture that fails must not cost a session its good end."""
        from mapsage_kaggle.display.report import write_report

        try:
            write_report([self.files.path])
        except Exception as error:  # noqa: BLE001 - drawing libraries raise what they like
            message = f"The report could not be drawn: {type(error).__name__}: {error}."
            self._tell("warning", self.record.end_iteration, message=message)

    def _carry_checkpoint(self) -> None:
        """Put the checkpoint that was resumed into this output, where no newer one has come."""
        choice = self.prepared.discovery.choice
        if choice.action != "resume" or choice.checkpoint is None or choice.inspection is None:
            return
        source, iteration = choice.checkpoint.target, choice.inspection.iteration or 0
        with self._store() as store:
            ref = store.newest()
            if ref is None and source.parent != self.files.path:
                try:
                    ref = store.hand_on(source, iteration=iteration, sha256=choice.inspection.sha256)
                except SaveFailed as error:
                    # The record comes all the same; what was resumed is still attached.
                    self.steps.append(f"The checkpoint that was resumed could not be handed on: {error}")
            best = store.best()
        record = _read_record(self.files.session) or self.record
        if ref is not None:
            record.evolve(checkpoint=ref, best=best, end_iteration=ref.iteration).write(self.files.session)


def _wait(seconds: float, supervisor: Supervisor) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not supervisor.stopping:
        time.sleep(0.1)


def _read_record(path: Path) -> SessionRecord | None:
    try:
        return SessionRecord.read(path)
    except (OSError, ValueError):
        return None


def _read_closed(files: WorkDir) -> SessionRecord | None:
    """Return the record of the session that ended in a folder; None where there is none to be read."""
    record = _read_record(files.session)
    return record.closed(last_word_s(read_events(files.events))) if record is not None else None


def _archive(folder: Path, history: Path, record: SessionRecord, *, move_events: bool) -> None:
    """Put a session's record, config and events into the history, under its number.

    The record stays where it is, too: it is replaced by the next one's, and never absent.
    """
    history.mkdir(exist_ok=True)
    files, index = WorkDir(folder), record.session_index
    record.write(history / f"session_{index:03d}.json")
    if files.config.is_file():
        _copy(files.config, history / f"config_{index:03d}.py")
    if files.events.is_file():
        target = history / f"events_{index:03d}.jsonl"
        if move_events:
            files.events.replace(target)
        else:
            _copy(files.events, target)


def _copy(source: Path, target: Path) -> None:
    """Copy content only: files below the inputs are read-only, and their mode must not come along."""
    shutil.copyfile(source, target)


@contextmanager
def _refusals(work_dir: Path, cfg: Config, options: Options, *, record: bool) -> Iterator[None]:
    """Leave a record of what is refused on the way, and raise it all the same."""
    try:
        yield
    except MapsageError as error:
        if record:
            _write_refusal(work_dir, cfg, options, error)
        raise


def _write_refusal(work_dir: Path, cfg: Config, options: Options, error: MapsageError) -> None:
    """Leave a record that says ``refused``; what an earlier record points to stays in it."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        files = WorkDir(work_dir)
        here = _read_record(files.session)
        now = time.time()
        base = here or SessionRecord(
            run_id=new_run_id(),
            fingerprint=configure.fingerprint(cfg),
            max_iters=int((cfg.get("train_cfg") or {}).get("max_iters") or 0),
            started_s=now,
        )
        if here is not None:
            _archive(work_dir, files.history, here, move_events=False)
        base.evolve(
            stop_reason="refused",
            exit_code=error.exit_code,
            start_iteration=base.end_iteration,
            message=str(error),
            previous=here.lineage() if here is not None else (),
            ended_s=now,
        ).write(files.session)
    except OSError:
        return  # the refusal itself is what counts, and it is raised


def exit_code_of(record: SessionRecord, *, interrupted: bool) -> int:
    """Return the command's exit code for a record."""
    if interrupted and record.exit_code == EXIT_DONE and record.stop_reason == "user":
        return EXIT_INTERRUPTED
    return record.exit_code if record.exit_code is not None else EXIT_TRAINING
