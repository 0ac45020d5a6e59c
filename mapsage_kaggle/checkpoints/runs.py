"""Group checkpoints by the run that they state, and take one group or none.

A fingerprint says that two configs are the same run; it does not say whose. Everybody who trains the shipped
config has the same one, so what is attached may be a classmate's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.messages import Message, joined_by

_ATTACH = Message("Attach an output of that run, or leave --run out.")
_NAME_ONE = Message("Start again with what stands behind the one to go on with, or detach the others.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunGroup:
    """The files of one run, or of one attached source where they state none.

    Attributes:
        key: The run, or the source: equal for files of the same group.
        run_id: The run; empty where the files state none.
        newest: The file of the highest iteration.
        iteration: That iteration; None where neither name nor header says one.
        recorded: Whether a record and a manifest beside one of its files agree with it.
    """

    key: str
    run_id: str
    newest: Path
    iteration: int | None
    recorded: bool

    @property
    def line(self) -> Message:
        whose = Message("run {run}", self.run_id) if self.run_id else Message("states no run")
        record = "" if self.recorded else Message(", without its record")
        return Message(
            "{folder} ({at}, {whose}{record})", self.newest.parent, at(self.iteration), whose, record
        )

    def option(self, file_option: str) -> Message:
        if self.run_id:
            return Message("--run {run}", self.run_id)
        return Message(file_option, self.newest)


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenRun:
    """The group that a session goes on with.

    Attributes:
        is_named: Whether a person, the config, the work dir or the relay says that it is the one.
        stepped_over: The others.
    """

    group: RunGroup
    is_named: bool
    stepped_over: tuple[RunGroup, ...] = ()

    @property
    def notice(self) -> str:
        """What a person must see first: that nothing says which run it is of. Empty where something does."""
        if self.is_named or self.group.recorded:
            return ""
        folder = self.group.newest.parent
        return Message(
            "Nothing beside {path} says whose checkpoint it is. If it is not of your run, detach "
            "{folder}, or start anew with --resume never.",
            self.group.newest,
            folder,
        )


def at(iteration: int | None) -> Message:
    return Message("iteration unknown") if iteration is None else Message("iteration {iteration}", iteration)


def pick_run(
    groups: Sequence[RunGroup],
    *,
    run: str | None = None,
    from_config: Collection[str] = (),
    work_dir_run: str | None = None,
    file_option: str = "--resume {file}",
) -> TakenRun | None:
    """Return the group that a session goes on with; None where there is none at all.

    Args:
        groups: All that could be resumed.
        run: The run that a person or the relay names.
        from_config: Keys of the groups that a ``load_from`` with ``resume = True`` names: its own, and
            those whose record says that they began from it.
        work_dir_run: The run of the work dir's record.
        file_option: How a person names a file, with ``{file}``.

    Raises:
        CheckpointError: The named run is not among them, or several could be meant; the message has each
            with its folder, its iteration and the line to paste.
    """
    if run is not None:
        found = next((item for item in groups if item.run_id == run), None)
        if found is None:
            raise CheckpointError(
                Message("No checkpoint of run {run}, which --run names, was found.", run),
                _ATTACH,
                [group.line for group in groups],
            )
        return _taken(found, groups, is_named=True)
    named = [item for item in groups if item.key in from_config]
    if named:
        return _taken(max(named, key=_iteration), groups, is_named=True)
    here = next((item for item in groups if work_dir_run and item.run_id == work_dir_run), None)
    if here is not None:
        return _taken(here, groups, is_named=True)
    recorded = [item for item in groups if item.recorded]
    candidates = recorded or groups
    if len(candidates) > 1:
        raise _ambiguous(groups, file_option)
    return _taken(candidates[0], groups, is_named=False) if candidates else None


def _taken(group: RunGroup, groups: Sequence[RunGroup], *, is_named: bool) -> TakenRun:
    others = tuple(item for item in groups if item is not group)
    return TakenRun(group=group, is_named=is_named, stepped_over=others)


def _ambiguous(groups: Sequence[RunGroup], file_option: str) -> CheckpointError:
    ordered = sorted(groups, key=_iteration, reverse=True)
    return CheckpointError(
        Message("Checkpoints of {count} runs were found, and nothing says which is yours.", len(groups)),
        _NAME_ONE,
        [joined_by(": ", (item.line, item.option(file_option))) for item in ordered],
    )


def _iteration(group: RunGroup) -> int:
    return -1 if group.iteration is None else group.iteration
