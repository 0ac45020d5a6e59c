"""Maps from images: what is asked, checked here; what is done, in a child (:mod:`.engine.predict`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from mapsage_kaggle.config.reading import data_roots_of
from mapsage_kaggle.config.scale import ScaleOptions, choose_scale
from mapsage_kaggle.data import datasets
from mapsage_kaggle.errors import ConfigError, DataError, UsageError
from mapsage_kaggle.imagery.reading import missing_extra
from mapsage_kaggle.imagery.sources import Source, check_out, find_images
from mapsage_kaggle.imagery.submission import check_submission, write_submission
from mapsage_kaggle.imagery.writing import Labels
from mapsage_kaggle.jobs.child import OnEvent, as_interrupted, run_child
from mapsage_kaggle.jobs.subject import ModelOptions, ModelSource, open_subject
from mapsage_kaggle.messages import Message, from_said

SUBMISSION = "submission.zip"
_SUBMISSION_LABELS = Labels(
    classes=datasets.EARTHVQA_CLASSES,
    palette=datasets.EARTHVQA_PALETTE,
    numbers=tuple(range(1, len(datasets.EARTHVQA_CLASSES) + 1)),
    no_data=datasets.NO_DATA,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """What to make of which images.

    Attributes:
        out: The folder to write below.
        images: Images and folders of images. Empty for a submission.
        submission: Whether to predict the data set's test split and pack it for the benchmark.
        overlay: Whether to write the image with each class's colour laid over it, too.
        probabilities: Whether to write a GeoTIFF with a band for each class, 0 to 250.
        polygons: Whether to write a GeoPackage.
        min_area: Smaller polygons are left out, in square metres; in pixels where an image has no CRS.
        window: Side of the windows over images that are larger, in pixels as the model sees them; by default
            1024 over images of more than 2048 x 2048 pixels.
        overlap: Of neighbouring windows, in pixels; by default a quarter of the window.
        bands: Which bands are red, green and blue, counted from 1.
        value_range: The values that become 0 and 255, for more than 8 bits.
        scale: What is said of the images' scale, beside what the checkpoint says.
        fast: Whether quicker parts, equal to rounding, may stand in for the model's own.
        half: Whether to compute in half precision: faster on a GPU, and a few pixels fall otherwise.
    """

    out: Path
    images: tuple[Path, ...] = ()
    submission: bool = False
    overlay: bool = False
    probabilities: bool = False
    polygons: bool = False
    min_area: float = 0.0
    window: int | None = None
    overlap: int | None = None
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    fast: bool = True
    half: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What came of it.

    Attributes:
        num_done: Images that were predicted now.
        num_before: Images that an earlier run had predicted.
        num_pixels: Of the images that were predicted now.
        refused: Path and reason of each image that was not.
        skipped: What was left out of the folders that were named.
        files: Each image's mask, by the image's name.
        seconds: What it took, without loading the model.
        peak_memory_bytes: Of the child.
        archive: The submission.
    """

    out: Path
    num_done: int
    num_before: int
    num_pixels: int
    refused: tuple[tuple[Path, str], ...]
    skipped: tuple[str, ...]
    files: Mapping[str, Path]
    seconds: float
    peak_memory_bytes: int
    archive: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {
            **asdict(self),
            "out": str(self.out),
            "refused": [{"path": str(path), "problem": problem} for path, problem in self.refused],
            "files": {name: str(file) for name, file in self.files.items()},
            "archive": str(self.archive) if self.archive is not None else None,
        }


def predict(model: ModelOptions, options: PredictOptions, on_event: OnEvent | None = None) -> Prediction:
    """Predict images; go on where an earlier run with the same options stopped.

    Args:
        model: Which model, and where to run it.
        options: What to make of which images.
        on_event: Told of ``progress`` (``done`` of ``total`` images, of which ``before`` took no time, and
            the ``name`` of a scene under way), ``refused`` (``path``, ``problem``) and, of what was left out,
            ``warning`` (``message``).

    Raises:
        UsageError: The options do not fit each other, or the folder holds files of another kind.
        ConfigError: A submission of other classes than the benchmark's is asked for.
        DataError: There is no image, or a submission would not be complete.
        MachineError: A package is missing.
        CheckpointError: The checkpoint is damaged, harmful, or of another model.
        Interrupted: By Ctrl-C. The same command goes on.
    """
    check_options(options)
    check_out(options.out)
    skipped: list[Message] = []

    def say(message: Message) -> None:
        skipped.append(message)
        if on_event is not None:
            on_event({"event": "warning", "message": message})

    sources = find_images(options.images, out=options.out, say=say) if not options.submission else ()
    with as_interrupted("The same command goes on where it stopped."):
        subject = open_subject(replace(model, needs_data=options.submission))
        if options.submission:
            sources = images_of_test_split(subject)
        found = _run(subject, options, sources, on_event)
    out = options.out.absolute()
    prediction = Prediction(
        out=out,
        num_done=found["num_done"],
        num_before=found["num_before"],
        num_pixels=found["num_pixels"],
        refused=tuple((Path(item["path"]), from_said(item)["problem"]) for item in found["refused"]),
        skipped=tuple(skipped),
        files={name: out / file for name, file in found["files"].items()},
        seconds=found["seconds"],
        peak_memory_bytes=found["peak_memory_bytes"],
    )
    return replace(prediction, archive=_pack(prediction, sources)) if options.submission else prediction


