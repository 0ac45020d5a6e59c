"""Hand a trained model on: weights without a pickle, ONNX, ``torch.export``, a card, Kaggle's metadata.

    export(ModelOptions(config=config), ExportOptions(out=Path("export")))

The work is done by :mod:`mapsage_kaggle.engine.jobs.export` in a child. The folder appears under its name
with the weights and their card; each further form comes into it when it was written, run again and compared.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.config.reading import dataset_of
from mapsage_kaggle.display.history import one_run, read_sessions
from mapsage_kaggle.display.jobs import Card, card_text
from mapsage_kaggle.errors import DataError, Interrupted, MapsageError, UsageError
from mapsage_kaggle.jobs.child import OnEvent, as_interrupted, run_child
from mapsage_kaggle.jobs.licences import licence_of
from mapsage_kaggle.jobs.subject import ModelOptions, ModelSource, open_subject
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.paths import KagglePaths

FORMS = ("safetensors", "onnx", "torch")
OWNER_TO_FILL_IN = "INSERT_OWNER_SLUG_HERE"
"""The official client refuses to upload while this stands in the metadata."""
LICENCE_TO_FILL_IN = "INSERT_LICENSE_NAME_HERE"
"""Where Kaggle has no name for the licence, or none was given."""

CARD, SUMS = "README.md", "SHA256SUMS"
MODEL_METADATA, INSTANCE_METADATA = "model-metadata.json", "model-instance-metadata.json"

_TITLE_LENGTH = (5, 50)
_TOLD_EVERY_S = 10.0
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What to write, and what to say of it.

    Attributes:
        out: The folder to make. It must not exist, or be empty.
        forms: Of ``FORMS``; the weights are always among them.
        images: Images to compare the forms on; none for the validation set's.
        licence: Of the model: an identifier or a name, such as ``CC BY-NC-SA 4.0``, see
            :mod:`.licences`. It must agree with those of the data and of pretrained weights.
        owner: Kaggle user name, for the upload; None to leave it to be filled in.
        slug: The model's name on Kaggle.
        form_limit_s: How long one form may take; its exporter is then ended.
    """

    out: Path
    forms: tuple[str, ...] = FORMS
    images: tuple[Path, ...] = ()
    licence: str = "Other"
    owner: str | None = None
    slug: str = "mapsage-segformer"
    form_limit_s: float = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedFile:
    """One form of the model.

    Attributes:
        max_difference: The furthest that any of its logits was from the original's.
        agreement: Share of the pixels that got the same class.
        sizes: What it was run at: height and width, or a batch and these.
        fixed: The one height and width that it takes; None where it takes any.
    """

    name: str
    size_bytes: int
    sha256: str
    max_difference: float
    agreement: float
    sizes: tuple[tuple[int, ...], ...]
    fixed: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What came of an export.

    Attributes:
        files: The forms that hold.
        failed: Names of those that do not, each with the reason.
        compared_on: The images, or ``noise``.
        to_fill_in: What stands in the metadata in place of what only a person knows.
    """

    out: Path
    files: tuple[ExportedFile, ...]
    failed: tuple[tuple[str, str], ...]
    compared_on: tuple[str, ...]
    to_fill_in: tuple[str, ...]


def export(
    model: ModelOptions,
    options: ExportOptions,
    on_event: OnEvent | None = None,
    *,
    paths: KagglePaths | None = None,
) -> Export:
    """Write a trained model in forms that need neither this kit nor a pickle.

    The weights come first. Each form is run again after writing and compared with the original; one that
    does not hold, or takes too long, is left out, and named.

    Args:
        model: Which one. It is exported on the CPU, whatever the device.
        options: What to write.
        on_event: Told of progress and of warnings.
        paths: Kaggle's folders.

    Raises:
        UsageError: The folder has something in it, or cannot be made, or an option makes no sense.
        CheckpointError: There is no checkpoint, or it is rejected, or of another model.
        DataError: An image to compare on cannot be read.
        Interrupted: By Ctrl-C; the folder holds what was made before, with its card.
        JobError: Not even the weights could be written.
    """
    _check(options)
    subject = _open(model, options, paths)
    told = on_event or (lambda event: None)
    _, *forms = (form for form in FORMS if form == FORMS[0] or form in options.forms)
    unfinished = options.out.with_name(options.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        problem = Message("{path} could not be written: {why}.", options.out, error.strerror or error)
        raise UsageError(problem, "Name a new folder with --out.") from error
    try:
        with as_interrupted("Nothing was written. Run the same command again."):
            found = run_child(
                "export", {**_job(subject, options, unfinished), "forms": FORMS[:1]}, subject, told
            )
            to_fill_in = _describe(unfinished, found, subject, options, forms)
            _open_to_read(unfinished)
            if options.out.is_dir():
                options.out.rmdir()
            unfinished.replace(options.out)
        with as_interrupted(
            Message("{path} holds what was made before; its card says what is missing.", options.out)
        ):
            for number, form in enumerate(forms, start=1):
                unfinished.mkdir()
                _add_form(found, subject, options, unfinished, told, (number, form))
                _open_to_read(unfinished)
                for file in unfinished.iterdir():
                    file.replace(options.out / file.name)
                unfinished.rmdir()
                to_fill_in = _describe(options.out, found, subject, options, forms[number:])
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Export(
        out=options.out,
        files=_files(found),
        failed=tuple((item["name"], item["reason"]) for item in found["failed"]),
        compared_on=tuple(found["compared_on"]),
        to_fill_in=to_fill_in,
    )


def _open_to_read(folder: Path) -> None:
    """Give every file the mode that a new one gets: safetensors' writer makes files for their owner alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.iterdir():
        file.chmod(mode)


