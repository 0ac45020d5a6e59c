"""From a person's training config to the one that runs: a patch of dotted keys, each with its reason."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config import replacements
from mapsage_kaggle.config.fingerprint import DEFAULT_SEED, HOW_IT_STEPS, fingerprint
from mapsage_kaggle.config.planner import Change, Planner
from mapsage_kaggle.config.reading import (
    LOADERS,
    MISSING,
    WRAPPERS,
    as_list,
    as_mapping,
    assignment,
    effective_batch,
    mapping_or_empty,
    plain_copy,
    type_name,
)
from mapsage_kaggle.config.schedules import plan_extension
from mapsage_kaggle.config.trainable import check_trainable, keys_of_0x
from mapsage_kaggle.config.weights import plan_pretrained
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import WorkDir, replace_file

if TYPE_CHECKING:
    from mmengine.config import Config

_ENGINE_IMPORT = "mapsage_kaggle.engine.register"

_KNOWN_SAMPLERS = ("InfiniteSampler", "DefaultSampler", "MapsageOrder")
_VAL_LOOP = "MapsageValLoop"
_BY_CLASS = ("IoUMetric", "MapsageIoUMetric")
"""Metrics that count labels by class, and leave one label out."""
_PIXEL_BYTES = 3 + 8
"""Of a sample that a data worker hands over: three channels of a byte, and a label of eight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigPatch:
    """What the kit changes in a config to run it here, and what must be known of it.

    Attributes:
        source: The person's config, which is never touched.
        changes: In the order in which they are applied.
        warnings: What a person should read before training starts.
        max_iters: Where the run ends.
        effective_batch: Images per iteration, over all ranks and micro-batches.
        micro_batch: Images per forward pass and rank.
        num_workers: Data workers of the loader that has most.
        save_interval: Iterations between checkpoints, as the config asks.
        save_best: Metrics of which the best checkpoint is kept.
        best_rules: ``greater`` or ``less`` by metric, where the config says so.
        val_interval: Iterations between validations; 0 where the config does not validate.
        fingerprint: What makes two configs the same run.
        precision: What is computed in, ``float32``, ``float16`` or ``bfloat16``.
        chose_half: Whether that is half precision by the kit's choice, not the config's or a person's.
        norms_in_step: Whether all ranks make as many passes, so that norms can look at all of their parts.
    """

    source: Path
    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()
    max_iters: int
    effective_batch: int
    micro_batch: int
    num_workers: int
    seed: int
    save_interval: int
    save_best: tuple[str, ...]
    best_rules: Mapping[str, str] = field(default_factory=dict)
    val_interval: int
    fingerprint: str
    precision: str = "float32"
    chose_half: bool = False
    norms_in_step: bool = True

    @property
    def is_split(self) -> bool:
        return self.micro_batch < self.effective_batch

    def diff(self) -> str:
        lines = [f"--- {self.source}", "+++ effective config"]
        for item in self.changes:
            lines.append(f"@@ {item.key}: {item.reason} @@")
            if not item.added:
                lines.append("-" + assignment(item.key, item.old))
            if not item.removed:
                lines.append("+" + assignment(item.key, item.new))
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchContext:
    """What the patch has to take into account beyond the config.

    Attributes:
        world_size: Ranks that will train, on all machines.
        ranks_here: How many of them are on this machine.
        on_gpu: Whether they have a GPU each.
        num_cpus: CPU cores that data workers may use.
        data_roots: The folder found for a ``data_root`` of the config that does not exist here.
        pretrained: The file found for a pretrained weight's name, by that name.
        checkpoint: What to load, with ``action``.
        action: ``resume``, ``weights-only`` or ``fresh``.
        checkpoint_seed: The seed in the checkpoint's meta.
        micro_batch: Images per forward pass and rank; None for the whole share of a rank.
        on_bad_image: ``fail`` or ``skip``.
        extend_to: A new end for the schedule.
        deterministic: Whether only deterministic algorithms may run.
        with_cp: Whether the backbone recomputes its blocks in the backward pass to save memory.
        validation_rung: How far validation goes to save memory, see
            :data:`mapsage_kaggle.training.fallback.VALIDATION_RUNGS`.
        fast: Whether stock parts are replaced by the kit's faster ones.
        cache_dir: Where those keep decoded images; None to keep none.
        precision: ``float16`` or ``bfloat16`` where the GPUs compute in it faster, empty where not; or what
            a person asks for.
        precision_is_asked: Whether a person asks for it, so that it goes before what the config says.
        emulates_bfloat16: Whether a GPU has no bfloat16 of its own.
        most_workers: A loader's data workers at most, where more found no shared memory; None for any number.
        shared_bytes: What data workers may hand over in shared memory; None where that is not known.
    """

    work_dir: Path
    world_size: int = 1
    ranks_here: int = 1
    on_gpu: bool = False
    num_cpus: int = 2
    data_roots: Mapping[str, Path] = field(default_factory=dict)
    pretrained: Mapping[str, Path] = field(default_factory=dict)
    checkpoint: Path | None = None
    action: str = "fresh"
    checkpoint_seed: int | None = None
    micro_batch: int | None = None
    on_bad_image: str = "fail"
    extend_to: int | None = None
    deterministic: bool = False
    with_cp: bool = False
    validation_rung: int = 0
    fast: bool = False
    cache_dir: Path | None = None
    precision: str = ""
    precision_is_asked: bool = False
    emulates_bfloat16: bool = False
    most_workers: int | None = None
    shared_bytes: int | None = None


