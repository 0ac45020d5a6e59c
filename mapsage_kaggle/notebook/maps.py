"""What the cells of the maps notebook call: choose a model, make maps, check a submission, export.

:func:`maps` chooses the model and returns a session, whose methods are the cells after that. Maps are made
in scratch space, so that a cell that is run again continues, and copied to the output.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.config.modules import find_config
from mapsage_kaggle.config.scale import ScaleOptions
from mapsage_kaggle.display.jobs import JobProgress, export_text
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel, Table, say, show
from mapsage_kaggle.display.text import score_text
from mapsage_kaggle.errors import DataError, MapsageError
from mapsage_kaggle.imagery.journal import Journal
from mapsage_kaggle.imagery.sources import JOURNAL
from mapsage_kaggle.jobs.export import SUMS, ExportOptions, export
from mapsage_kaggle.jobs.predict import SUBMISSION, Prediction, PredictOptions, predict
from mapsage_kaggle.jobs.subject import ModelOptions, ModelSource, open_subject
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import KagglePaths
from mapsage_kaggle.records import read_record
from mapsage_kaggle.training.options import in_notebook

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_SHOWN = 4
"""How many maps are shown as pictures."""
_THUMBNAIL = 420
_OPTION = re.compile(r"--(scale|gsd|trained-gsd|min-area|bands|value-range)\b(?: (\d[\d.]*\d|\d))?")
MAX_FILES = 400
"""With more files than this the maps are packed: Kaggle shows, and attaches, outputs of fewer than 500."""


def maps(
    config: str | Path,
    *,
    images: str | Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    run: str | None = None,
    overrides: Sequence[str] = (),
    code: Sequence[str] = (),
    scale: float | None = None,
    gsd: float | None = None,
    trained_gsd: float | None = None,
    bands: Sequence[int] | None = None,
    value_range: Sequence[float] | None = None,
    language: str = "en",
    **wanted: Any,
) -> MapsSession:
    """Choose the model, show which it is and why, and look for the images.

    Args:
        config: A config file, or the name of one that comes with the kit.
        images: Images or folders of them: paths, ``owner/slug`` of a data set, or names below the inputs.
            None: EarthVQA's test split, packed as a submission.
        checkpoint: A file; None for the best of what is attached.
        run: The run's id, where several are attached.
        overrides: ``key=value`` with dotted keys, for the config.
        code: Folders whose modules the config may import.
        scale: The factor by which images are resized for the model.
        gsd: Their ground sample distance, in metres per pixel.
        trained_gsd: That of the training images.
        bands: Which bands are red, green and blue, counted from 1.
        value_range: The values that become 0 and 255, for more than 8 bits.
        language: Of all that is shown.
        wanted: Other fields of :class:`mapsage_kaggle.jobs.predict.PredictOptions`.

    Raises:
        UsageError: An option is invalid, or two contradict each other.
        CheckpointError: There is no sound checkpoint, or several runs could be meant.
        DataError: There are no images.
    """
    words = Words(language, in_parameters)
    with words.refusing():
        paths = KagglePaths.from_environment()
        named = [images] if isinstance(images, str) else list(images or ())
        options = PredictOptions(
            out=paths.temp / "maps",
            images=tuple(place_of(name, paths.input) for name in named),
            submission=not named,
            scale=ScaleOptions(scale=scale, gsd=gsd, trained_gsd=trained_gsd),
            bands=tuple(bands) if bands else None,
            value_range=(value_range[0], value_range[1]) if value_range else None,
            **wanted,
        )
        model = ModelOptions(
            config=find_config(config),
            checkpoint=Path(checkpoint) if checkpoint else None,
            run=run,
            overrides=tuple(overrides),
            code=tuple(map(Path, code)),
            needs_data=not named,
        )
        subject = open_subject(model, paths=paths)
        show(model_panel(subject, words))
        return MapsSession(subject, options, paths, words)


def in_parameters(template: str) -> str:
    """Return a message's template with this notebook's parameters where it names the command's options."""
    named = _OPTION.sub(
        lambda found: found[1].replace("-", "_").upper() + (f" = {found[2]}" if found[2] else ""), template
    )
    return in_notebook(named)


