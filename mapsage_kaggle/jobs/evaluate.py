"""How good a trained model is on a split with masks, how sure that is, and whether another is better.

    subject = open_subject(ModelOptions(config=config, checkpoint=file, needs_data=True))
    found = evaluate(subject, EvaluationOptions())
    found.scores.miou, found.interval

The counts come from a child (:mod:`mapsage_kaggle.engine.jobs.evaluate`) and are kept by image in
``<work dir>/evaluation``, so an evaluation that was killed goes on where it was, and one that is through
is not run again. What they say is :mod:`mapsage_kaggle.metrics`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mapsage_kaggle import metrics
from mapsage_kaggle.config.reading import as_mapping
from mapsage_kaggle.errors import MachineError, UsageError
from mapsage_kaggle.jobs.child import OnEvent, as_interrupted, run_child
from mapsage_kaggle.jobs.subject import ModelSource, judge
from mapsage_kaggle.messages import Message
from mapsage_kaggle.metrics import Interval, Scores, read_tally
from mapsage_kaggle.paths import WorkDir, replace_file

SCHEMA = 1
Split = Literal["val", "test"]
Flip = Literal["horizontal", "vertical", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """How to look.

    Attributes:
        split: Whose data loader of the config is used.
        whole: True for whole images whatever the config says.
        window: Side of the windows to slide, in pixels; None to do as the config's ``test_cfg`` says.
        stride: From one window to the next; by default two thirds of the window.
        window_batch: Windows that go through the network at once.
        flips: Mirrored views to average over, beside the plain one.
        scales: Sizes to average over.
        resamples: Draws of the bootstrap.
    """

    split: Split = "val"
    whole: bool = False
    window: int | None = None
    stride: int | None = None
    window_batch: int = 4
    flips: tuple[Flip, ...] = ()
    scales: tuple[float, ...] = (1.0,)
    resamples: int = metrics.RESAMPLES

    def __post_init__(self) -> None:
        if self.whole and self.window is not None:
            raise UsageError("--whole and --window exclude each other.", "Give one of them.")
        if self.stride is not None and self.window is None:
            raise UsageError("--stride needs --window.", "Give the window's side as well.")
        if self.window is not None and not 0 < (self.stride or 1) <= self.window:
            raise UsageError(
                Message(
                    "Windows of {size} pixels with a stride of {stride} leave pixels out.",
                    self.window,
                    self.stride,
                ),
                "The stride must be above zero and no more than the window.",
            )
        if self.window_batch < 1 or self.resamples < 1:
            raise UsageError("--window-batch and --resamples must be 1 or more.")
        if not self.scales or any(not 0 < scale <= 8 for scale in self.scales):
            raise UsageError(
                Message(
                    "--scales {scales} must lie above 0, and not above 8.", ", ".join(map(str, self.scales))
                )
            )

    def windows(self) -> str | dict[str, list[int]] | None:
        """Return what to slide, as the child takes it."""
        if self.window is None:
            return "whole" if self.whole else None
        stride = self.stride or max(1, self.window * 2 // 3)
        return {"size": [self.window] * 2, "stride": [stride] * 2}

    def views(self) -> list[tuple[float, str]]:
        flips = ("", *dict.fromkeys(self.flips))
        return [(scale, flip) for scale in dict.fromkeys(self.scales) for flip in flips]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Scores over some of the images, with the interval of their mIoU."""

    scores: Scores
    interval: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Against another checkpoint, on the same images.

    Attributes:
        gain: mIoU of the one less that of the other, with its paired interval.
    """

    checkpoint: Path
    iteration: int | None
    scores: Scores
    gain: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        iteration: That it was saved at; None where it does not say.
        looked: How, in words.
        palette: The classes' colours.
        scores: Over all images.
        interval: Of their mIoU.
        areas: The same for ``Urban`` and ``Rural`` alone, where the layout tells them apart.
        comparison: With another checkpoint, where one was given.
        num_taken_over: Images whose counts were there already.
        file: Where this was written, as JSON.
        examples: Pictures of a few images: image, mask, prediction.
    """

    checkpoint: Path
    sha256: str
    iteration: int | None
    split: Split
    looked: str
    palette: tuple[tuple[int, int, int], ...]
    scores: Scores
    interval: Interval | None
    areas: Mapping[str, Part]
    comparison: Comparison | None
    num_taken_over: int
    file: Path
    examples: tuple[Path, ...] = ()

    @property
    def too_few(self) -> bool:
        """Whether there are too few images for the intervals to be relied on."""
        return self.scores.num_images < metrics.MIN_IMAGES

    def to_json(self) -> dict[str, Any]:
        other = self.comparison
        return {
            "schema": SCHEMA,
            "checkpoint": str(self.checkpoint),
            "sha256": self.sha256,
            "iteration": self.iteration,
            "split": self.split,
            "looked": self.looked,
            "confidence": metrics.CONFIDENCE,
            "too_few_images": self.too_few,
            "palette": [list(colour) for colour in self.palette],
            **self.scores.to_json(),
            "miou_interval": _interval_json(self.interval),
            "examples": [picture.name for picture in self.examples],
            "areas": {
                name: {**part.scores.to_json(), "miou_interval": _interval_json(part.interval)}
                for name, part in self.areas.items()
            },
            "against": None
            if other is None
            else {
                "checkpoint": str(other.checkpoint),
                "iteration": other.iteration,
                **other.scores.to_json(),
                "gain": _interval_json(other.gain),
                "settled": other.gain is not None and other.gain.settled,
            },
        }