def _job(subject: ModelSource, options: ExportOptions, out: Path) -> dict[str, Any]:
    images = [str(file.absolute()) for file in options.images]
    return {**subject.job(), "out": str(out.absolute()), "images": images}


def _add_form(
    found: dict[str, Any],
    subject: ModelSource,
    options: ExportOptions,
    out: Path,
    on_event: OnEvent,
    nth: tuple[int, str],
) -> None:
    """Have a form made by a child of its own, and note in ``found`` what came of it.

    One that does not hold for any size, or whose exporter comes to no end, is made for one size.
    """
    number, form = nth
    job = {**_job(subject, options, out), "forms": [form]}
    problems: list[dict[str, str]] = []
    for fixed in (False, True):
        name = f"{form}, {'one size' if fixed else 'any size'}"
        show = _Progress(on_event, name, number, len(FORMS), options.form_limit_s)
        try:
            more = run_child(
                "export", {**job, "fixed": fixed}, subject, show.take, limit_s=options.form_limit_s,
                on_wait=show.wait,
            )  # fmt: skip
        except MapsageError as error:
            if isinstance(error, Interrupted):
                raise
            more = {"files": [], "failed": [{"name": name, "reason": error.problem}]}
        problems += [{**item, "name": name} for item in more["failed"]]
        found["files"] += more["files"]
        if more["files"] or (form == "onnx" and found["draws"]):  # which no size mends
            break
    found["failed"] += problems
    for item in problems:
        on_event({"event": "warning", "problem": joined_by(": ", (item["name"], item["reason"]))})


class _Progress:
    """Tells of a form how long it has taken, every few seconds."""

    def __init__(self, on_event: OnEvent, name: str, done: int, total: int, limit_s: float) -> None:
        self._on_event, self._name, self._limit_s = on_event, name, limit_s
        self._done, self._total, self._last_s = done, total, -_TOLD_EVERY_S

    def take(self, event: Mapping[str, Any]) -> None:
        """Pass on what the child says but its own progress, and what the first one has said already."""
        if event["event"] not in ("progress", "warning"):
            self._on_event(event)

    def wait(self, elapsed_s: float) -> None:
        """Tell how long it has taken."""
        if elapsed_s - self._last_s >= _TOLD_EVERY_S:
            self._last_s = elapsed_s
            name = f"{self._name}: {elapsed_s:.0f} s of at most {self._limit_s:.0f} s"
            self._on_event({"event": "progress", "done": self._done, "total": self._total, "name": name})


def _check(options: ExportOptions) -> None:
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UsageError(Message("{path} is there already.", options.out), "Name a new folder with --out.")
    unknown = [form for form in options.forms if form not in FORMS]
    if unknown:
        raise UsageError(
            Message("{names} is no form to export.", ", ".join(unknown)),
            Message("Choose of {names}.", ", ".join(FORMS)),
        )
    if not _SLUG.fullmatch(options.slug):
        raise UsageError(
            Message("--slug {slug} is no name that Kaggle takes.", options.slug),
            "Use a-z, 0-9 and single hyphens between.",
        )
    if not options.licence.strip():
        raise UsageError("The licence is empty.", "Such as --licence 'CC BY-NC-SA 4.0'.")
    for file in options.images:
        if not file.is_file():
            raise DataError(Message("There is no image at {path}.", file), "Check the path.")