def place_of(name: str, inputs: Path) -> Path:
    """Return the path of images that are given by path, as ``owner/slug``, or by name below the inputs.

    Raises:
        DataError: There is none.
    """
    slug = name.rpartition("/")[2]
    for place in (Path(name), inputs / name, inputs / "datasets" / name, inputs / slug):
        if place.exists():
            return place
    raise DataError(
        Message("There are no images at {name}, and no input of that name.", name),
        "Attach them (Add Input), and name them in IMAGES.",
    )


def model_panel(subject: ModelSource, words: Words) -> Panel:
    """Return which checkpoint is used, and why."""
    record = read_record(subject.checkpoint.parent / "session.json")
    best = record.best if record is not None else None
    if subject.options.checkpoint is not None:
        why = words("maps_named")
    elif best is not None and best.file == subject.checkpoint.name:
        why = words("maps_recorded", score=score_text(best))
    elif subject.checkpoint.name.startswith("best_"):
        why = words("maps_best")
    else:
        why = words("maps_newest")
    facts = [(words("checkpoint"), str(subject.checkpoint)), ("sha256", subject.inspection.sha256 or "")]
    if subject.inspection.iteration is not None:
        facts.insert(1, (words("table_iteration"), f"{subject.inspection.iteration:,}"))
    return Panel(title=words("maps_model"), tone="good", lead=why, facts=tuple(facts))


class MapsSession:
    """A model that makes maps in a notebook.

    Attributes:
        subject: The model.
        options: What to make of which images.
        prediction: The result; None before :meth:`predict`, and where that failed.
    """

    def __init__(
        self, subject: ModelSource, options: PredictOptions, paths: KagglePaths, words: Words
    ) -> None:
        self.subject, self.options = subject, options
        self.prediction: Prediction | None = None
        self._paths, self._words = paths, words
        self._incomplete = ""

    def predict(self) -> None:
        """Make the maps, show a few, and copy the files, or the submission, to the output.

        An image that cannot be read is reported and skipped.
        """
        words, model = self._words, self._model()
        self.prediction, self._incomplete = None, ""
        with words.refusing(), JobProgress("images", sys.stdout, words.translate) as progress:
            try:
                self.prediction = predict(model, self.options, progress.take)
            except DataError as error:
                if not self.options.submission or not (self.options.out / JOURNAL).is_file():
                    raise
                self._incomplete = words.refusal(error)
        made = self.options.out
        lines = lines_of(made, None if self.prediction is None else self.prediction.files)
        if not self.options.submission:
            kept = keep(made, lines, self._paths.working / "maps")
        elif self._incomplete:
            kept = []
        else:
            kept = [Path(shutil.copy(made / SUBMISSION, self._paths.working))]
        show(self._maps_panel(lines, kept))

    def check(self) -> None:
        """Show whether the submission is complete."""
        words, archive = self._words, self._paths.working / SUBMISSION
        if not self.options.submission:
            panel = Panel(title=words("maps_submission"), lead=words("maps_no_submission"))
        elif self.prediction is None:
            lead = self._incomplete or words("maps_not_yet")
            panel = Panel(title=words("maps_submission"), tone="bad", lead=lead)
        else:
            with zipfile.ZipFile(archive) as content:
                count = len(content.namelist())
            lead = words("maps_complete", path=archive, count=count)
            facts = (("sha256", file_sha256(archive)),)
            panel = Panel(title=words("maps_submission"), tone="good", lead=lead, facts=facts)
        show(panel)

    def export(self, enabled: bool = True, **wanted: Any) -> None:
        """Export the model in formats that do not need the kit; a failure is shown, not raised.

        Args:
            enabled: False skips it.
            wanted: Other fields of :class:`mapsage_kaggle.jobs.export.ExportOptions`.
        """
        words, out = self._words, self._paths.working / "export"
        if not enabled:
            show(Panel(title=words("maps_export"), lead=words("maps_export_off")))
            return
        if (out / SUMS).is_file():
            shutil.rmtree(out)  # of the cell's last run
        try:
            with JobProgress("forms", sys.stdout, words.translate) as progress:
                options = ExportOptions(out=out, **wanted)
                found = export(self._model(), options, progress.take, paths=self._paths)
        except (MapsageError, OSError) as error:
            message = words.refusal(error) if isinstance(error, MapsageError) else str(error)
            show(Panel(title=words("maps_export"), tone="bad", lead=message))
            return
        say(export_text(found))
        show(Panel(title=words("maps_export"), tone="good", lead=words("maps_exported", path=out)))

    def _model(self) -> ModelOptions:
        """Return the model that was shown, whatever has been attached or written since."""
        return replace(self.subject.options, checkpoint=self.subject.checkpoint, needs_data=False)

    def _maps_panel(self, lines: Sequence[Mapping[str, Any]], kept: Sequence[Path]) -> Panel:
        words, found = self._words, self.prediction
        pixels: Counter[str] = Counter()
        hectares: Counter[str] = Counter()
        for line in lines:
            pixels.update(line["pixels"])
            hectares.update(line.get("hectares", {}))
        total = sum(pixels.values()) or 1
        rows = [
            (name, f"{100 * count / total:.2f} %", f"{hectares[name]:,.2f}" if hectares else "–")
            for name, count in pixels.items()
        ]
        header = (words("eval_class").partition(",")[0], words("eval_share"), words("maps_hectares"))
        refused = found.refused if found is not None else ()
        return Panel(
            title=words("maps"),
            tone="bad" if not lines else "note" if refused or self._incomplete else "good",
            lead=words("maps_made", count=len(lines), refused=len(refused)),
            notes=tuple(words.translate(problem) for _, problem in refused[:10]),
            table=Table(header=header, rows=tuple(rows), right=frozenset({1, 2})),
            lists=((words("maps_files"), tuple(str(path) for path in kept)),),
            pictures=tuple(
                picture(Path(line["image"]), self.options.out / line["files"][0])
                for line in lines[:NUM_SHOWN]
            ),
        )