def _run(
    subject: ModelSource, options: PredictOptions, sources: Sequence[Source], on_event: OnEvent | None
) -> dict[str, Any]:
    said = options.scale
    if said.trained_gsd is None:
        said = replace(said, trained_gsd=subject.cfg.get("trained_gsd"))
    chosen = choose_scale(subject.inspection.scale, said)
    if chosen.reason and on_event is not None:
        on_event({"event": "notice", "message": chosen.reason})
    job = {**subject.job(), **_document(options, sources), "factor": chosen.factor}
    return run_child("predict", job, subject, on_event)


def check_options(options: PredictOptions) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        UsageError: The options do not fit each other.
        MachineError: A package is missing.
    """
    if options.submission == bool(options.images):
        raise UsageError(
            "Give images to predict, or --submission for the data set's test split; one of the two.",
            "See mapsage-kaggle predict --help.",
        )
    if options.window is not None and options.window < 32:
        raise UsageError(
            Message("Windows of {size} pixels are too small.", options.window), "Give --window 32 or more."
        )
    if options.overlap is not None and options.overlap < 0:
        raise UsageError(
            Message("An overlap of {overlap} pixels makes no sense.", options.overlap), "Give 0 or more."
        )
    if options.overlap is not None and options.window and options.overlap > options.window // 2:
        raise UsageError(
            Message("Windows of {size} pixels cannot overlap by {overlap}.", options.window, options.overlap),
            "Take an overlap of at most half of the window.",
        )
    if options.bands is not None and min(options.bands) < 1:
        raise UsageError(
            Message("--bands {bands} has a band below 1.", ",".join(map(str, options.bands))),
            "Bands are counted from 1: red, green and blue, such as 3,2,1, and then any others.",
        )
    if options.value_range is not None and not options.value_range[0] < options.value_range[1]:
        low, high = options.value_range
        raise UsageError(
            Message("--value-range {low} {high} is empty.", f"{low:g}", f"{high:g}"),
            "Give the lower value first.",
        )
    if options.min_area < 0 or (options.min_area and not options.polygons):
        raise UsageError(
            Message("--min-area {area} leaves nothing out.", f"{options.min_area:g}"),
            "Give it with --polygons, and 0 or more: square metres, or pixels of an image without a CRS.",
        )
    needed = ["rasterio"] if options.probabilities or options.polygons else []
    for package in [*needed, *(["shapely", "pyogrio"] if options.polygons else [])]:
        if find_spec(package) is None:
            raise missing_extra("geo", package, Message("to write probability maps and polygons"))


def images_of_test_split(subject: ModelSource) -> tuple[Source, ...]:
    """Return the test split of the config's data set.

    Raises:
        ConfigError: The data set is not EarthVQA.
        DataError: There is no test split.
    """
    kinds = data_roots_of(subject.cfg)
    roots = [Path(path) for path, kind in kinds.items() if kind == "EarthVQADataset"]
    if not roots:
        raise ConfigError(
            Message(
                "{path} reads {kinds}.",
                subject.options.config,
                ", ".join(sorted(set(kinds.values()))) or "no data set",
            ),
            "--submission is for EarthVQA; for another data set, predict its folder of images.",
        )
    pairs = datasets.list_pairs(datasets.read_data_root(roots[0]).split("Test"))
    return tuple(Source(path=pair.image, name=pair.image.stem) for pair in pairs)


def _pack(prediction: Prediction, sources: Sequence[Source]) -> Path:
    """Zip the masks of a test split, and check the archive before it gets its name.

    Raises:
        DataError: It is not complete.
    """
    archive = prediction.out / SUBMISSION
    archive.unlink(missing_ok=True)  # that of an earlier model must not be taken for this one's
    unchecked = archive.with_name("submission.unchecked.zip")
    refused = {path for path, _ in prediction.refused}
    expected = {}
    for source in sources:
        size = (0, 0)
        if source.path not in refused:
            with Image.open(source.path) as picture:
                size = picture.size
        expected[f"{source.name}.png"] = size
    try:
        write_submission(unchecked, {f"{name}.png": file for name, file in prediction.files.items()})
        check_submission(unchecked, expected, _SUBMISSION_LABELS, name=archive)
        unchecked.replace(archive)
    except DataError as error:
        refusals = [problem for _, problem in prediction.refused[:5]]
        raise DataError(error.problem, error.remedy, (*error.lines, *refusals)) from error
    finally:
        unchecked.unlink(missing_ok=True)
    return archive


_AS_THEY_ARE = ("overlay", "probabilities", "polygons", "min_area", "window", "overlap", "fast", "half")
"""Options that the child gets as they are."""


def _document(options: PredictOptions, sources: Sequence[Source]) -> dict[str, Any]:
    return {
        "out": str(options.out.absolute()),
        "images": [
            {"path": str(source.path.absolute()), "name": source.name, "is_named": source.is_named}
            for source in sources
        ],
        "bands": options.bands,
        "value_range": options.value_range,
        **{name: getattr(options, name) for name in _AS_THEY_ARE},
    }
