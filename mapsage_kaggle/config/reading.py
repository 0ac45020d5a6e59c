"""Read a config, and find in it what the kit needs to know."""

from __future__ import annotations

import ast
import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config.packages import PACKAGES, missing
from mapsage_kaggle.errors import ConfigError, MapsageError
from mapsage_kaggle.messages import Message, as_message

if TYPE_CHECKING:
    from mmengine.config import Config


MISSING = object()
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
WRAPPERS = ("MapsagePositional", "MapsageReadable")
_WHERE = frozenset({"data_root", "work_dir", "cache_dir", "load_from", "resume", "launcher", "init_cfg"})
"""Keys that say where things lie, and what a resume leaves out: no change that a person has made."""


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read an mmengine config and apply ``--set key=value`` overrides.

    Args:
        path: The config file, which is Python and is executed: a person's own.
        overrides: ``key=value`` with dotted keys, values as mmengine's ``--cfg-options`` takes them.

    Raises:
        ConfigError: It is missing, does not parse, or an override is no ``key=value``.
        MachineError: It inherits from a package that is not installed.
    """
    from mmengine.config import Config

    if not path.is_file():
        raise ConfigError(
            Message("There is no config at {path}.", path), "Give the path of an mmengine config (.py)."
        )
    _name_the_forks()
    try:
        # Its custom modules may need torch, and are imported in the child.
        cfg = Config.fromfile(path, import_custom_modules=False)
    except (Exception, SystemExit) as error:  # a config is a program and may raise anything
        raise _unreadable(path, error) from error
    options: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                Message("--set {text} is not key=value.", repr(override)),
                "Write it as optim_wrapper.optimizer.lr=1e-4.",
            )
        try:
            options[key.strip()] = _value_of(value.strip())
        except (AssertionError, ValueError, IndexError, SyntaxError, TypeError) as error:
            raise ConfigError(
                Message(
                    "--set {text} has a value that cannot be read: {why}.", repr(override), _first_line(error)
                ),
                "Lists are written as [1,2], tuples as (1,2), without spaces; dicts as dict(a=1).",
            ) from error
    if "data_root" in options:
        options |= dict.fromkeys(_keys_of_the_root(cfg, path), options["data_root"])
    try:
        cfg.merge_from_dict(options)
    except (TypeError, KeyError, AssertionError, IndexError) as error:
        raise ConfigError(
            Message(
                "--set {text} does not fit {path}: {why}.", " ".join(overrides), path, _first_line(error)
            ),
            "Compare the dotted keys with the config; items of lists are counted from 0.",
        ) from error
    return cfg


def _unreadable(path: Path, error: BaseException) -> MapsageError:
    if isinstance(error, ModuleNotFoundError):
        package = next((word for word in re.findall(r"\w+", str(error)) if word in PACKAGES), "")
        if package:
            return missing(package, f"{path} takes a part of {package}")
    return ConfigError(
        Message(
            "{path} does not parse as an mmengine config: {kind}: {why}.",
            path,
            type(error).__name__,
            _first_line(error),
        ),
        "Check the named line, and that every file in _base_ is there.",
    )


def _value_of(text: str) -> Any:
    """Return an override's value as mmengine reads it; what holds a dict, which it does not know, as Python.

    Raises:
        ValueError, SyntaxError, TypeError, AssertionError, IndexError: It cannot be read.
    """
    from mmengine.config import DictAction

    if not re.match(r"[\[(].*(\{|\bdict\()|\{|dict\(", text):
        return DictAction._parse_iterable(text)
    return _python_value(ast.parse(text, mode="eval").body)


def _python_value(node: ast.expr) -> Any:
    """Return what an expression of values alone stands for, ``dict(…)`` among them.

    Raises:
        ValueError, SyntaxError, TypeError: It holds anything else.
    """
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
        return {str(item.arg): _python_value(item.value) for item in node.keywords}
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError(f"line {node.lineno} takes a dict apart")
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_python_value, node.values), strict=True))
    if isinstance(node, ast.List):
        return list(map(_python_value, node.elts))
    return tuple(map(_python_value, node.elts)) if isinstance(node, ast.Tuple) else ast.literal_eval(node)


def _keys_of_the_root(cfg: Config, path: Path) -> list[str]:
    """Return the dotted keys that say where the data lie: a config's ``data_root`` is copied as it is read.

    Raises:
        ConfigError: It names several places.
    """
    found = list(_roots_with_keys(cfg))
    if len({root for _, root in found}) > 1:
        settings = " ".join(f"--set {key}={root}" for key, root in found)
        raise ConfigError(
            Message("--set data_root does not say which: {path} names {count} data roots.", path, len(found)),
            Message("Name each: {settings}", settings),
        )
    return [key for key, _ in found]


def setting_of_root(cfg: Mapping[str, Any] | Config, root: str) -> str:
    """Return what to add to the command, so that a data root of the config is another folder."""
    found = list(_roots_with_keys(cfg))
    if {other for _, other in found} == {root}:
        return as_message("--set data_root=FOLDER")
    return as_message(" ".join(f"--set {key}=FOLDER" for key, other in found if other == root))


def _roots_with_keys(cfg: Mapping[str, Any] | Config) -> Iterator[tuple[str, str]]:
    cfg = as_mapping(cfg)
    for name in LOADERS:
        prefix = f"{name}.dataset"
        for key, value in find_keys(mapping_or_empty(cfg.get(name)).get("dataset"), prefix, "data_root"):
            if isinstance(value, str):
                yield key, value


_FORKS = {"mmseg": "onedl-mmsegmentation", "mmdet": "onedl-mmdetection", "mmpretrain": "onedl-mmpretrain"}


def _name_the_forks() -> None:
    """Let mmengine find ``_base_ = 'mmseg::…'`` where the package is installed as its fork.

    onedl-mmengine 0.10 still looks for the distribution under upstream's name.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    from mmengine.config import utils

    for module, name in _FORKS.items():
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        utils.MODULE2PACKAGE[module] = name