def plan_patch(cfg: Mapping[str, Any] | Config, source: Path, facts: PatchContext) -> ConfigPatch:
    """Decide what has to change for ``cfg`` to run here. Reads nothing, writes nothing.

    Raises:
        ConfigError: The kit cannot run it: it trains by epochs, has no training loop or data, or
            has a batch that cannot be split as asked.
    """
    # Of a Config, the text that was read: each file of it begins with its path.
    bases = re.findall(r"(?m)^/.*/([^/\n]+)\.py$", str(getattr(cfg, "text", "")))
    cfg = as_mapping(cfg)
    max_iters = check_trainable(cfg, source)
    planner = Planner(cfg)
    if old := keys_of_0x(cfg):
        planner.warn("Without effect: {keys}, which mmsegmentation 0.x reads, and 1.x not.", ", ".join(old))
    seed = _seed(cfg, facts)
    planner.set("work_dir", str(facts.work_dir), "where this run writes")
    planner.set("randomness.seed", seed, "without a fixed seed every session walks another order")
    _plan_checkpoint(planner, facts)
    _plan_loops(planner, facts)
    plan_pretrained(planner, facts)
    _plan_fast(planner, facts)
    chose_half = _plan_precision(planner, facts)
    effective, micro = _plan_data(planner, facts, source)
    _plan_batch_of_the_name(planner, (source.stem, *reversed(bases)), effective)
    _plan_metrics(planner, facts)
    norms_in_step = _same_passes(effective, micro, facts.world_size)
    _plan_machine(planner, facts, norms_in_step=norms_in_step)
    _plan_hooks(planner)
    if facts.extend_to is not None:
        max_iters = plan_extension(planner, max_iters, facts.extend_to)
    _plan_imports(planner)
    checkpoint_hook = mapping_or_empty(mapping_or_empty(cfg.get("default_hooks")).get("checkpoint"))
    save_best = checkpoint_hook.get("save_best")
    rules = checkpoint_hook.get("rule")
    names = tuple(as_list(save_best)) if save_best else ()
    by_epoch = bool(checkpoint_hook.get("by_epoch", True))
    val_interval = int(mapping_or_empty(cfg.get("train_cfg")).get("val_interval", 1000) or 0)
    return ConfigPatch(
        source=source,
        changes=tuple(planner.changes),
        warnings=tuple(planner.warnings),
        max_iters=max_iters,
        effective_batch=effective,
        micro_batch=micro,
        num_workers=max(int(planner.get(f"{name}.num_workers", 0) or 0) for name in LOADERS[:2]),
        seed=seed,
        save_interval=0 if by_epoch else max(0, int(checkpoint_hook.get("interval", -1))),
        save_best=names,
        best_rules=dict(zip(names, as_list(rules), strict=False)) if rules else {},
        val_interval=val_interval if cfg.get("val_cfg") is not None else 0,
        fingerprint=fingerprint(cfg),
        precision=_precision_of(planner),
        chose_half=chose_half,
        norms_in_step=norms_in_step,
    )


