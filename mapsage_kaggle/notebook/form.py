"""The form: what people change most in a run, read from a config, checked, and turned into options.

Pure but for :func:`show_form`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.clock import format_duration, parse_duration_s
from mapsage_kaggle.config.patch import plan_patch
from mapsage_kaggle.config.reading import as_mapping, find_keys, read_config, value_at
from mapsage_kaggle.display.cells import refusal_panel
from mapsage_kaggle.display.panels import Panel
from mapsage_kaggle.display.widgets import Form, FormState, Knob
from mapsage_kaggle.errors import MapsageError, UsageError
from mapsage_kaggle.training.options import PARAMETERS, Options, option_text

if TYPE_CHECKING:
    from mapsage_kaggle.display.locale.words import Words
    from mapsage_kaggle.training.prepare import Prepared

MIN_CROP, CROP_STEP = 32, 32
"""Encoders halve an image five times."""
_ASKED = {item.name: item for item in PARAMETERS if item.in_form}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with a field: a key of the catalogue, and the values for its text."""

    text: str
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the machine and the run allow.

    Attributes:
        on_gpu: Whether it trains on GPUs.
        world_size: Ranks that share a batch.
        num_cpus: CPU cores for data workers.
        start_iteration: Iterations done already; 0 for a fresh run.
        end: Where the run ends, which an extended run keeps; None for the config's end.
    """

    on_gpu: bool
    world_size: int
    num_cpus: int
    start_iteration: int = 0
    end: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the fields ask for.

    Attributes:
        options: As changed; None where a field has a problem.
        problems: By field.
        overrides: ``key=value`` for the parameters cell, to ask for the same in a batch run.
    """

    options: Options | None
    problems: Mapping[str, Problem] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


def knobs_of(cfg: Mapping[str, Any] | Any, options: Options, *, end: int | None = None) -> tuple[Knob, ...]:
    """Return the fields that apply to a config, with their present values; ``end`` is the setting's."""
    cfg = as_mapping(cfg)
    loader, optim = cfg["train_dataloader"], cfg.get("optim_wrapper") or {}
    lr = (optim.get("optimizer") or {}).get("lr")
    crops = [value for _, value in _crops(cfg)]
    found: list[tuple[str, object, tuple[str, ...]]] = [
        ("batch", loader.get("batch_size", 1), ()),
        ("crop", _side(crops[0]) if crops else None, ()),
        ("lr", lr if lr is None else f"{lr:g}", ()),
        ("max_iters", end or cfg["train_cfg"]["max_iters"], ()),
        ("val_interval", cfg["train_cfg"].get("val_interval"), ()),
        ("workers", loader.get("num_workers", 0), ()),
        *((name, option_text(options, item), item.choices) for name, item in _ASKED.items()),
    ]
    return tuple(
        Knob(name=name, value=str(value), choices=choices)
        for name, value, choices in found
        if value is not None
    )


def turn(
    values: Mapping[str, str], cfg: Mapping[str, Any] | Any, options: Options, setting: Setting
) -> Outcome:
    """Check the fields, and return the options that they ask for.

    Args:
        values: The text of each field, by name.
        cfg: The config, with the overrides of ``options``.
        options: Before the change.
        setting: What the machine and the run allow.
    """
    cfg = as_mapping(cfg)
    before = {knob.name: knob.value for knob in knobs_of(cfg, options, end=setting.end)}
    problems: dict[str, Problem] = {}
    asked: dict[str, Any] = {}
    for name, text in values.items():
        if text.strip() == before.get(name):
            continue
        try:
            asked[name] = _READERS[name](text.strip())
        except _Wrong as wrong:
            problems[name] = wrong.problem
    problems = {**_misfits(asked, cfg, options, setting), **problems}
    if problems:
        return Outcome(options=None, problems=problems)
    overrides: list[str] = []
    changes: dict[str, Any] = {}
    for name, value in asked.items():
        if name in _ASKED:
            changes[_ASKED[name].field] = value
        elif name == "max_iters" and setting.start_iteration:
            changes["extend_to"] = value
        else:
            overrides += _OVERRIDES[name](value, cfg)
    changed = replace(options, overrides=(*options.overrides, *overrides), **changes)
    return Outcome(options=changed, overrides=tuple(overrides))


