"""From a person's training config to the one that runs: a patch of dotted keys, each with its reason."""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle import swaps
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.paths import WorkDir, replace_file

if TYPE_CHECKING:
    from mmengine.config import Config

DEFAULT_SEED = 0
_ENGINE_IMPORT = "mapsage_kaggle.engine.register"
_MISSING = object()

_EPOCH_LOOPS = ("EpochBasedTrainLoop",)
_ITERATION_LOOPS = ("IterBasedTrainLoop", "MapsageTrainLoop")
_KNOWN_SAMPLERS = ("InfiniteSampler", "DefaultSampler", "MapsageOrder")
_VAL_LOOP = "MapsageValLoop"
_WRAPPERS = ("MapsagePositional", "MapsageReadable")
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

_WHERE = frozenset({"data_root", "work_dir", "cache_dir", "load_from", "resume", "launcher", "init_cfg"})
"""Keys that say where things lie, and what a resume leaves out: no change that a person has made."""
_FINGERPRINT_VERSION = 1
_NOT_IN_FINGERPRINT = frozenset(
    {
        "data_root", "data_prefix", "ann_file", "img_dir", "ann_dir", "indices", "backend_args",
        "file_client_args", "init_cfg", "pretrained", "with_cp", "lazy_init", "serialize_data",
        "imdecode_backend", "_scope_",
    }
)  # fmt: skip
"""Keys that say where things lie or how they are run, not what is trained."""
_HOW_IT_STEPS = frozenset({"fused", "foreach", "capturable"})
"""Options of an optimizer that choose between ways to compute the same step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One key that the patch sets or removes.

    Attributes:
        key: Dotted, as ``--set`` takes it; list items by their number.
        old: What the config says; None where it says nothing.
        new: What will run; None where the key is removed.
        reason: Why, in a few words.
        removed: Whether the key is removed.
        added: Whether the config did not have the key.
    """

    key: str
    old: Any
    new: Any
    reason: str
    removed: bool = False
    added: bool = False


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
        seed: Of the run.
        save_interval: Iterations between checkpoints, as the config asks.
        save_best: Metrics of which the best checkpoint is kept.
        best_rules: ``greater`` or ``less`` by metric, where the config says so.
        val_interval: Iterations between validations; 0 where the config does not validate.
        fingerprint: What makes two configs the same run.
        exactness: What keeps a resume from being exact, one line each; empty where nothing does.
        split: What makes the batch, split over ranks and micro-batches, differ from one in a single
            pass by more than rounding, one line each; empty also where it is not split.
    """

    source: Path
    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()
    max_iters: int
    effective_batch: int
    micro_batch: int
    seed: int
    save_interval: int
    save_best: tuple[str, ...]
    best_rules: Mapping[str, str] = field(default_factory=dict)
    val_interval: int
    fingerprint: str
    exactness: tuple[str, ...] = ()
    split: tuple[str, ...] = ()

    def diff(self) -> str:
        """Return the changes as a unified diff of dotted keys."""
        lines = [f"--- {self.source}", "+++ effective config"]
        for item in self.changes:
            lines.append(f"@@ {item.key}: {item.reason} @@")
            if not item.added:
                lines.append("-" + _line(item.key, item.old))
            if not item.removed:
                lines.append("+" + _line(item.key, item.new))
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the patch has to take into account beyond the config.

    Attributes:
        work_dir: Where the run writes.
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
            :data:`mapsage_kaggle.supervise.VALIDATION_RUNGS`.
        fast: Whether stock parts are replaced by the kit's faster ones.
        cache_dir: Where those keep decoded images; None to keep none.
        precision: ``float16`` or ``bfloat16`` where the GPUs compute in it faster; empty where not.
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


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read an mmengine config and apply ``--set key=value`` overrides.

    Args:
        path: The config file, which is Python and is executed: a person's own.
        overrides: ``key=value`` with dotted keys, values as mmengine's ``--cfg-options`` takes them.

    Raises:
        ConfigError: It is missing, does not parse, or an override is no ``key=value``.
    """
    from mmengine.config import Config, DictAction

    if not path.is_file():
        raise ConfigError(f"There is no config at {path}.", "Give the path of an mmengine config (.py).")
    try:
        # Its custom modules may need torch, and are imported in the child.
        cfg = Config.fromfile(path, import_custom_modules=False)
    except (Exception, SystemExit) as error:  # a config is a program and may raise anything
        raise ConfigError(
            f"{path} does not parse as an mmengine config: {type(error).__name__}: {_first_line(error)}.",
            "Check the named line, and that every file in _base_ is there.",
        ) from error
    options: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"--set {override!r} is not key=value.", "Write it as optim_wrapper.optimizer.lr=1e-4."
            )
        try:
            options[key.strip()] = DictAction._parse_iterable(value.strip())
        except (AssertionError, ValueError, IndexError) as error:
            raise ConfigError(
                f"--set {override!r} has a value that cannot be read: {_first_line(error)}.",
                "Lists are written as [1,2], tuples as (1,2), without spaces.",
            ) from error
    try:
        cfg.merge_from_dict(options)
    except (TypeError, KeyError, AssertionError, IndexError) as error:
        raise ConfigError(
            f"--set {' '.join(overrides)} does not fit {path}: {_first_line(error)}.",
            "Compare the dotted keys with the config; items of lists are counted from 0.",
        ) from error
    return cfg