def apply_patch(cfg: Config, patch: ConfigPatch) -> Config:
    return _with(cfg, patch.changes)


def for_inference(cfg: Config, data_roots: Mapping[str, Path]) -> Config:
    """Return a copy of ``cfg`` whose model can be built, given weights and asked, on one device.

    Unlike :func:`plan` it takes configs that train by epochs, and those without any training.

    Raises:
        ConfigError: It has no model.
    """
    planner = Planner(as_mapping(cfg))
    if not isinstance(planner.get("model"), Mapping):
        raise ConfigError(
            Message("{path} has no model.", cfg.filename), "Give the config that the model was trained with."
        )
    plan_pretrained(planner, PatchContext(work_dir=Path(), action="resume"))
    _plan_roots(planner, data_roots)
    _plan_norms(planner)
    _plan_imports(planner)
    return _with(cfg, planner.changes)


def _with(cfg: Config, changes: Sequence[Change]) -> Config:
    effective = copy.deepcopy(cfg)
    for change in changes:
        change.apply_to(effective, change.key)
    return effective


def write_config(cfg: Config, patch: ConfigPatch, work_dir: Path) -> str:
    """Write ``config.py`` and ``config.diff`` into the work dir; return the config's sha256.

    Raises:
        OSError: The work dir cannot be written.
    """
    files = WorkDir(work_dir)
    text = cfg.pretty_text
    replace_file(files.config, text)
    replace_file(files.config_diff, patch.diff())
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# -- the parts of the plan


def _seed(cfg: Mapping[str, Any], facts: PatchContext) -> int:
    if facts.action == "resume" and facts.checkpoint_seed is not None:
        return facts.checkpoint_seed
    seed = mapping_or_empty(cfg.get("randomness")).get("seed")
    return DEFAULT_SEED if seed is None else int(seed)


def _plan_checkpoint(planner: Planner, facts: PatchContext) -> None:
    if facts.action == "fresh":
        planner.set("load_from", None, "nothing to load: training starts fresh")
        planner.set("resume", False, "training starts fresh")
        return
    planner.set("load_from", str(facts.checkpoint), f"the checkpoint that was chosen ({facts.action})")
    if facts.action == "resume":
        planner.set("resume", True, "with optimizer and schedule")
    else:
        planner.set("resume", False, "weights only: a fresh optimizer, from iteration 0")


def _plan_loops(planner: Planner, facts: PatchContext) -> None:
    planner.set("train_cfg.type", "MapsageTrainLoop", "stops in time, saves and resumes exactly")
    planner.remove("train_cfg.by_epoch", "the loop counts iterations")
    planner.remove("train_cfg.fast_forward_on_resume", "nothing is fast-forwarded: positions are computed")
    val = planner.get("val_cfg")
    if isinstance(val, Mapping) and type_name(val.get("type")) in ("", "ValLoop", _VAL_LOOP):
        planner.set("val_cfg.type", _VAL_LOOP, "the kit's own, which val_cfg.fast makes faster")