def changes_between(before: str, after: str) -> tuple[str, ...]:
    """Return what differs between two configs as they were written, by dotted key.

    Where they lie and how they were launched is no difference: mounts move from session to session. They are
    the texts of two sessions' ``config.py``, which are read and never run.

    Returns:
        Lines ``-key = value`` for what has gone and ``+key = value`` for what has come; lines of the
        texts where one of them holds more than values.
    """
    try:
        old, new = dict(_values_in(_literal_config(before))), dict(_values_in(_literal_config(after)))
    except (SyntaxError, ValueError, TypeError):
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
        return tuple(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    differences: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        if _WHERE & set(key.split(".")) or old.get(key, MISSING) == new.get(key, MISSING):
            continue
        differences += [f"-{assignment(key, old[key])}"] if key in old else []
        differences += [f"+{assignment(key, new[key])}"] if key in new else []
    return tuple(differences)


def written_value(text: str, key: str) -> Any:
    """Return the value of a dotted key in a config as it was written, which is read and never run.

    Returns:
        The value, ``dict(…)`` as a dict; None where there is none, or the text holds more than values.
    """
    try:
        return value_at(_literal_config(text), key)
    except (SyntaxError, ValueError, TypeError):
        return None


def _literal_config(text: str) -> dict[str, Any]:
    """Read a config that only assigns values, ``dict(…)`` among them.

    Raises:
        SyntaxError: It is not Python.
        ValueError, TypeError: It holds anything else.
    """
    found: dict[str, Any] = {}
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise ValueError(f"line {statement.lineno} is no assignment to a name")
        found[statement.targets[0].id] = plain(_python_value(statement.value))
    return found


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


def effective_batch(loader: Mapping[str, Any]) -> int:
    """Return the images of an iteration, also of a data loader that the kit has patched before."""
    batches = mapping_or_empty(loader.get("batch_sampler"))
    return int(batches.get("effective_batch") or loader.get("batch_size", 1))


def at_path(node: Any, key: str) -> Any:
    for name in key.split("."):
        if isinstance(node, Mapping):
            if name not in node:
                return MISSING
            node = node[name]
        elif isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return MISSING
    return node


def find_keys(node: Any, prefix: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of all called ``name`` in the part of a config at ``prefix``."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == name:
                yield f"{prefix}.{key}", value
            yield from find_keys(value, f"{prefix}.{key}", name)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from find_keys(value, f"{prefix}.{index}", name)


def value_at(cfg: Mapping[str, Any], key: str) -> Any:
    found = at_path(cfg, key)
    return None if found is MISSING else found


def as_mapping(cfg: Mapping[str, Any] | Config) -> Mapping[str, Any]:
    """Return a config as nested plain dicts and lists; what is a mapping already, as it is."""
    return cfg if isinstance(cfg, Mapping) else cfg.to_dict()


def data_roots_of(cfg: Mapping[str, Any] | Config) -> dict[str, str]:
    """Return each ``data_root`` that the config names, with the type of the data set that reads it."""
    cfg = as_mapping(cfg)
    found: dict[str, str] = {}
    for name in ("train_dataloader", "val_dataloader"):
        loader = mapping_or_empty(cfg.get(name))
        for dataset in datasets_of(mapping_or_empty(loader.get("dataset"))):
            if isinstance(dataset.get("data_root"), str):
                found.setdefault(dataset["data_root"], type_name(dataset.get("type")))
    return found


def dataset_of(cfg: Mapping[str, Any] | Config) -> Mapping[str, Any]:
    cfg = as_mapping(cfg)
    # Within wrappers such as RepeatDataset; of several, the last.
    *_, last = datasets_of(mapping_or_empty(mapping_or_empty(cfg.get("train_dataloader")).get("dataset")))
    return last


def datasets_of(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a data set's config and, outermost first, those that it wraps."""
    yield dataset
    inner = dataset.get("dataset")
    for item in [inner, *as_list(dataset.get("datasets"))]:
        if isinstance(item, Mapping):
            yield from datasets_of(item)


def leaves_with_keys(dataset: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the data sets that read files, each with its dotted key as a person's config has it."""
    inner, several = dataset.get("dataset"), dataset.get("datasets")
    if isinstance(inner, Mapping):
        is_own = type_name(dataset.get("type")) in WRAPPERS
        yield from leaves_with_keys(inner, key if is_own else f"{key}.dataset")
    elif isinstance(several, (list, tuple)):
        for index, item in enumerate(several):
            yield from leaves_with_keys(item, f"{key}.datasets.{index}")
    else:
        yield key, dataset


def without_wrappers(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a data set reads, without wrappers that only say how often or how."""
    while type_name(dataset.get("type")) in (*WRAPPERS, "RepeatDataset"):
        dataset = mapping_or_empty(dataset.get("dataset"))
    return dataset


def mapping_or_empty(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def type_name(value: Any) -> str:
    """Return the bare name of a ``type``: a string with or without scope, or a class."""
    if value is None:
        return ""
    name = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    return name.rpartition("::")[2].rpartition(".")[2]


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def plain_copy(value: Any) -> Any:
    """Return nested plain dicts, lists and tuples, of which nothing is the config's own."""
    if isinstance(value, Mapping):
        return {key: plain_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain_copy(item) for item in value)
    return copy.deepcopy(value)


def assignment(key: str, value: Any) -> str:
    text = repr(plain(value))
    return f"{key} = {text if len(text) <= 160 else text[:157] + '...'}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