def keep(made: Path, lines: Sequence[Mapping[str, Any]], target: Path) -> list[Path]:
    """Copy maps to the output, packed by kind where there are many files; return what lies there.

    Args:
        made: Where they were made.
        lines: Of the journal, one for each image.
        target: The folder; what it held is deleted.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (target / JOURNAL).write_text(text, encoding="utf-8", errors="backslashreplace")
    files = [Path(name) for line in lines for name in line["files"]]
    for kind in sorted({file.parts[0] for file in files}):
        named = [file for file in files if file.parts[0] == kind]
        if len(files) > MAX_FILES:
            with zipfile.ZipFile(target / f"{kind}.zip", "w", zipfile.ZIP_STORED) as archive:
                for file in named:
                    archive.write(made / file, file.relative_to(kind))
            continue
        for file in named:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made / file, target / file)
    return sorted(target.iterdir())


def lines_of(folder: Path, names: Iterable[str] | None) -> list[dict[str, Any]]:
    """Return the journal's newest line of each image; of all that it has for None."""
    newest = Journal(folder).lines
    return [newest[name] for name in sorted(newest if names is None else names) if name in newest]


def picture(image: Path, mask: Path) -> bytes:
    """Draw an image and its map side by side, as PNG."""
    shown = Image.new("RGB", (2 * _THUMBNAIL + 8, _THUMBNAIL), "white")
    for place, path in ((0, image), (_THUMBNAIL + 8, mask)):
        shown.paste(_thumbnail(path), (place, 0))
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    return stream.getvalue()


def _thumbnail(path: Path) -> Image.Image:
    """Return an image at thumbnail size, white where it cannot be read; a TIFF is read decimated."""
    import numpy as np

    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            import rasterio

            with rasterio.open(path) as source:
                factor = _THUMBNAIL / max(source.width, source.height, _THUMBNAIL)
                size = (max(1, round(source.height * factor)), max(1, round(source.width * factor)))
                bands = list(range(1, source.count + 1))[:3]
                read: NDArray[Any] = source.read(bands, out_shape=(len(bands), *size)).astype(np.float64)
                colours = source.colormap(1) if source.colorinterp[0].name == "palette" else None
            if colours is not None:
                table = np.array([colours.get(value, (0, 0, 0, 0))[:3] for value in range(256)], np.uint8)
                return Image.fromarray(table[read[0].astype(np.uint8)])
            low, high = np.percentile(read, (2, 98))
            scaled = np.clip((read - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
            return Image.fromarray(np.moveaxis(scaled if len(scaled) == 3 else scaled[[0] * 3], 0, -1))
        with Image.open(path) as opened:
            opened.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            found: Image.Image = opened.convert("RGB")
    except (ImportError, OSError, ValueError):
        return Image.new("RGB", (1, 1), "white")
    found.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return found