def _plan_metrics(planner: Planner, facts: PatchContext) -> None:
    for name in ("val_evaluator", "test_evaluator"):
        found = planner.get(name)
        for index, item in enumerate(as_list(found)):
            if type_name(mapping_or_empty(item).get("type")) == "IoUMetric":
                key = f"{name}.{index}.type" if isinstance(found, list) else f"{name}.type"
                planner.set(key, "MapsageIoUMetric", "counts in whole numbers, the same over any ranks")
    for name in ("val_dataloader", "test_dataloader"):
        if facts.world_size > 1 and planner.get(f"{name}.sampler.round_up", True) is False:
            planner.set(f"{name}.sampler.round_up", True, "all ranks must validate in step")


_FAST = "faster, with the same results"


def _plan_fast(planner: Planner, facts: PatchContext) -> None:
    """Replace stock parts by the kit's faster ones; or those of a config that has them by the stock ones."""
    if not facts.fast:
        _plan_stock(planner)
        return
    scope = str(planner.get("default_scope") or "mmseg")
    cache_dir = None if facts.cache_dir is None else str(facts.cache_dir)
    for name in ("train_dataloader", "val_dataloader"):
        for key, value in list(planner.find(f"{name}.dataset", "pipeline")):
            found = None
            if isinstance(value, (list, tuple)):
                found = replacements.faster_pipeline(value, cache_dir=cache_dir, scope=scope)
            if found is not None:
                planner.set(key, plain_copy(found[0]), found[1])
    for key, value in list(planner.find("model", "type")):
        name = replacements.stock_name(value, scope)
        if name in replacements.FASTER_MODULES:
            planner.set(key, replacements.faster_name(name, scope), f"{_FAST} to rounding")
    optimizer = planner.get("optim_wrapper.optimizer")
    if (
        isinstance(optimizer, Mapping)
        and replacements.has_fused_kind(optimizer.get("type"))
        and not any(key in optimizer for key in HOW_IT_STEPS)
    ):
        planner.set("optim_wrapper.optimizer.fused", True, f"{_FAST} to rounding")
    if type_name(planner.get("val_cfg.type")) == _VAL_LOOP:
        planner.set("val_cfg.fast", True, "the same classes from the same logits in less time")


def _plan_precision(planner: Planner, facts: PatchContext) -> bool:
    """Choose the precision; return whether that is half precision by the kit's choice."""
    kind, asked = type_name(planner.get("optim_wrapper.type")), facts.precision_is_asked
    if kind not in ("", "OptimWrapper", "AmpOptimWrapper"):
        return False  # a person's own wrapper says it in its own way
    if asked and facts.precision == "float32":
        _without_half(planner, "--precision float32")
        return False
    if facts.on_gpu and facts.precision and (asked or kind != "AmpOptimWrapper"):
        reason = f"--precision {facts.precision}" if asked else f"this GPU is faster in {facts.precision}"
        planner.set("optim_wrapper.type", "AmpOptimWrapper", reason)
        _set_half(planner, facts.precision)
        return not asked
    if facts.on_gpu and facts.emulates_bfloat16 and _precision_of(planner) == "bfloat16":
        _set_half(planner, "float16")
        planner.warn(
            "The config asks for bfloat16, which this GPU only emulates, slowly: float16 is computed in."
        )
    return False


def _set_half(planner: Planner, dtype: str) -> None:
    before = _precision_of(planner)
    planner.set("optim_wrapper.dtype", dtype, "what the GPU supports")
    if dtype == "bfloat16":
        planner.set("optim_wrapper.loss_scale", 1.0, "bfloat16 has the range of float32: nothing to scale")
    elif before == "bfloat16" and isinstance(planner.get("optim_wrapper.loss_scale"), float):
        planner.set("optim_wrapper.loss_scale", "dynamic", "float16 needs a scale that follows the gradients")


def _without_half(planner: Planner, reason: str) -> None:
    if type_name(planner.get("optim_wrapper.type")) == "AmpOptimWrapper":
        planner.set("optim_wrapper.type", "OptimWrapper", reason)
        for name in ("dtype", "loss_scale", "use_fsdp"):
            planner.remove(f"optim_wrapper.{name}", reason)


