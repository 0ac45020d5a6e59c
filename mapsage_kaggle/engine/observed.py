"""What is observed in training of how exactly a resume continues: hooks' states, the data, what draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmengine.logging import MessageHub

from mapsage_kaggle.engine.contents import DataChange, TrainingData
from mapsage_kaggle.engine.remembering import HookMemory
from mapsage_kaggle.engine.repeating import Repetition
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import joined
from mapsage_kaggle.records import DATA_KEY, GRADES, NOT_SHOWN, STOPPED_BY_KEY, SessionRecord, worst
from mapsage_kaggle.spec import ChildSpec


class Observed:
    """Puts what a resume needs into the message hub, which checkpoints hold, and the rest into the record."""

    def __init__(self, spec: ChildSpec) -> None:
        self._spec = spec
        self._memory: HookMemory | None = None
        self._data: TrainingData | None = None
        self._reasons: tuple[str, ...] = ()
        self._grade = GRADES[0]
        self._changes: tuple[str, ...] = ()
        self._repetition: Repetition | None = None

    def loaded(self, runner: Any) -> None:
        """On a resume, restore the hooks' states, and in the training loop what has ended it."""
        self._memory = HookMemory(runner.hooks)
        if self._spec.action == "resume":
            hub, take_up = runner.message_hub, self._spec.take_up
            stopped_by = hub.get_info(STOPPED_BY_KEY, "")
            if stopped_by and not take_up:
                runner.train_loop.stopped_by = stopped_by
            self.add(*self._memory.restore(hub, taken_up=bool(stopped_by) and take_up))

    def trains_on(self, data: TrainingData, hub: MessageHub) -> DataChange:
        """Note the data that are trained on; return how they differ from the checkpoint's."""
        self._data = data
        resumes = self._spec.action == "resume"
        return self._tell(data.compare(hub.get_info(DATA_KEY, None)) if resumes else DataChange())

    def note(self, runner: Any) -> None:
        hub, loop = runner.message_hub, getattr(runner, "train_loop", None)
        hub.update_info(STOPPED_BY_KEY, getattr(loop, "stopped_by", ""))
        if self._memory is not None:
            self._memory.note(hub)
        if self._data is not None:
            hub.update_info(DATA_KEY, self._data.state())

    def look(self) -> str:
        """Check the hooks, and files that were read since; return a warning, or an empty string."""
        if self._memory is not None:
            self.add(*self._memory.watch())
        return self._tell(self._data.resized()).message if self._data is not None else ""

    def repeated(self, seen: Repetition, device: str) -> str:
        """Note whether a step repeats; return a warning, or an empty string."""
        self._repetition = seen
        if seen.unseen:
            found = Message("{names} goes by more than the batch and the seed", joined(seen.unseen))
            self.add(found)
            return Message(
                "{found}, such as a generator of its own: a resumed run and an uninterrupted one may "
                "differ. Have it draw from NumPy's, Python's or torch's own generator.",
                found,
            )
        if seen.repeatable:
            return ""
        apart = f"up to {seen.difference:.3g} apart"
        found = Message(
            "{device} computed two different gradients from the same state, {apart}", device, apart
        )
        is_wrong = device == "CPU" or self._spec.deterministic
        self.add(found, grade="neither" if is_wrong else "rounding")
        if not is_wrong:
            return ""
        return Message(
            "{found}, with deterministic algorithms alone: the model draws numbers that no seed sets, "
            "or the device computes wrongly. If the model does not, train on another machine, and trust "
            "no result of this one.",
            found,
        )

    def add(self, *reasons: str, grade: str = "neither") -> None:
        """Add reasons why a resume equals an uninterrupted run to ``grade`` at most."""
        if reasons:
            self._reasons = tuple(dict.fromkeys((*self._reasons, *reasons)))
            self._grade = worst((self._grade, grade))

    def told_in(self, record: SessionRecord) -> SessionRecord:
        exactness, seen = record.exactness.less(self._reasons, self._grade), self._repetition
        if seen is not None:
            exactness = replace(exactness, repeatable=seen.repeatable, difference=seen.difference)
        return record.evolve(
            exactness=exactness,
            changes=tuple(dict.fromkeys((*record.changes, *self._changes))),
            data=self._data.summary() if self._data is not None else record.data,
        )

    def _tell(self, change: DataChange) -> DataChange:
        self._changes += change.lines
        self.add(*filter(None, [change.reason]), grade="neither" if change.message else NOT_SHOWN)
        return change
