"""The options of a session, from which the commands' arguments and the notebook's parameters are made.

Imported to show help, so it imports nothing slow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import not_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.messages import Message

if TYPE_CHECKING:
    import argparse

_HANDLE = re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]{4,48}[a-z0-9]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """How one of the :class:`Options` is given, on the command line and in the notebook.

    Attributes:
        field: The field of :class:`Options`.
        flag: On the command line.
        argument: The other arguments of argparse's ``add_argument``.
        read: Converts what was given to the field's type.
        least: The lowest valid number.
        plans: Whether it affects the plan, so that ``patch`` takes it, too.
        in_notebook: Whether the notebook's parameters cell has it.
        in_form: Whether the notebook's form has it.
    """

    field: str
    flag: str
    argument: Mapping[str, Any]
    read: Callable[[Any], Any]
    least: int | None
    plans: bool
    in_notebook: bool
    in_form: bool

    @property
    def name(self) -> str:
        """Its ``dest`` in argparse and, in capitals, its name in the notebook."""
        return str(self.argument.get("dest") or self.flag.removeprefix("--").replace("-", "_"))

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have; empty for any."""
        return tuple(self.argument.get("choices", ()))


def _as_given(value: Any) -> Any:
    return value


def _seconds(text: str | float) -> float:
    from mapsage_kaggle.clock import parse_duration_s

    return parse_duration_s(text)


def _gpus(text: str | int) -> int | str:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise UsageError(Message("--gpus {value} is neither auto nor a number.", text)) from None


def _resume(text: str | Path) -> str | Path:
    return text if text in ("auto", "require", "never") else Path(text)


def _paths(folders: Sequence[str | Path]) -> tuple[Path, ...]:
    return tuple(Path(folder) for folder in folders)