def difference(before: Mapping[str, Any] | Any, after: Mapping[str, Any] | Any, keys: Sequence[str]) -> str:
    """Return what overrides changed, formatted as by :meth:`mapsage_kaggle.config.patch.ConfigPatch.diff`."""
    before, after = as_mapping(before), as_mapping(after)
    lines = []
    for key in dict.fromkeys(keys):
        old, new = value_at(before, key), value_at(after, key)
        if old != new:
            lines.append(f"@@ {key} @@")
            lines += [f"-{key} = {old!r}"] if old is not None else []
            lines += [f"+{key} = {new!r}"]
    return "\n".join(lines) + "\n" if lines else ""


def show_form(prepared: Prepared, words: Words, *, on_use: Callable[[Options], Panel]) -> None:
    """Show the fields of a prepared session in the output of the running cell.

    Args:
        prepared: What would run unchanged.
        words: The language.
        on_use: Called with the options that the fields ask for; returns what to show then.
    """
    options, cfg = prepared.options, prepared.discovery.cfg
    setting = Setting(
        on_gpu=prepared.facts.on_gpu,
        world_size=prepared.facts.world_size,
        num_cpus=prepared.machine.num_cpus,
        start_iteration=prepared.start_iteration,
        end=prepared.facts.extend_to,
    )

    def use(values: Mapping[str, str]) -> Panel:
        asked = turn(values, cfg, options, setting).options
        assert asked is not None
        return on_use(asked)

    Form(
        words,
        knobs_of(cfg, options, end=setting.end),
        on_change=lambda values: judge(turn(values, cfg, options, setting), prepared, words),
        on_use=use,
    ).display()


def judge(asked: Outcome, prepared: Prepared, words: Words) -> FormState:
    """Return what the form shows of what it asks for, without applying that."""
    options = asked.options
    title = words("form_title")
    if options is None:
        problems = {name: words(item.text, **item.values) for name, item in asked.problems.items()}
        panel = Panel(title=title, tone="bad", lead=words("form_wrong"))
        return FormState(problems=problems, panel=panel, usable=False)
    if options == prepared.options:
        return FormState(problems={}, panel=Panel(title=title, lead=words("form_same")), usable=False)
    before = prepared.discovery.cfg
    try:
        cfg = read_config(options.config, options.overrides)
        end = options.extend_to or prepared.facts.extend_to
        patch = plan_patch(cfg, options.config, replace(prepared.facts, extend_to=end))
    except MapsageError as error:
        return FormState(problems={}, panel=refusal_panel(title, error, words), usable=False)
    keys = [override.partition("=")[0] for override in asked.overrides]
    is_other = prepared.start_iteration > 0 and patch.fingerprint != prepared.patch.fingerprint
    # A file that was named, in the parameters or by the picker, is taken all the same.
    is_usable = not is_other or isinstance(options.resume, Path)
    panel = Panel(
        title=title,
        tone="note",
        lead=words("form_changed") if is_usable else "",
        notes=(words("form_other_run"),) if is_other else (),
        diff=difference(before, cfg, keys) + patch.diff(),
        diff_title=words("form_diff"),
        diff_open=True,
    )
    return FormState(problems={}, panel=panel, usable=is_usable)


def parameters_text(options: Options) -> str:
    """Return a line for the parameters cell that asks for the same."""
    asked = ((name.upper(), option_text(options, item).replace(" ", "")) for name, item in _ASKED.items())
    values: list[tuple[str, object]] = [("OVERRIDES", list(options.overrides)), *asked]
    if options.extend_to is not None:
        values.append(("EXTEND_TO", options.extend_to))
    return "; ".join(f"{name} = {value!r}" for name, value in values)


# -- reading a field


class _Wrong(Exception):
    def __init__(self, text: str, **values: object) -> None:
        super().__init__(text)
        self.problem = Problem(text=text, values=values)


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text.replace(",", "").replace("_", ""))
        except ValueError:
            value = least - 1
        if value < least:
            raise _Wrong("form_whole", least=least)
        return value

    return read