def plan(cfg: Mapping[str, Any] | Config, source: Path, facts: Facts) -> ConfigPatch:
    """Decide what has to change for ``cfg`` to run here. Reads nothing, writes nothing.

    Args:
        cfg: The config, as a (nested) mapping.
        source: Where it came from, for messages and the diff.
        facts: What is known of this machine and session.

    Raises:
        ConfigError: The kit cannot run it: it trains by epochs, has no training loop or data, or
            has a batch that cannot be split as asked.
    """
    cfg = as_mapping(cfg)
    max_iters = check_trainable(cfg, source)
    planner = _Planner(cfg)
    seed = _seed(cfg, facts)
    planner.set("work_dir", str(facts.work_dir), "where this run writes")
    planner.set("randomness.seed", seed, "without a fixed seed every session walks another order")
    _plan_checkpoint(planner, facts)
    _plan_loops(planner, facts)
    _plan_pretrained(planner, facts)
    _plan_fast(planner, facts)
    effective, micro = _plan_data(planner, facts, source)
    _plan_metrics(planner, facts)
    _plan_machine(planner, facts)
    _plan_hooks(planner)
    if facts.extend_to is not None:
        max_iters = _plan_extension(planner, max_iters, facts.extend_to)
    _plan_imports(planner)
    checkpoint_hook = _mapping(_mapping(cfg.get("default_hooks")).get("checkpoint"))
    save_best = checkpoint_hook.get("save_best")
    rules = checkpoint_hook.get("rule")
    names = tuple(_as_list(save_best)) if save_best else ()
    by_epoch = bool(checkpoint_hook.get("by_epoch", True))
    val_interval = int(_mapping(cfg.get("train_cfg")).get("val_interval", 1000) or 0)
    return ConfigPatch(
        source=source,
        changes=tuple(planner.changes),
        warnings=tuple(planner.warnings),
        max_iters=max_iters,
        effective_batch=effective,
        micro_batch=micro,
        seed=seed,
        save_interval=0 if by_epoch else max(0, int(checkpoint_hook.get("interval", -1))),
        save_best=names,
        best_rules=dict(zip(names, _as_list(rules), strict=False)) if rules else {},
        val_interval=val_interval if cfg.get("val_cfg") is not None else 0,
        fingerprint=fingerprint(cfg),
        exactness=tuple(planner.exactness),
        split=split_differences(cfg["model"], world_size=facts.world_size if facts.on_gpu else 1)
        if micro < effective
        else (),
    )


def apply(cfg: Config, patch: ConfigPatch) -> Config:
    """Return a copy of ``cfg`` with the patch applied."""
    return _with(cfg, patch.changes)


def for_inference(cfg: Config, data_roots: Mapping[str, Path]) -> Config:
    """Return a copy of ``cfg`` whose model can be built, given weights and asked, on one device.

    Unlike :func:`plan` it takes configs that train by epochs, and those without any training.

    Args:
        cfg: The config.
        data_roots: The folder found for a ``data_root`` of the config.

    Raises:
        ConfigError: It has no model.
    """
    planner = _Planner(as_mapping(cfg))
    if not isinstance(planner.get("model"), Mapping):
        raise ConfigError(f"{cfg.filename} has no model.", "Give the config that the model was trained with.")
    _plan_pretrained(planner, Facts(work_dir=Path(), action="resume"))
    _plan_roots(planner, data_roots)
    _plan_norms(planner)
    _plan_imports(planner)
    return _with(cfg, planner.changes)


def _with(cfg: Config, changes: Sequence[Change]) -> Config:
    effective = copy.deepcopy(cfg)
    for change in changes:
        *parents, last = change.key.split(".")
        node: Any = effective
        for name in parents:
            if isinstance(node, (list, tuple)):
                node = node[int(name)]
                continue
            if name not in node or node[name] is None:
                node[name] = {}
            node = node[name]
        if change.removed:
            node.pop(last, None)
        elif isinstance(node, list):
            node[int(last)] = copy.deepcopy(change.new)
        else:
            node[last] = copy.deepcopy(change.new)
    return effective