def evaluate(
    subject: ModelSource,
    options: EvaluationOptions,
    *,
    against: Path | None = None,
    on_event: OnEvent | None = None,
) -> Evaluation:
    """Evaluate a model on its config's data, and write what was found beside the run.

    Args:
        subject: The model, opened with ``needs_data``.
        options: How to look.
        against: Another checkpoint of the same config to compare with, image by image.
        on_event: Told ``progress`` with ``done`` and ``total``, and ``warning``.

    Raises:
        Interrupted: By Ctrl-C; what was counted is kept.
        CheckpointError: One of the checkpoints is damaged, or of another model.
        DataError: Data is missing, unreadable or without masks.
        MachineError: The work dir cannot be written.
        JobError: The child failed in another way.
    """
    other = replace(subject, inspection=judge(against)) if against is not None else None
    counted = count(subject, options, on_event=on_event)
    compared = None
    if other is not None:
        same = other.inspection.sha256 == subject.inspection.sha256
        compared = replace(counted, subject=other) if same else count(other, options, on_event=on_event)
    return conclude(counted, options, against=compared)


def conclude(counted: Counted, options: EvaluationOptions, *, against: Counted | None = None) -> Evaluation:
    """Return what counts say, and write it beside the run.

    Raises:
        OSError: The work dir cannot be written.
    """
    comparison = None
    if against is not None:
        gain = metrics.paired_interval(counted.confusions, against.confusions, resamples=options.resamples)
        comparison = Comparison(
            checkpoint=against.subject.checkpoint,
            iteration=against.subject.inspection.iteration,
            scores=against.part(options).scores,
            gain=gain,
        )
    whole = counted.part(options)
    names = sorted(set(counted.areas) - {""})
    found = Evaluation(
        checkpoint=counted.subject.checkpoint,
        sha256=str(counted.subject.inspection.sha256),
        iteration=counted.subject.inspection.iteration,
        split=options.split,
        looked=_in_words(options, counted.subject),
        palette=counted.palette,
        scores=whole.scores,
        interval=whole.interval,
        areas={name: counted.part(options, area=name) for name in names} if len(names) > 1 else {},
        comparison=comparison,
        num_taken_over=counted.num_taken_over,
        file=counted.file,
        examples=tuple(sorted(counted.file.parent.glob(f"{counted.file.stem}-*.png"))),
    )
    replace_file(found.file, json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """One model's counts on every image of a split.

    Attributes:
        file: What :func:`conclude` writes; the tally lies beside it.
        areas: ``Urban``, ``Rural`` or nothing, by image.
        confusions: By image, ``(N, C + 1, C + 1)``.
        num_taken_over: Images that had been counted before.
    """

    subject: ModelSource
    file: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    areas: tuple[str, ...]
    confusions: metrics.Counts
    num_taken_over: int

    def part(self, options: EvaluationOptions, *, area: str | None = None) -> Part:
        """Return the scores of all images, or of one area's."""
        chosen = self.confusions
        if area is not None:
            chosen = chosen[[name == area for name in self.areas]]
        return Part(
            scores=metrics.score(chosen.sum(axis=0), self.classes, num_images=len(chosen)),
            interval=metrics.miou_interval(chosen, resamples=options.resamples),
        )


def count(subject: ModelSource, options: EvaluationOptions, *, on_event: OnEvent | None = None) -> Counted:
    """Return a model's counts on every image, those from before among them.

    Raises:
        Interrupted: By Ctrl-C; what was counted is kept.
        MapsageError: As :func:`evaluate`.
    """
    folder = WorkDir(subject.work_dir).evaluation
    file = folder / f"{subject.checkpoint.stem}-{_key(subject, options)}.json"
    tally = file.with_suffix(".jsonl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tally.touch()
    except OSError as error:
        raise MachineError(
            Message("{folder} cannot be written: {why}.", folder, error.strerror or error),
            "Give another --work-dir.",
        ) from error
    job = {
        **subject.job(),
        "split": options.split,
        "windows": options.windows(),
        "window_batch": options.window_batch,
        "views": options.views(),
        "tally": str(tally),
    }
    with as_interrupted("The same command goes on where it was: what was counted is kept."):
        answer = run_child("evaluate", job, subject, on_event)
    counts = read_tally(tally)
    return Counted(
        subject=subject,
        file=file,
        classes=tuple(answer["classes"]),
        palette=tuple((red, green, blue) for red, green, blue in answer["palette"]),
        areas=tuple(answer["areas"]),
        confusions=np.array([counts[image] for image in answer["images"]], dtype=np.int64),
        num_taken_over=int(answer["num_taken_over"]),
    )


def _key(subject: ModelSource, options: EvaluationOptions) -> str:
    """Return a digest of all that the counts depend on, but for the images, which the tally names."""
    cfg = as_mapping(subject.cfg)
    loader = cfg.get(f"{options.split}_dataloader") or {}
    data = {key: value for key, value in (loader.get("dataset") or {}).items() if key != "data_root"}
    parts = {
        "schema": SCHEMA,
        "sha256": subject.inspection.sha256,
        "model": cfg.get("model"),
        "data": data,
        "evaluator": cfg.get(f"{options.split}_evaluator"),
        "windows": options.windows(),
        "views": options.views(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _in_words(options: EvaluationOptions, subject: ModelSource) -> str:
    test_cfg: Mapping[str, Any] = subject.cfg.model.get("test_cfg") or {}
    asked = options.windows()
    places: Mapping[str, Any] | None = None
    if isinstance(asked, dict):
        places = asked
    elif asked is None and test_cfg.get("mode") == "slide":
        places = {"size": test_cfg["crop_size"], "stride": test_cfg["stride"]}
    views = options.views()
    how: str = Message("whole images")
    if places is not None:
        how = f"windows of {_sides(places['size'])} px every {_sides(places['stride'])} px"
    return how if len(views) == 1 and views[0] == (1.0, "") else f"{how}, {len(views)} views averaged"


def _sides(value: Sequence[int]) -> str:
    return " x ".join(map(str, value))


def _interval_json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else asdict(interval)
