"""Which model a job is about: a config and a checkpoint that belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mapsage_kaggle.checkpoints.candidates import Origin, Prospect, without_duplicates
from mapsage_kaggle.checkpoints.inspect import Inspection, inspect
from mapsage_kaggle.checkpoints.manifest import manifest_sha256
from mapsage_kaggle.checkpoints.scan import scan
from mapsage_kaggle.checkpoints.selector import Selector
from mapsage_kaggle.config.fingerprint import fingerprint
from mapsage_kaggle.config.modules import CodePlaces, check_custom_imports, code_places
from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.config.requirements import check_installed
from mapsage_kaggle.data.find import find_data
from mapsage_kaggle.errors import CheckpointError, UsageError
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.paths import KagglePaths, WorkDir, keep_caches_in
from mapsage_kaggle.records import read_record

if TYPE_CHECKING:
    from mmengine.config import Config


Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and where to run it.

    Attributes:
        config: The config that it was trained with.
        checkpoint: The file; None for the best of the work dir, else the newest there, else those of
            the attached inputs.
        run: Of which run, by its id, where several are attached.
        work_dir: Where the run lies; by default ``<working>/work_dirs/<config name>``.
        overrides: ``key=value`` with dotted keys, for the config.
        device: ``auto`` takes a GPU where there is one.
        threads: CPU threads; by default the cores.
        code: Folders whose modules the config may import, besides what came with it.
        pass_env: Environment variables that children get although they look like credentials.
        needs_data: Whether the config's data set must be there.
    """

    config: Path
    checkpoint: Path | None = None
    run: str | None = None
    work_dir: Path | None = None
    overrides: tuple[str, ...] = ()
    device: Device = "auto"
    threads: int | None = None
    code: tuple[Path, ...] = ()
    pass_env: tuple[str, ...] = ()
    needs_data: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model that is ready to be worked with.

    Attributes:
        cfg: The config as a child on one device takes it.
        code: Where its own modules are imported from.
        inspection: What is known of the checkpoint; its ``sha256`` and ``iteration`` among it.
    """

    options: ModelOptions
    paths: KagglePaths
    cfg: Config
    code: CodePlaces = field(default_factory=CodePlaces)
    work_dir: Path
    inspection: Inspection

    @property
    def checkpoint(self) -> Path:
        return self.inspection.path

    def job(self) -> dict[str, Any]:
        """Return what every child's document begins with; :func:`run_child` adds the config's file."""
        return {
            "checkpoint": str(self.checkpoint.absolute()),
            "sha256": self.inspection.sha256,
            "iteration": self.inspection.iteration,
            "device": self.options.device,
            "scale": self.inspection.scale.to_json() if self.inspection.scale is not None else None,
        }


def open_subject(options: ModelOptions, *, paths: KagglePaths | None = None) -> ModelSource:
    """Find and judge what a command works with. Writes nothing.

    Raises:
        ConfigError: The config does not parse, or has no model.
        MachineError: A package that the model needs is missing.
        DataError: The data set is needed and missing.
        CheckpointError: There is no checkpoint, or it is damaged or harmful.
    """
    paths = paths or KagglePaths.from_environment()
    keep_caches_in(paths.temp)
    code = code_places(options.config, paths.input, options.code)
    cfg = read_config(options.config, options.overrides)
    check_installed({"model": cfg.get("model")}, options.config, (*code.first, *code.last))
    check_custom_imports(cfg, code, paths.input)
    work_dir = paths.work_dir(options.config, options.work_dir)
    if options.threads is not None and options.threads < 1:
        raise UsageError(Message("--threads {number} is too low.", options.threads), "Give 1 or more.")
    roots = find_data(cfg, paths.input) if options.needs_data else {}
    checkpoint = options.checkpoint or find_checkpoint(
        work_dir, paths.input, run=options.run, fingerprint=fingerprint(cfg)
    )
    inspection = judge(checkpoint)
    return ModelSource(
        options=options,
        paths=paths,
        cfg=for_inference(cfg, roots),
        code=code,
        work_dir=work_dir,
        inspection=inspection,
    )


def judge(checkpoint: Path) -> Inspection:
    """Prove every byte of a checkpoint, without running anything in it.

    Raises:
        CheckpointError: It is missing, damaged, harmful, or not what its manifest says.
    """
    if not checkpoint.is_file():
        raise CheckpointError(
            Message("There is no checkpoint at {path}.", checkpoint),
            "Give the path of a file such as best_mIoU_iter_8000.pth.",
        )
    found = inspect(checkpoint, manifest_sha256=manifest_sha256(checkpoint))
    if found.verdict == "rejected":
        raise CheckpointError(
            Message("{name} is rejected: {why}.", checkpoint, joined_by("; ", found.problems)),
            "Use another checkpoint.",
        )
    return found


def find_checkpoint(
    work_dir: Path, inputs: Path, *, run: str | None = None, fingerprint: str | None = None
) -> Path:
    """Return the best checkpoint of a run, else its newest: the work dir's, else that of one attached run.

    Whose is taken of what is attached, :mod:`mapsage_kaggle.checkpoints.runs` says, as for training. One
    with another config is taken where there is no other: it may differ in what evaluation does not see.

    Raises:
        CheckpointError: There is none, or several runs could be meant.
    """
    here = read_record(WorkDir(work_dir).session)
    places: tuple[tuple[Path, Origin], ...] = ((work_dir, "work dir"), (inputs, "input"))
    for folder, origin in places:
        if not folder.is_dir():
            continue
        selector = Selector(
            fingerprint=fingerprint,
            named_run=run,
            work_dir_run=here.run_id if here is not None else None,
            file_option="{file}",
        )
        found = without_duplicates([selector.candidate(item, origin) for item in scan(folder).files])
        if origin == "input":
            selector.read_headers(found)
            found = selector.of_one_run([item for item in found if not selector.is_stranger(item)] or found)
        ranks: dict[int, list[Prospect]] = {}
        for item in found:
            ranks.setdefault(_rank(item), []).append(item)
        if ranks:
            return max(ranks[min(ranks)], key=_age).target
    raise CheckpointError(
        Message("There is no checkpoint in {folder} and none below {inputs}.", work_dir, inputs),
        "Train first, attach a session's output, or name the file.",
    )


def _rank(item: Prospect) -> int:
    best = item.record.best if item.record is not None else None
    if best is not None and best.file == item.target.name:  # so that no name has to be believed
        return 0
    return 1 if item.is_best else 3 if item.counts_epochs else 2


def _age(item: Prospect) -> tuple[int, str]:
    return (item.iteration if item.iteration is not None else -1, str(item.found.path))