def _option(
    default: Any,
    flag: str,
    /,
    *,
    read: Callable[[Any], Any] = _as_given,
    least: int | None = None,
    plans: bool = False,
    notebook: bool = False,
    form: bool = False,
    **argument: Any,
) -> Any:
    metadata = {
        "flag": flag,
        "argument": argument,
        "read": read,
        "least": least,
        "plans": plans,
        "in_notebook": notebook,
        "in_form": form,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is asked of a session. The defaults suit Kaggle.

    What an option means, its ``help`` says; where there is more to know, it stands here.

    Attributes:
        weights_only: Take only the weights of the file that ``resume`` names, even if it is resumable.
        work_dir: By default ``<working>/work_dirs/<config name>``.
        threads: By default as in earlier sessions, else a rank's share of the cores.
        nnodes: Each has equally many ranks.
        node_rank: This machine's number. Machine 0 chooses the checkpoint and saves; the others receive
            theirs from it, and write only a log, to a work dir of their own, ``…-node<number>``.
        precision: Any but ``auto`` overrides the config.
        micro_batch: None for what earlier sessions learned to fit, else a rank's whole share of the batch.
        budget_bytes: What the checkpoints in the work dir may take.
        report: Whether to draw the report at the session's end.
        code: A folder that shadows an installed package takes precedence over it.
        track: Empty for only the config's own trackers.
    """

    config: Path
    resume: Literal["auto", "require", "never"] | Path = _option(  # noqa: RUF009 - it calls field
        "auto", "--resume", read=_resume, plans=True, notebook=True, metavar="auto|require|never|FILE",
        help="what to go on from (auto: the newest trusted checkpoint, or fresh where there is none)",
    )  # fmt: skip
    run: str | None = _option(
        None, "--run", plans=True, notebook=True, metavar="ID",
        help="the run to go on with, where several are attached",
    )  # fmt: skip
    allow_weights_only: bool = _option(
        False, "--allow-weights-only", plans=True, notebook=True, action="store_true",
        help="weights alone, if need be",
    )  # fmt: skip
    weights_only: bool = False
    expect_iteration: int | None = _option(
        None, "--expect-iteration", least=0, plans=True, notebook=True, type=int, metavar="N",
        help="refuse any other iteration",
    )  # fmt: skip
    extend_to: int | None = _option(
        None, "--extend-to", least=1, plans=True, notebook=True, type=int, metavar="N",
        help="a new, later end for the run",
    )  # fmt: skip
    session_limit_s: float = _option(
        12 * 3600.0, "--session-limit", default="12h", read=_seconds, notebook=True, form=True,
        metavar="TIME", help="the session's life (12h)",
    )  # fmt: skip
    reserve_s: float = _option(
        600.0, "--reserve", default="10m", read=_seconds, notebook=True, form=True, metavar="TIME",
        help="what is kept free at its end (10m)",
    )  # fmt: skip
    work_dir: Path | None = _option(  # noqa: RUF009 - it calls field
        None, "--work-dir", type=Path, metavar="DIR", help="where to write"
    )
    gpus: int | Literal["auto"] = _option(
        "auto", "--gpus", read=_gpus, least=0, notebook=True, metavar="auto|N",
        help="GPUs to train on; 0 for the CPU",
    )  # fmt: skip
    cpu_ranks: int = _option(
        1, "--cpu-ranks", least=1, type=int, metavar="N", help="workers where it trains on the CPU (1)"
    )
    threads: int | None = _option(
        None, "--threads", least=1, type=int, metavar="N", help="CPU threads per GPU or worker"
    )
    hang_after_s: float = _option(
        600.0, "--hang-after", default="10m", read=_seconds, metavar="TIME", help="silence taken for a hang"
    )
    nnodes: int = _option(1, "--nnodes", least=1, type=int, metavar="N", help="machines that train together")
    node_rank: int = _option(0, "--node-rank", type=int, metavar="N", help="this machine's number")
    rdzv_endpoint: str = _option("", "--rdzv-endpoint", metavar="HOST:PORT", help="where the machines meet")
    deterministic: bool = _option(
        False, "--deterministic", action="store_true", help="only deterministic algorithms on a GPU"
    )
    fast: bool = _option(
        True, "--no-fast", read=not_, action="store_true", help="no faster parts in place of stock ones"
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = _option(
        "auto", "--precision", notebook=True, form=True, choices=("auto", "float32", "float16", "bfloat16"),
        help="what to compute in (auto: as the config says, else in what the GPUs are faster)",
    )  # fmt: skip
    on_bad_image: Literal["fail", "skip"] = _option(
        "fail", "--on-bad-image", choices=("skip", "fail"), help="damaged images"
    )
    on_changed_data: Literal["go-on", "fail"] = _option(
        "go-on", "--on-changed-data", choices=("go-on", "fail"),
        help="training data that are not those of the checkpoint",
    )  # fmt: skip
    on_memory: Literal["adapt", "fail"] = _option(
        "adapt", "--on-memory", notebook=True, form=True, choices=("adapt", "fail"),
        help="where memory runs out, go on with smaller micro-batches, or end",
    )  # fmt: skip
    micro_batch: int | None = _option(
        None, "--micro-batch", least=1, type=int, metavar="N",
        help="images per forward pass to begin with, on each GPU",
    )  # fmt: skip
    save_every_s: float = _option(
        300.0, "--save-every", default="5m", read=_seconds, metavar="TIME",
        help="between checkpoints; 0 for none",
    )  # fmt: skip
    budget_bytes: int = 4_000_000_000
    report: bool = True
    code: tuple[Path, ...] = _option(
        (), "--code", default=[], read=_paths, plans=True, notebook=True, action="append", metavar="DIR",
        help="import the config's modules from this folder as well",
    )  # fmt: skip
    pass_env: tuple[str, ...] = _option(
        (), "--pass-env", default=[], read=tuple, notebook=True, action="append", metavar="NAME",
        help="let training see this variable, a credential",
    )  # fmt: skip
    track: Literal["", "tensorboard", "wandb"] = _option(
        "", "--track", notebook=True, choices=("", "tensorboard", "wandb"), metavar="tensorboard|wandb",
        help="show the run there, as one over all its sessions",
    )  # fmt: skip
    upload_to: str | None = _option(
        None, "--upload-to", notebook=True, metavar="OWNER/SLUG",
        help="also upload the newest to this data set",
    )  # fmt: skip
    upload_every_s: float = _option(
        3600.0, "--upload-every", default="1h", read=_seconds, notebook=True, metavar="TIME",
        help="between uploads (1h)",
    )  # fmt: skip
    overrides: tuple[str, ...] = _option(
        (), "--set", default=[], dest="overrides", read=tuple, plans=True, notebook=True, action="append",
        metavar="KEY=VALUE", help="set a config key",
    )  # fmt: skip


PARAMETERS = tuple(Parameter(field=item.name, **item.metadata) for item in fields(Options) if item.metadata)
"""In the order of ``--help``."""


def add_arguments(parser: argparse.ArgumentParser, *, planning: bool = False) -> None:
    """Add the arguments of ``train``; with ``planning`` only those that ``patch`` has, too."""
    for item in PARAMETERS:
        if item.plans or not planning:
            _add(parser, item)


def add_argument(parser: argparse.ArgumentParser, name: str) -> None:
    """Add one of them, by its field's name, to another command."""
    [item] = [item for item in PARAMETERS if item.field == name]
    _add(parser, item)


def _add(parser: argparse.ArgumentParser, item: Parameter) -> None:
    [default] = [each.default for each in fields(Options) if each.name == item.field]
    given = {} if item.argument.get("action") == "store_true" else {"default": default}
    parser.add_argument(item.flag, **{**given, **item.argument})


def options_from(config: Path, asked: Mapping[str, Any]) -> Options:
    """Return the options that arguments or parameters, given by name, ask for.

    Raises:
        UsageError: A value cannot be parsed.
    """
    values: dict[str, Any] = {}
    for item in PARAMETERS:
        if item.name in asked:
            value = asked[item.name]
            if item.choices and value not in item.choices:
                choices = ", ".join(map(repr, item.choices))
                raise UsageError(
                    Message("{name}={value} means nothing.", item.name, repr(value)),
                    Message("Choose one of {names}.", choices),
                )
            values[item.field] = item.read(value)
    return Options(config=config, **values)


def in_notebook(template: str) -> str:
    """Return a message's template with the notebook's parameters where it names the command's options.

    ``start anew with --resume never`` becomes ``start anew with RESUME = "never"``; an option without a
    value becomes the parameter's name, and one that is no parameter stays.
    """
    by_flag = {item.flag: item for item in PARAMETERS if item.in_notebook}

    def parameter(match: re.Match[str]) -> str:
        item, value = by_flag.get(match["flag"]), match["value"] or ""
        if item is None:
            return match[0]
        name = item.name.upper()
        if item.argument.get("action") == "store_true":
            return f"{name} = True{match['space'] or ''}{value}"
        words = (*item.choices, "auto", "require", "never")
        if (value and value in words) or re.fullmatch(r"\{\w+\}|\d+|[\w.]+=[A-Z]+", value):
            is_number = item.least is not None and value != "auto"
            given = value if is_number else f'"{value}"'
            return f"{name} = [{given}]" if item.argument.get("action") == "append" else f"{name} = {given}"
        return f"{name}{match['space'] or ''}{value}"

    return _OPTION.sub(parameter, template)


_OPTION = re.compile(r"(?P<flag>--[a-z][a-z-]*[a-z])(?:(?P<space> )(?P<value>\{\w+\}|[\w.]+=[A-Z]+|[\w-]+))?")


def option_text(options: Options, asked: Parameter) -> str:
    """Return an option's value as a person writes it."""
    from mapsage_kaggle.clock import format_duration

    value = getattr(options, asked.field)
    return format_duration(value) if asked.field.endswith("_s") else str(value)


def check_options(options: Options) -> None:
    """Check the options as far as that is possible without config, machine or checkpoints.

    Raises:
        UsageError: One is out of range, or two contradict each other.
    """
    for item in PARAMETERS:
        value = getattr(options, item.field)
        if item.least is not None and value not in (None, "auto") and value < item.least:
            raise UsageError(
                Message("{name} {value} is too low.", item.flag, value),
                Message("Give {least} or more.", item.least),
            )
    if not 0 <= options.node_rank < options.nnodes:
        raise UsageError(
            Message("--node-rank {rank} does not fit --nnodes {count}.", options.node_rank, options.nnodes),
            "Machines are numbered from 0.",
        )
    if options.run is not None and options.resume not in ("auto", "require"):
        raise UsageError(
            Message("--run {run} and --resume {resume} contradict each other.", options.run, options.resume),
            "Leave one out.",
        )
    if options.upload_to is not None:
        check_handle(options.upload_to)
        if options.upload_every_s <= 0:
            raise UsageError("--upload-every must be more than nothing.", "Give a time, such as 1h.")
    if options.rdzv_endpoint and not _is_meeting_point(options.rdzv_endpoint):
        raise UsageError(
            Message("--rdzv-endpoint {endpoint} is no HOST:PORT.", options.rdzv_endpoint),
            "Put an IPv6 address in brackets, such as [fd00::1]:29500.",
        )
    if options.nnodes > 1 and not options.rdzv_endpoint:
        raise UsageError(
            Message("--nnodes {count} needs --rdzv-endpoint.", options.nnodes),
            "Give HOST:PORT of machine 0, the same on all of them.",
        )


def _is_meeting_point(text: str) -> bool:
    try:
        place = urlsplit(f"//{text}")
        return place.port != 0 and bool(place.hostname)
    except ValueError:
        return False


def check_handle(handle: str) -> str:
    """Return a data set's ``owner/slug`` if Kaggle would accept it.

    Raises:
        UsageError: It would not.
    """
    if not _HANDLE.fullmatch(handle):
        raise UsageError(
            Message("{handle} cannot be a data set on Kaggle.", repr(handle)),
            "Give OWNER/SLUG: your user name, and 6 to 50 small letters, digits and hyphens.",
        )
    return handle