def write(cfg: Config, patch: ConfigPatch, work_dir: Path) -> str:
    """Write ``config.py`` and ``config.diff`` into the work dir; return the config's sha256.

    Raises:
        OSError: The work dir cannot be written.
    """
    files = WorkDir(work_dir)
    text = cfg.pretty_text
    replace_file(files.config, text)
    replace_file(files.config_diff, patch.diff())
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def changes_between(before: str, after: str) -> tuple[str, ...]:
    """Return what differs between two configs as they were written, by dotted key.

    Where they lie and how they were launched is no difference: mounts move from session to session.

    Args:
        before: The text of an earlier session's ``config.py``. It is read, never run.
        after: The same of this session.

    Returns:
        Lines ``-key = value`` for what has gone and ``+key = value`` for what has come; lines of the
        texts where one of them holds more than values.
    """
    try:
        old, new = dict(_values_in(_literal_config(before))), dict(_values_in(_literal_config(after)))
    except (SyntaxError, ValueError):
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
        return tuple(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    told: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        if _WHERE & set(key.split(".")) or old.get(key, _MISSING) == new.get(key, _MISSING):
            continue
        told += [f"-{_line(key, old[key])}"] if key in old else []
        told += [f"+{_line(key, new[key])}"] if key in new else []
    return tuple(told)


def written_value(text: str, key: str) -> Any:
    """Return the value of a dotted key in a config as it was written, which is read and never run.

    Returns:
        The value, ``dict(…)`` as a dict; None where there is none, or the text holds more than values.
    """
    try:
        return value_at(_literal_config(text), key)
    except (SyntaxError, ValueError):
        return None


def _literal_config(text: str) -> dict[str, Any]:
    """Read a config that only assigns values, ``dict(…)`` among them.

    Raises:
        SyntaxError: It is not Python.
        ValueError: It holds anything else.
    """
    found: dict[str, Any] = {}
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise ValueError(f"line {statement.lineno} is no assignment to a name")
        found[statement.targets[0].id] = _literal(statement.value)
    return found


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {str(item.arg): _literal(item.value) for item in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError(f"line {node.lineno} takes a dict apart")
        return {
            str(ast.literal_eval(key)): _literal(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    return ast.literal_eval(node)


def _values_in(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of all that holds no mapping."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _values_in(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list) and any(isinstance(item, (Mapping, list)) for item in node):
        for index, value in enumerate(node):
            yield from _values_in(value, f"{key}.{index}")
    else:
        yield key, node


# -- the fingerprint


def fingerprint(cfg: Mapping[str, Any] | Config) -> str:
    """Return 16 hex digits that two configs share when they are the same run.

    What counts: model, data set type and classes, training pipeline, optimizer, effective batch
    and seed. What does not: paths, workers, hooks, limits, precision, micro-batch, ``max_iters``,
    whether norms are synchronised, and whether the kit's faster parts stand in for stock ones.
    """
    cfg = as_mapping(cfg)
    loader = _mapping(cfg.get("train_dataloader"))
    dataset = _without_wrappers(_mapping(swaps.stock(loader.get("dataset"))))
    optim = _mapping(cfg.get("optim_wrapper"))
    optimizer = {
        key: value for key, value in _mapping(optim.get("optimizer")).items() if key not in _HOW_IT_STEPS
    }
    document = {
        "version": _FINGERPRINT_VERSION,
        "model": _canonical(swaps.stock(cfg.get("model"))),
        "dataset": _canonical({key: value for key, value in dataset.items() if key != "pipeline"}),
        "pipeline": _canonical(dataset.get("pipeline", [])),
        "optimizer": _canonical(
            {
                "optimizer": optimizer or None,
                **{key: optim.get(key) for key in ("paramwise_cfg", "clip_grad", "constructor")},
            }
        ),
        "effective_batch": _effective_batch(loader) * int(optim.get("accumulative_counts", 1) or 1),
        "seed": _mapping(cfg.get("randomness")).get("seed") or DEFAULT_SEED,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _canonical(_type_name(item) if key == "type" else item)
            for key, item in value.items()
            if key not in _NOT_IN_FINGERPRINT and item is not None
        }
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if value in ("SyncBN", "MMSyncBN"):
        return "BN"
    if isinstance(value, (str, int, bool)):
        return value.rpartition("::")[2] if isinstance(value, str) else value
    if isinstance(value, float):
        return repr(value)
    return getattr(value, "__qualname__", None) or repr(value)


# -- what splitting a batch changes

_DROPS = ("drop_rate", "attn_drop_rate", "drop_path_rate", "dropout_ratio", "proj_drop_rate")
_DROP_DEFAULTS = {"SwinTransformer": ("drop_path_rate", 0.1)}
_HEAD_DROPOUT = 0.1
"""What mmsegmentation's heads take where the config is silent."""
_BATCH_NORMS = ("BN", "BN1d", "BN2d", "BN3d", "SyncBN", "MMSyncBN", "NaiveSyncBatchNorm2d")
_SPLITTABLE_LOSSES = ("CrossEntropyLoss", "FocalLoss", "DiceLoss")


def split_differences(model: Mapping[str, Any], *, world_size: int = 1) -> tuple[str, ...]:
    """Return what makes a step over a split batch differ from the whole one by more than rounding.

    What is left after that: per-sample norms and per-pixel losses, which the kit weights with
    their own normaliser.

    Args:
        model: The config's model.
        world_size: Ranks, over which SyncBN looks at once.
    """
    found: list[str] = []
    drops = {f"{key} = {value}" for name in _DROPS for key, value in _find(model, "model", name) if value}
    backbone = _mapping(model.get("backbone"))
    name, rate = _DROP_DEFAULTS.get(_type_name(backbone.get("type")), ("", 0.0))
    if name and rate and name not in backbone:
        drops.add(f"model.backbone.{name} = {rate} by default")
    heads = [*_as_list(model.get("decode_head")), *_as_list(model.get("auxiliary_head"))]
    if any("dropout_ratio" not in _mapping(head) for head in heads):
        drops.add(f"dropout_ratio = {_HEAD_DROPOUT} of the heads by default")
    if drops:
        found.append(f"dropout draws by rank and micro-batch: {', '.join(sorted(drops))}")
    norms = {str(_type_name(value)) for _, value in _find(model, "model", "type") if isinstance(value, str)}
    if norms & set(_BATCH_NORMS) or _type_name(backbone.get("type")).startswith("ResNet"):
        seen = "all ranks' parts" if world_size > 1 and norms & {"SyncBN", "MMSyncBN"} else "its own part"
        found.append(f"batch norm takes its statistics from {seen} of the batch in one forward pass")
    losses = [
        _mapping(loss)
        for _, value in _find(model, "model", "loss_decode")
        for loss in (value if isinstance(value, (list, tuple)) else [value])
    ]
    unknown = sorted(
        {
            _type_name(loss.get("type"))
            for loss in losses
            if _type_name(loss.get("type")) not in _SPLITTABLE_LOSSES
            and not (_type_name(loss.get("type")) == "LovaszLoss" and loss.get("per_image"))
        }
    )
    if unknown:
        found.append(f"{', '.join(unknown)} may look at the whole batch; it is weighted by images")
    if any(_mapping(head).get("sampler") for head in heads):
        found.append("the pixel sampler chooses within its own part of the batch")
    return tuple(found)


# -- the parts of the plan


class _Planner:
    """Collects changes, and answers what a key would be with those so far."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self._cfg = cfg
        self.changes: list[Change] = []
        self.warnings: list[str] = []
        self.exactness: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        value = self._lookup(key)
        return default if value is _MISSING else value

    def set(self, key: str, new: Any, reason: str) -> None:
        old = self._lookup(key)
        if old is not _MISSING and _plain(old) == _plain(new) and type(old) is type(new):
            return
        self.changes.append(
            Change(
                key=key,
                old=None if old is _MISSING else old,
                new=new,
                reason=reason,
                added=old is _MISSING,
            )
        )

    def remove(self, key: str, reason: str) -> None:
        old = self._lookup(key)
        if old is not _MISSING:
            self.changes.append(Change(key=key, old=old, new=None, reason=reason, removed=True))

    def _lookup(self, key: str) -> Any:
        for change in reversed(self.changes):
            if change.key == key:
                return _MISSING if change.removed else change.new
        return _walk(self._cfg, key)

    def find(self, prefix: str, name: str) -> Iterator[tuple[str, Any]]:
        """Yield each key ``…name`` below ``prefix`` with its value, outermost first."""
        yield from _find(self.get(prefix), prefix, name)


def check_trainable(cfg: Mapping[str, Any] | Config, source: Path) -> int:
    """Return ``max_iters`` of a config that the kit can train.

    Raises:
        ConfigError: It trains by epochs, or has no training loop, model, data or optimizer.
    """
    cfg = as_mapping(cfg)
    train = cfg.get("train_cfg")
    if not isinstance(train, Mapping):
        raise ConfigError(
            f"{source} has no training loop (train_cfg).",
            "Add train_cfg = dict(type='IterBasedTrainLoop', max_iters=…, val_interval=…).",
        )
    kind = _type_name(train.get("type"))
    by_epoch = kind in _EPOCH_LOOPS or (not kind and train.get("by_epoch", True))
    if by_epoch or "max_epochs" in train:
        raise ConfigError(
            f"{source} trains by epochs ({kind or 'by_epoch=True'}, max_epochs={train.get('max_epochs')}); "
            "the kit cuts a run between iterations and needs an iteration-based loop.",
            "Set train_cfg = dict(type='IterBasedTrainLoop', max_iters=…) and by_epoch=False in the "
            "schedulers and the checkpoint hook; one epoch is (images / batch size) iterations.",
        )
    if kind and kind not in _ITERATION_LOOPS:
        raise ConfigError(
            f"{source} has a training loop of its own ({kind}).",
            "The kit runs IterBasedTrainLoop; what your loop does beyond it can be a hook (custom_hooks).",
        )
    max_iters = train.get("max_iters")
    if not isinstance(max_iters, int) or isinstance(max_iters, bool) or max_iters <= 0:
        raise ConfigError(f"{source}: train_cfg.max_iters is {max_iters!r}; a positive number is needed.")
    for key in ("model", "train_dataloader", "optim_wrapper"):
        if not isinstance(cfg.get(key), Mapping):
            raise ConfigError(f"{source} has no {key}.", "It is no complete training config.")
    return max_iters


def _seed(cfg: Mapping[str, Any], facts: Facts) -> int:
    if facts.action == "resume" and facts.checkpoint_seed is not None:
        return facts.checkpoint_seed
    seed = _mapping(cfg.get("randomness")).get("seed")
    return DEFAULT_SEED if seed is None else int(seed)


def _plan_checkpoint(planner: _Planner, facts: Facts) -> None:
    if facts.action == "fresh":
        planner.set("load_from", None, "nothing to load: training starts fresh")
        planner.set("resume", False, "training starts fresh")
        return
    planner.set("load_from", str(facts.checkpoint), f"the checkpoint that was chosen ({facts.action})")
    planner.set(
        "resume",
        facts.action == "resume",
        "with optimizer and schedule"
        if facts.action == "resume"
        else "weights only: a fresh optimizer, from iteration 0",
    )


def _plan_loops(planner: _Planner, facts: Facts) -> None:
    planner.set("train_cfg.type", "MapsageTrainLoop", "stops in time, saves and resumes exactly")
    planner.remove("train_cfg.by_epoch", "the loop counts iterations")
    planner.remove("train_cfg.fast_forward_on_resume", "nothing is fast-forwarded: positions are computed")
    val = planner.get("val_cfg")
    if isinstance(val, Mapping) and _type_name(val.get("type")) in ("", "ValLoop", _VAL_LOOP):
        planner.set("val_cfg.type", _VAL_LOOP, "the kit's own, which val_cfg.fast makes faster")


def _plan_metrics(planner: _Planner, facts: Facts) -> None:
    for name in ("val_evaluator", "test_evaluator"):
        found = planner.get(name)
        for index, item in enumerate(_as_list(found)):
            if _type_name(_mapping(item).get("type")) == "IoUMetric":
                key = f"{name}.{index}.type" if isinstance(found, list) else f"{name}.type"
                planner.set(key, "MapsageIoUMetric", "counts in whole numbers, the same over any ranks")
    for name in ("val_dataloader", "test_dataloader"):
        if facts.world_size > 1 and planner.get(f"{name}.sampler.round_up", True) is False:
            planner.set(f"{name}.sampler.round_up", True, "all ranks must validate in step")


def _plan_pretrained(planner: _Planner, facts: Facts) -> None:
    for key, value in list(planner.find("model", "init_cfg")):
        if isinstance(value, Mapping):
            _plan_initialiser(planner, facts, key, value)
        elif isinstance(value, (list, tuple)):
            kept = [_initialiser(planner, facts, item) for item in value]
            kept = [item for item in kept if item is not None]
            planner.set(key, kept or None, _weights_reason(facts))
    for key in ("model.pretrained", "model.backbone.pretrained"):
        name = planner.get(key)
        if isinstance(name, str) and name:
            found = _weights(planner, facts, name)
            planner.set(key, found, _weights_reason(facts, found))


def _plan_initialiser(planner: _Planner, facts: Facts, key: str, value: Mapping[str, Any]) -> None:
    kept = _initialiser(planner, facts, value)
    if kept is None:
        planner.set(key, None, _weights_reason(facts))
    elif kept is not value:
        planner.set(f"{key}.checkpoint", kept["checkpoint"], _weights_reason(facts, kept["checkpoint"]))


def _initialiser(planner: _Planner, facts: Facts, value: Any) -> Any:
    """Return an ``init_cfg`` with its weights where they were found; None where it goes."""
    if not isinstance(value, Mapping) or _type_name(value.get("type")) != "Pretrained":
        return value
    found = _weights(planner, facts, str(value.get("checkpoint")))
    return None if found is None else {**value, "checkpoint": found}


def _weights(planner: _Planner, facts: Facts, name: str) -> str | None:
    """Return where pretrained weights lie; None, with a warning if they would be needed, if nowhere."""
    if facts.action != "fresh":
        return None
    found = facts.pretrained.get(name)
    if found is None:
        planner.warnings.append(
            f"Pretrained weights {weights_files(name)[0]} are not attached: the backbone starts from "
            "scratch, which costs accuracy. Attach a data set that holds the file, under any folder, and "
            "start again."
        )
    return None if found is None else str(found)


def _weights_reason(facts: Facts, found: str | None = None) -> str:
    if facts.action != "fresh":
        return "the checkpoint holds these weights already"
    return "the attached file of that name" if found is not None else "where the attached files are"


_FAST = "faster, with the same results"


def _plan_fast(planner: _Planner, facts: Facts) -> None:
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
                found = swaps.faster_pipeline(value, cache_dir=cache_dir, scope=scope)
            if found is not None:
                planner.set(key, _plain_config(found[0]), found[1])
    for key, value in list(planner.find("model", "type")):
        name = swaps.stock_name(value, scope)
        if name in swaps.FASTER_MODULES:
            planner.set(key, swaps.faster_name(name, scope), f"{_FAST} to rounding")
    optimizer = planner.get("optim_wrapper.optimizer")
    if (
        isinstance(optimizer, Mapping)
        and swaps.has_fused_kind(optimizer.get("type"))
        and not any(key in optimizer for key in _HOW_IT_STEPS)
    ):
        planner.set("optim_wrapper.optimizer.fused", True, f"{_FAST} to rounding")
    if _type_name(planner.get("val_cfg.type")) == _VAL_LOOP:
        planner.set("val_cfg.fast", True, "the same classes from the same logits in less time")
    _plan_precision(planner, facts)


def _plan_precision(planner: _Planner, facts: Facts) -> None:
    """Compute in half precision on GPUs that are faster in it, where the config does not say how."""
    kind = _type_name(planner.get("optim_wrapper.type"))
    if not (facts.on_gpu and facts.precision and kind in ("", "OptimWrapper")):
        return
    planner.set(
        "optim_wrapper.type",
        "AmpOptimWrapper",
        f"this GPU is faster in {facts.precision}",
    )
    planner.set("optim_wrapper.dtype", facts.precision, "what the GPU supports")
    if facts.precision == "bfloat16":
        planner.set("optim_wrapper.loss_scale", 1.0, "bfloat16 has the range of float32: nothing to scale")


def _plan_stock(planner: _Planner) -> None:
    """Take out the faster parts of a config that was patched before.

    Mixed precision stays: that may be the person's own, and nothing tells.
    """
    num_before = len(planner.changes)
    planner.remove("val_cfg.fast", "--no-fast")
    for name in ("train_dataloader", "val_dataloader"):
        for key, value in list(planner.find(f"{name}.dataset", "pipeline")):
            planner.set(key, swaps.stock(value), "--no-fast")
    for key, value in list(planner.find("model", "type")):
        planner.set(key, swaps.stock({"type": value})["type"], "--no-fast")
    if len(planner.changes) > num_before and planner.get("optim_wrapper.optimizer.fused") is True:
        planner.remove("optim_wrapper.optimizer.fused", "--no-fast")


def _plan_data(planner: _Planner, facts: Facts, source: Path) -> tuple[int, int]:
    _plan_roots(planner, facts.data_roots)
    loader = _mapping(planner.get("train_dataloader"))
    effective = _effective_batch(loader)
    share = -(-effective // facts.world_size)
    micro = min(share, facts.micro_batch or share)
    if effective < facts.world_size:
        raise ConfigError(
            f"{source} has a batch of {effective} images, too few for {facts.world_size} GPUs.",
            f"Use --gpus {effective}, or a larger train_dataloader.batch_size.",
        )
    sampler = _mapping(loader.get("sampler"))
    kind = _type_name(sampler.get("type"))
    if kind not in _KNOWN_SAMPLERS:
        raise ConfigError(
            f"{source} samples with {kind or 'no sampler'}, which the kit cannot place by position.",
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
        {"type": "MapsageBatches", "effective_batch": effective},
        f"{effective} images an iteration, over {facts.world_size} rank(s)",
    )
    planner.set("train_dataloader.batch_size", micro, "images per forward pass and rank")
    dataset = planner.get("train_dataloader.dataset")
    if _type_name(_mapping(dataset).get("type")) not in _WRAPPERS:
        planner.set(
            "train_dataloader.dataset",
            {"type": "MapsagePositional", "dataset": _with_changes(planner, "train_dataloader.dataset"),
             "on_bad_image": facts.on_bad_image},
            "each sample's random draws are seeded from its position",
        )  # fmt: skip
    _plan_readable(planner, facts)
    for name in _LOADERS:
        _plan_workers(planner, name, facts)
    if facts.validation_rung and planner.get("val_dataloader.batch_size", 1) != 1:
        planner.set("val_dataloader.batch_size", 1, "validation ran out of memory with more images at a time")
    return effective, micro


def _plan_readable(planner: _Planner, facts: Facts) -> None:
    """Have damaged validation images told by name, or left out."""
    dataset = planner.get("val_dataloader.dataset")
    if not isinstance(dataset, Mapping) or _type_name(dataset.get("type")) in _WRAPPERS:
        return
    evaluators = _as_list(planner.get("val_evaluator"))
    ignored = next(
        (item["ignore_index"] for item in map(_mapping, evaluators) if "ignore_index" in item), 255
    )
    planner.set(
        "val_dataloader.dataset",
        {"type": "MapsageReadable", "dataset": _with_changes(planner, "val_dataloader.dataset"),
         "on_bad_image": facts.on_bad_image, "ignore_index": ignored},
        "an image that cannot be loaded is told by its name, or left out where that is asked for",
    )  # fmt: skip


def _plan_roots(planner: _Planner, data_roots: Mapping[str, Path]) -> None:
    for name in _LOADERS:
        for key, value in list(planner.find(f"{name}.dataset", "data_root")):
            found = data_roots.get(str(value))
            if found is not None and str(found) != str(value):
                planner.set(key, str(found), "the data set as it is mounted here")


def _plan_imports(planner: _Planner) -> None:
    imports = _as_list(planner.get("custom_imports.imports", []))
    if _ENGINE_IMPORT not in imports:
        planner.set(
            "custom_imports",
            {"imports": [*imports, _ENGINE_IMPORT], "allow_failed_imports": False},
            "registers the kit's loops and data sets",
        )


def _plan_norms(planner: _Planner) -> None:
    for key, value in list(planner.find("model", "type")):
        if _type_name(value) in ("SyncBN", "MMSyncBN"):
            planner.set(key, "BN", "SyncBN needs several GPUs; BN has the same parameters")


def _plan_workers(planner: _Planner, name: str, facts: Facts) -> None:
    """Give a data loader no more workers than there are cores, and without any, nothing that needs them."""
    loader = planner.get(name)
    if not isinstance(loader, Mapping):
        return
    workers = int(loader.get("num_workers", 0) or 0)
    most = max(0, facts.num_cpus // facts.ranks_here)
    if workers > most:
        planner.set(f"{name}.num_workers", most, f"{facts.num_cpus} CPU cores for {facts.ranks_here} rank(s)")
        workers = most
    if workers == 0:
        planner.remove(f"{name}.prefetch_factor", "needs data workers")
        if loader.get("persistent_workers"):
            planner.set(f"{name}.persistent_workers", False, "needs data workers")


def _effective_batch(loader: Mapping[str, Any]) -> int:
    """Return the images of an iteration, also of a data loader that the kit has patched before."""
    batches = _mapping(loader.get("batch_sampler"))
    return int(batches.get("effective_batch") or loader.get("batch_size", 1))


def _with_changes(planner: _Planner, key: str) -> Any:
    """Return a data set's config with the changes planned below it, which move into it."""
    prefix = f"{key}."
    inner = _plain_config(planner.get(key))
    for change in [item for item in planner.changes if item.key.startswith(prefix)]:
        *parents, last = change.key[len(prefix) :].split(".")
        node = inner
        for name in parents:
            node = node[int(name)] if isinstance(node, (list, tuple)) else node[name]
        node[int(last) if isinstance(node, list) else last] = change.new
    return inner


def _plan_machine(planner: _Planner, facts: Facts) -> None:
    optim_type = _type_name(planner.get("optim_wrapper.type"))
    if optim_type == "AmpOptimWrapper" and not facts.on_gpu:
        planner.set("optim_wrapper.type", "OptimWrapper", "mixed precision needs a GPU")
        for name in ("dtype", "loss_scale", "use_fsdp"):
            planner.remove(f"optim_wrapper.{name}", "mixed precision needs a GPU")
    backend = planner.get("env_cfg.dist_cfg.backend")
    wanted = "nccl" if facts.on_gpu else "gloo"
    if backend != wanted:
        planner.set("env_cfg.dist_cfg.backend", wanted, "GPUs talk by NCCL, CPUs by gloo")
    if not facts.on_gpu or facts.world_size == 1:
        _plan_norms(planner)
    if facts.deterministic:
        planner.set("randomness.deterministic", True, "--deterministic")
        planner.set("env_cfg.cudnn_benchmark", False, "--deterministic")
    if facts.with_cp:
        planner.set("model.backbone.with_cp", True, "recomputes blocks in the backward pass to save memory")


def _plan_hooks(planner: _Planner) -> None:
    if planner.get("default_hooks.checkpoint", _MISSING) is not None:
        planner.set("default_hooks.checkpoint", None, "the kit saves, proves and keeps checkpoints itself")
    if planner.get("default_hooks.sampler_seed", _MISSING) is not None:
        planner.set("default_hooks.sampler_seed", None, "the order needs no epochs")


def _plan_extension(planner: _Planner, max_iters: int, extend_to: int) -> int:
    if extend_to < max_iters:
        raise ConfigError(
            f"--extend-to {extend_to} is below the config's max_iters ({max_iters}).",
            "It sets a new, later end for the schedule; to stop earlier, stop the session.",
        )
    planner.set("train_cfg.max_iters", extend_to, "--extend-to")
    if extend_to > max_iters:
        _plan_schedules(planner, max_iters, extend_to)
    return extend_to


def _plan_schedules(planner: _Planner, max_iters: int, extend_to: int) -> None:
    """Lay out for a later end what ends with the run.

    Raises:
        ConfigError: The learning rate would stay where it is at about the old end, or rise again.
    """
    near, goes_on = max(1, max_iters // 100), False
    stops: list[tuple[str, str, int]] = []
    for key, scheduler in _schedulers(planner.get("param_scheduler"), "param_scheduler"):
        if scheduler.get("by_epoch", True):
            continue  # an epoch never ends
        kind, begin = _type_name(scheduler.get("type")), int(scheduler.get("begin", 0))
        # Without an end of its own it ends with the run.
        lasts = {"end": scheduler.get("end", max_iters)}
        lasts |= {name: begin + scheduler[name] for name in _LENGTHS if scheduler.get(name)}
        if scheduler.get("periods"):
            lasts["periods"] = begin + sum(scheduler["periods"])
        goes_on = goes_on or lasts["end"] == max_iters
        for name, last in lasts.items():
            reaches = last == max_iters if name == "end" else max_iters <= last < extend_to
            if reaches and name != "periods":
                if name in scheduler:
                    value = scheduler[name] + extend_to - max_iters
                    planner.set(f"{key}.{name}", value, "the schedule ends with the run")
            elif last < extend_to and (name == "end" or last >= max_iters - near):
                stops.append((f"{key}.{name}", kind, last))
    for name, kind, last in stops:
        is_warm_up = _is_warm_up(kind, planner.get(name.rpartition(".")[0]))
        if last >= max_iters - near or not (goes_on or is_warm_up):
            raise ConfigError(
                f"--extend-to {extend_to}: {name} ({kind}) ends at iteration {last} and not with the run, at "
                f"{max_iters}; the learning rate would not follow a schedule from there on.",
                f"Write the schedule for {extend_to} iterations into the config, with max_iters={extend_to}, "
                f"and say --extend-to {extend_to} with it.",
            )


_LENGTHS = ("T_max", "total_steps")
"""How long a schedule takes, from its begin, where it says so besides its end."""


def _schedulers(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each scheduler with its dotted key: of one, of a list, or of several optimizers by name."""
    if isinstance(node, Mapping) and "type" in node:
        yield key, node
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield from _schedulers(value, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _schedulers(value, f"{key}.{index}")


def _is_warm_up(kind: str, scheduler: Any) -> bool:
    """Whether a scheduler leaves the full learning rate behind it."""
    return kind.startswith("Constant") or (
        kind.startswith("Linear") and _mapping(scheduler).get("end_factor", 1.0) == 1.0
    )


# -- reading nested configs


def _walk(node: Any, key: str) -> Any:
    for name in key.split("."):
        if isinstance(node, Mapping):
            if name not in node:
                return _MISSING
            node = node[name]
        elif isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return _MISSING
    return node


def _find(node: Any, prefix: str, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == name:
                yield f"{prefix}.{key}", value
            yield from _find(value, f"{prefix}.{key}", name)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _find(value, f"{prefix}.{index}", name)


def find_keys(node: Any, prefix: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of everything called ``name`` in a part of a config.

    Args:
        node: The part: nested mappings and lists.
        prefix: Its own dotted key.
        name: The last part of the keys to find.
    """
    yield from _find(node, prefix, name)


def value_at(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None where there is none."""
    found = _walk(cfg, key)
    return None if found is _MISSING else found


def as_mapping(cfg: Mapping[str, Any] | Config) -> Mapping[str, Any]:
    """Return a config as nested plain dicts and lists; what is a mapping already, as it is."""
    return cfg if isinstance(cfg, Mapping) else cfg.to_dict()


def data_roots_of(cfg: Mapping[str, Any] | Config) -> dict[str, str]:
    """Return each ``data_root`` that the config names, with the type of the data set that reads it."""
    cfg = as_mapping(cfg)
    found: dict[str, str] = {}
    for name in ("train_dataloader", "val_dataloader"):
        loader = _mapping(cfg.get(name))
        for dataset in datasets_of(_mapping(loader.get("dataset"))):
            if isinstance(dataset.get("data_root"), str):
                found.setdefault(dataset["data_root"], _type_name(dataset.get("type")))
    return found


def pretrained_of(cfg: Mapping[str, Any] | Config) -> tuple[str, ...]:
    """Return the pretrained weights that the config names, as it names them."""
    cfg = as_mapping(cfg)
    names = [
        str(item["checkpoint"])
        for _, value in _find(cfg.get("model"), "model", "init_cfg")
        for item in _as_list(value)
        if isinstance(item, Mapping) and _type_name(item.get("type")) == "Pretrained" and "checkpoint" in item
    ]
    model = _mapping(cfg.get("model"))
    names += [
        node["pretrained"]
        for node in (model, _mapping(model.get("backbone")))
        if isinstance(node.get("pretrained"), str)
    ]
    return tuple(dict.fromkeys(names))


def weights_files(name: str) -> tuple[str, ...]:
    """Return the file names under which pretrained weights may be attached, the published one first.

    Args:
        name: As a config names them: a path, an address, or mmengine's ``open-mmlab://resnet50_v1c``.
    """
    scheme, separator, key = name.partition("://")
    listing = _HUB_LISTINGS.get(scheme) if separator else None
    address = _hub_listing(listing).get(key, name) if listing else name
    file = address.rpartition("/")[2]
    return (file, *_OTHER_WEIGHTS_FILES.get(file, ()))


_HUB_LISTINGS = {
    "open-mmlab": "openmmlab.json",
    "openmmlab": "openmmlab.json",
    "mmcls": "mmcls.json",
    "torchvision": "torchvision_0.12.json",
    "modelzoo": "torchvision_0.12.json",
}
_OTHER_WEIGHTS_FILES = {
    # mmsegmentation's published name, and the one under which people upload the same file.
    "mit_b2_20220624-66e8bf70.pth": ("mit_b2.pth",),
}


def _hub_listing(file: str) -> Mapping[str, str]:
    """Return mmengine's own list of the addresses of published weights, by name."""
    from importlib.util import find_spec

    spec = find_spec("mmengine")
    if spec is None or spec.origin is None:
        return {}
    listing = Path(spec.origin).parent / "hub" / file
    return _mapping(json.loads(listing.read_text(encoding="utf-8"))) if listing.is_file() else {}


def dataset_of(cfg: Mapping[str, Any] | Config) -> Mapping[str, Any]:
    """Return the config of the innermost training data set."""
    cfg = as_mapping(cfg)
    return _innermost(_mapping(_mapping(cfg.get("train_dataloader")).get("dataset")))


def datasets_of(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a data set's config and, outermost first, those that it wraps."""
    yield dataset
    inner = dataset.get("dataset")
    for item in [inner, *_as_list(dataset.get("datasets"))]:
        if isinstance(item, Mapping):
            yield from datasets_of(item)


def _without_wrappers(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a data set reads, without wrappers that only say how often or how."""
    while _type_name(dataset.get("type")) in (*_WRAPPERS, "RepeatDataset"):
        dataset = _mapping(dataset.get("dataset"))
    return dataset


def _innermost(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data set within wrappers such as RepeatDataset; of several, all that they say."""
    *_, last = datasets_of(dataset)
    return last


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _type_name(value: Any) -> str:
    """Return the bare name of a ``type``: a string with or without scope, or a class."""
    if value is None:
        return ""
    name = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    return name.rpartition("::")[2].rpartition(".")[2]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _plain_config(value: Any) -> Any:
    """Return a deep copy made of plain dicts, lists and tuples."""
    if isinstance(value, Mapping):
        return {key: _plain_config(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain_config(item) for item in value)
    return copy.deepcopy(value)


def _line(key: str, value: Any) -> str:
    text = repr(_plain(value))
    return f"{key} = {text if len(text) <= 160 else text[:157] + '...'}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