def _crop(text: str) -> int:
    value = _whole(MIN_CROP)(text)
    if value % CROP_STEP:
        raise _Wrong("form_multiple", step=CROP_STEP)
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise _Wrong("form_rate")
    return value


def _duration(text: str) -> float:
    try:
        return parse_duration_s(text.replace(" ", ""))
    except UsageError:
        raise _Wrong("form_duration") from None


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise _Wrong("form_choice", choices=", ".join(choices))
        return text

    return read


_READERS: Mapping[str, Callable[[str], Any]] = {
    "batch": _whole(1),
    "crop": _crop,
    "lr": _rate,
    "max_iters": _whole(1),
    "val_interval": _whole(1),
    "workers": _whole(0),
    **{name: _choice(*item.choices) if item.choices else _duration for name, item in _ASKED.items()},
}


def _misfits(
    asked: Mapping[str, Any], cfg: Mapping[str, Any], options: Options, setting: Setting
) -> dict[str, Problem]:
    """Return what does not fit the machine, the run or another field."""
    found: dict[str, Problem] = {}
    end = int(setting.end or cfg["train_cfg"]["max_iters"])
    if asked.get("batch", setting.world_size) < setting.world_size:
        found["batch"] = Problem(text="form_batch", values={"count": setting.world_size})
    if asked.get("precision") in ("float16", "bfloat16") and not setting.on_gpu:
        found["precision"] = Problem(text="form_precision")
    if asked.get("workers", 0) > setting.num_cpus:
        found["workers"] = Problem(text="form_workers", values={"count": setting.num_cpus})
    if setting.start_iteration and asked.get("max_iters", end) < end:
        found["max_iters"] = Problem(text="form_end", values={"end": end})
    interval = asked.get("val_interval")
    if interval is not None and interval > asked.get("max_iters", end):
        found["val_interval"] = Problem(text="form_interval", values={"end": asked.get("max_iters", end)})
    limit_s = asked.get("session_limit", options.session_limit_s)
    if asked.get("reserve", options.reserve_s) >= limit_s:
        found["reserve"] = Problem(text="form_reserve", values={"limit": format_duration(limit_s)})
    return found


# -- from a field to a config's keys


def _crops(cfg: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(find_keys(cfg.get("train_dataloader"), "train_dataloader", "crop_size"))


def _crop_overrides(side: int, cfg: Mapping[str, Any]) -> list[str]:
    keys = [key for key, _ in _crops(cfg)]
    if value_at(cfg, "model.data_preprocessor.size") is not None:
        keys.append("model.data_preprocessor.size")
    return [f"{key}=({side},{side})" for key in keys]


def _end_overrides(end: int, cfg: Mapping[str, Any]) -> list[str]:
    before = cfg["train_cfg"]["max_iters"]
    schedulers = cfg.get("param_scheduler")
    schedulers = schedulers if isinstance(schedulers, (list, tuple)) else ()
    return [
        f"train_cfg.max_iters={end}",
        *(
            f"param_scheduler.{index}.end={end}"
            for index, item in enumerate(schedulers)
            if isinstance(item, Mapping) and item.get("end") == before
        ),
    ]


def _worker_overrides(workers: int, cfg: Mapping[str, Any]) -> list[str]:
    persistent = value_at(cfg, "train_dataloader.persistent_workers")
    off = ["train_dataloader.persistent_workers=False"] if persistent and workers == 0 else []
    return [f"train_dataloader.num_workers={workers}", *off]


_OVERRIDES: Mapping[str, Callable[[Any, Mapping[str, Any]], list[str]]] = {
    "batch": lambda value, _: [f"train_dataloader.batch_size={value}"],
    "crop": _crop_overrides,
    "lr": lambda value, _: [f"optim_wrapper.optimizer.lr={value:g}"],
    "max_iters": _end_overrides,
    "val_interval": lambda value, _: [f"train_cfg.val_interval={value}"],
    "workers": _worker_overrides,
}


def _side(crop: Any) -> int:
    return int(crop[0]) if isinstance(crop, (list, tuple)) else int(crop)