def _open(model: ModelOptions, options: ExportOptions, paths: KagglePaths | None) -> ModelSource:
    """Open the model, with its data set where that is wanted and there."""
    model = dataclasses.replace(model, device="cpu", needs_data=False)
    if not options.images:
        with suppress(DataError):  # compared on noise then; the child says so
            return open_subject(dataclasses.replace(model, needs_data=True), paths=paths)
    return open_subject(model, paths=paths)


def _files(found: Mapping[str, Any]) -> tuple[ExportedFile, ...]:
    return tuple(
        ExportedFile(
            **{
                **item,
                "sizes": tuple(tuple(size) for size in item["sizes"]),
                "fixed": tuple(item["fixed"]) if item["fixed"] else None,
            }
        )
        for item in found["files"]
    )


def _describe(
    folder: Path,
    found: Mapping[str, Any],
    subject: ModelSource,
    options: ExportOptions,
    left: Sequence[str],
) -> tuple[str, ...]:
    """Write the card, the sums, and what the official client reads to upload the folder.

    ``left`` are the forms that are still to come.

    Returns:
        What is to be filled in there.
    """
    licence = licence_of(options.licence)
    owner, licence_name = options.owner or OWNER_TO_FILL_IN, licence.kaggle or LICENCE_TO_FILL_IN
    classes = json.loads((folder / "classes.json").read_bytes())
    card = Card(
        title=_title(options.slug),
        licence=licence.text,
        licence_id=licence.identifier,
        config=subject.options.config.name,
        checkpoint=subject.checkpoint.name,
        checkpoint_sha256=subject.inspection.sha256 or "",
        iteration=subject.inspection.iteration,
        num_weights=int(found["num_weights"]),
        classes=classes,
        files=_files(found),
        failed=(
            *((item["name"], item["reason"]) for item in found["failed"]),
            *((form, "the export ended before it") for form in left),
        ),
        compared_on=tuple(found["compared_on"]),
        divisor=int(found["divisor"]),
        draws=tuple(found["draws"]),
        sessions=tuple(one_run(read_sessions([subject.checkpoint.parent]))),
        data=_data_name(subject),
    )
    text = card_text(card)
    (folder / CARD).write_text(text, encoding="utf-8")
    # Kaggle shows the head as text, and the use by itself.
    body = text.split("\n---\n", 1)[1].strip()
    use = body.split("\n## Use\n", 1)[1].split("\n## ", 1)[0].strip()
    _write_json(
        folder / MODEL_METADATA,
        {
            "ownerSlug": owner,
            "title": _title(options.slug),
            "slug": options.slug,
            "subtitle": f"{len(classes['classes'])} classes, iteration {subject.inspection.iteration}",
            "isPrivate": True,
            "description": body,
            "publishTime": "",
            "provenanceSources": "",
        },
    )
    _write_json(
        folder / INSTANCE_METADATA,
        {
            "ownerSlug": owner,
            "modelSlug": options.slug,
            "instanceSlug": "default",
            "framework": "pyTorch",
            "overview": f"{subject.options.config.stem}, {subject.checkpoint.name}",
            "usage": use,
            "licenseName": licence_name,
            "fineTunable": True,
            "trainingData": [],
            "modelInstanceType": "Unspecified",
            "baseModelInstanceId": 0,
            "externalBaseModelUrl": "",
        },
    )
    sums = {item["name"]: item["sha256"] for item in found["files"]}
    (folder / SUMS).unlink(missing_ok=True)
    for file in sorted(folder.iterdir()):
        sums.setdefault(file.name, file_sha256(file))
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
    (folder / SUMS).write_text(lines, encoding="utf-8")
    return tuple(text for text in (owner, licence_name) if text in (OWNER_TO_FILL_IN, LICENCE_TO_FILL_IN))


def _title(slug: str) -> str:
    least, most = _TITLE_LENGTH
    return slug.replace("-", " ").capitalize()[:most].strip().ljust(least, ".")


def _data_name(subject: ModelSource) -> str:
    kind = dataset_of(subject.cfg).get("type", "")
    return kind if isinstance(kind, str) else getattr(kind, "__name__", "")


def _write_json(file: Path, document: Mapping[str, Any] | Sequence[Any]) -> None:
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