def _precision_of(planner: Planner) -> str:
    if type_name(planner.get("optim_wrapper.type")) != "AmpOptimWrapper":
        return "float32"
    dtype = planner.get("optim_wrapper.dtype")
    return "float16" if dtype is None else str(dtype).rpartition(".")[2]


def _plan_stock(planner: Planner) -> None:
    """Take out the faster parts of a config that was patched before.

    Mixed precision stays: that may be the person's own, and nothing tells.
    """
    num_before = len(planner.changes)
    planner.remove("val_cfg.fast", "--no-fast")
    for name in ("train_dataloader", "val_dataloader"):
        for key, value in list(planner.find(f"{name}.dataset", "pipeline")):
            planner.set(key, replacements.stock(value), "--no-fast")
    for key, value in list(planner.find("model", "type")):
        planner.set(key, replacements.stock({"type": value})["type"], "--no-fast")
    if len(planner.changes) > num_before and planner.get("optim_wrapper.optimizer.fused") is True:
        planner.remove("optim_wrapper.optimizer.fused", "--no-fast")


def _plan_data(planner: Planner, facts: PatchContext, source: Path) -> tuple[int, int]:
    _plan_roots(planner, facts.data_roots)
    loader = mapping_or_empty(planner.get("train_dataloader"))
    effective = effective_batch(loader)
    share = -(-effective // facts.world_size)
    micro = min(share, facts.micro_batch or share)
    if effective < facts.world_size:
        raise ConfigError(
            Message(
                "{source} has a batch of {images} images, too few for {count} GPUs.",
                source,
                effective,
                facts.world_size,
            ),
            Message("Use --gpus {count}, or a larger train_dataloader.batch_size.", effective),
        )
    sampler = mapping_or_empty(loader.get("sampler"))
    kind = type_name(sampler.get("type"))
    if kind not in _KNOWN_SAMPLERS:
        named = kind or "no sampler"
        raise ConfigError(
            Message("{source} samples with {kind}, which the kit cannot place by position.", source, named),
            "Use InfiniteSampler or DefaultSampler; to see some images more often, repeat them.",
        )
    shuffle = bool(sampler.get("shuffle", True))
    planner.set(
        "train_dataloader.sampler",
        {"type": "MapsageOrder", "shuffle": shuffle},
        "the order is computed from seed and position, so that a resume goes on in it",
    )
    planner.set(
        "train_dataloader.batch_sampler",
        {"type": "MapsageBatches", "effective_batch": effective, "micro_batch": micro},
        f"{effective} images an iteration, over {facts.world_size} rank(s), {micro} in a forward pass",
    )
    # What else reads it, a scaled learning rate among it, sees the images of an iteration.
    planner.set("train_dataloader.batch_size", effective, "images an iteration")
    dataset = planner.get("train_dataloader.dataset")
    if type_name(mapping_or_empty(dataset).get("type")) not in WRAPPERS:
        planner.set(
            "train_dataloader.dataset",
            {"type": "MapsagePositional", "dataset": _with_changes(planner, "train_dataloader.dataset"),
             "on_bad_image": facts.on_bad_image, **_labels(planner)},
            "each sample's random draws are seeded from its position",
        )  # fmt: skip
    else:
        for key, value in _labels(planner).items():
            planner.set(
                f"train_dataloader.dataset.{key}", value, "labels beyond the classes are refused by name"
            )
    _plan_readable(planner, facts)
    for name in LOADERS:
        _plan_workers(planner, name, facts)
    _check_shared_memory(planner, facts, micro)
    if facts.validation_rung and planner.get("val_dataloader.batch_size", 1) != 1:
        planner.set("val_dataloader.batch_size", 1, "validation ran out of memory with more images at a time")
    return effective, micro


def _labels(planner: Planner) -> dict[str, int]:
    head = mapping_or_empty(next(iter(as_list(planner.get("model.decode_head"))), None))
    num_classes = head.get("num_classes")
    if not isinstance(num_classes, int) or num_classes < 2:  # of one, 1 tells it and 0 its absence
        return {}
    return {"num_classes": num_classes, "ignore_index": int(head.get("ignore_index", 255))}


def _plan_batch_of_the_name(planner: Planner, names: Sequence[str], effective: int) -> None:
    """Warn of another batch size than a name stands for with several GPUs: ``8xb2``.

    ``names`` are the config's own and those of its bases.
    """
    matches = (re.search(r"(?:^|_)(\d+)xb(\d+)(?:[-_]|$)", name) for name in names)
    match = next((item for item in matches if item is not None), None)
    if match is None:
        return
    gpus, images = int(match[1]), int(match[2])
    scales_rate = mapping_or_empty(planner.get("auto_scale_lr")).get("enable")
    a_step = effective * int(planner.get("optim_wrapper.accumulative_counts", 1) or 1)
    if gpus * images != a_step and images == effective and not scales_rate:
        planner.warn(
            "{name} is written for {gpus} GPUs with {images} images each: its learning rate is "
            "meant for {meant} images an iteration, and here an iteration has {effective}. For "
            "the batch that was meant, set train_dataloader.batch_size={same}; as many at a time "
            "go through the model as memory holds (--micro-batch).",
            f"{match.string}.py",
            gpus,
            images,
            gpus * images,
            effective,
            gpus * images,
        )


def _plan_readable(planner: Planner, facts: PatchContext) -> None:
    """Wrap the validation data, to name or skip damaged images and to refuse labels beyond the classes."""
    dataset = planner.get("val_dataloader.dataset")
    if not isinstance(dataset, Mapping) or type_name(dataset.get("type")) in WRAPPERS:
        return
    evaluators = [mapping_or_empty(item) for item in as_list(planner.get("val_evaluator"))]
    ignored = next((item["ignore_index"] for item in evaluators if "ignore_index" in item), 255)
    by_class = any(type_name(item.get("type")) in _BY_CLASS for item in evaluators)
    labels = {**(_labels(planner) if by_class else {}), "ignore_index": ignored}
    planner.set(
        "val_dataloader.dataset",
        {"type": "MapsageReadable", "dataset": _with_changes(planner, "val_dataloader.dataset"),
         "on_bad_image": facts.on_bad_image, **labels},
        "an image that cannot be loaded is told by its name, or left out where that is asked for",
    )  # fmt: skip


def _plan_roots(planner: Planner, data_roots: Mapping[str, Path]) -> None:
    for name in LOADERS:
        for key, value in list(planner.find(f"{name}.dataset", "data_root")):
            found = data_roots.get(str(value))
            if found is not None and str(found) != str(value):
                planner.set(key, str(found), "the data set as it is mounted here")


def _plan_imports(planner: Planner) -> None:
    imports = as_list(planner.get("custom_imports.imports", []))
    may_fail = bool(planner.get("custom_imports.allow_failed_imports", False))
    if _ENGINE_IMPORT not in imports:
        planner.set(
            "custom_imports",
            {"imports": [*imports, _ENGINE_IMPORT], "allow_failed_imports": may_fail},
            "registers the kit's loops and data sets",
        )


def _same_passes(effective: int, micro: int, world_size: int) -> bool:
    most, least = -(-effective // world_size), effective // world_size
    return -(-most // micro) <= least


def _plan_norms(planner: Planner, reason: str = "SyncBN needs several GPUs") -> bool:
    types = planner.find("model", "type")
    found = [key for key, value in types if type_name(value) in ("SyncBN", "MMSyncBN", "SyncBatchNorm")]
    for key in found:
        planner.set(key, "BN", f"{reason}; BN has the same parameters")
    return bool(found)


def _plan_workers(planner: Planner, name: str, facts: PatchContext) -> None:
    """Give a data loader no more workers than there are cores, and without any, nothing that needs them."""
    loader = planner.get(name)
    if not isinstance(loader, Mapping):
        return
    workers = int(loader.get("num_workers", 0) or 0)
    most = facts.num_cpus // facts.ranks_here
    reason = f"{facts.num_cpus} CPU cores, {facts.ranks_here} rank(s)"
    if facts.most_workers is not None and facts.most_workers < most:
        most, reason = facts.most_workers, "more found no shared memory"
    if workers > most:
        planner.set(f"{name}.num_workers", most, reason)
        workers = most
    if workers == 0:
        planner.remove(f"{name}.prefetch_factor", "needs data workers")
        if loader.get("persistent_workers"):
            planner.set(f"{name}.persistent_workers", False, "needs data workers")
    if facts.on_gpu and "pin_memory" not in loader:
        planner.set(f"{name}.pin_memory", True, "a GPU copies from pinned memory while it computes")


def _check_shared_memory(planner: Planner, facts: PatchContext, micro: int) -> None:
    """Warn where what the data workers hold ready for training does not fit into shared memory."""
    workers = int(planner.get("train_dataloader.num_workers", 0) or 0)
    crop = next((value for _, value in planner.find("train_dataloader.dataset", "crop_size")), None)
    if facts.shared_bytes is None or not workers or not isinstance(crop, (list, tuple)):
        return
    ahead = int(planner.get("train_dataloader.prefetch_factor", 0) or 2)
    needed = facts.ranks_here * workers * ahead * micro * int(crop[0]) * int(crop[1]) * _PIXEL_BYTES
    if needed > facts.shared_bytes:
        planner.warn(
            "The data workers hold up to {needed} MB ready in shared memory, and /dev/shm has "
            "{there} MB: they may be killed for it. Set fewer (num_workers), or give the "
            "container more (--shm-size).",
            f"{needed / 1e6:.0f}",
            f"{facts.shared_bytes / 1e6:.0f}",
        )


def _with_changes(planner: Planner, key: str) -> Any:
    prefix = f"{key}."
    inner = plain_copy(planner.get(key))
    for change in planner.changes:
        if change.key.startswith(prefix):
            change.apply_to(inner, change.key.removeprefix(prefix))
    return inner


def _plan_machine(planner: Planner, facts: PatchContext, *, norms_in_step: bool) -> None:
    if not facts.on_gpu:
        _without_half(planner, "mixed precision needs a GPU")
    backend = planner.get("env_cfg.dist_cfg.backend")
    wanted = "nccl" if facts.on_gpu else "gloo"
    if backend != wanted:
        planner.set("env_cfg.dist_cfg.backend", wanted, "GPUs talk by NCCL, CPUs by gloo")
    if not facts.on_gpu or facts.world_size == 1:
        _plan_norms(planner)
    elif not norms_in_step and _plan_norms(planner, "SyncBN needs as many passes on each GPU"):
        planner.warn(
            "The batch cannot be split into as many forward passes on each GPU, for which SyncBN would wait "
            "for ever: BN takes its place, with statistics of each GPU's own images. A batch size that the "
            "number of GPUs divides keeps SyncBN."
        )
    if facts.deterministic:
        planner.set("randomness.deterministic", True, "--deterministic")
        planner.set("env_cfg.cudnn_benchmark", False, "--deterministic")
    elif (
        facts.on_gpu
        and planner.get("env_cfg.cudnn_benchmark") is None
        and planner.get("model.data_preprocessor.size")
    ):
        planner.set("env_cfg.cudnn_benchmark", True, "every crop has the same size")
    if facts.with_cp:
        planner.set("model.backbone.with_cp", True, "recomputes blocks in the backward pass to save memory")


def _plan_hooks(planner: Planner) -> None:
    if planner.get("default_hooks.checkpoint", MISSING) is not None:
        planner.set("default_hooks.checkpoint", None, "the kit saves, proves and keeps checkpoints itself")
    if planner.get("default_hooks.sampler_seed", MISSING) is not None:
        planner.set("default_hooks.sampler_seed", None, "the order needs no epochs")
