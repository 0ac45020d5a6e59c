"""Making maps from images: decoding, computing and writing side by side, in bounded memory.

An image of ordinary size goes through the config's test pipeline and comes out as from mmsegmentation. A
larger one is predicted in windows, see :mod:`mapsage_kaggle.imagery.windows`: row by row they are read,
predicted, blended and stored, so that memory depends on the scene's width and not on its height. Both are
seen at the same scale where it is known, see :mod:`.scaling`.

What is written, below the folder that was given:

    masks/<name>.png or .tif            the data set's own label values; GeoTIFF where the image is one
    overlays/<name>.png or .tif         the image with each class's colour laid over it
    probabilities/<name>.tif            a band for each class, 0 to 250; see :data:`.outputs.SCALE`
    polygons/<name>.gpkg                an area for each connected piece of a class
    predictions.jsonl                   a line for each image that is done
    unfinished/                         what is done of a large scene, see :mod:`mapsage_kaggle.imagery.parts`
"""

from __future__ import annotations

import hashlib
import json
import resource
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from mapsage_kaggle.checkpoints.lock import WorkDirLock
from mapsage_kaggle.config.reading import plain_copy
from mapsage_kaggle.config.testing import test_pipeline_of
from mapsage_kaggle.engine.building import num_inputs
from mapsage_kaggle.engine.fast.prediction import at_own_size
from mapsage_kaggle.engine.jobs.child import Emit, as_refusal
from mapsage_kaggle.engine.jobs.inference import TrainedModel, load_model
from mapsage_kaggle.engine.jobs.labels import labels_of, shared_out
from mapsage_kaggle.engine.jobs.pipelining import Bounded, ahead
from mapsage_kaggle.engine.jobs.preparing import TestPipeline, open_as_trained
from mapsage_kaggle.engine.jobs.scaling import Notices, Scaling, of_unknown_scale
from mapsage_kaggle.errors import ConfigError, DataError, UsageError
from mapsage_kaggle.imagery.areas import Tally
from mapsage_kaggle.imagery.journal import Journal, Stamp
from mapsage_kaggle.imagery.outputs import NO_PROBABILITY, ImageShape, ImageWriter
from mapsage_kaggle.imagery.parts import Parts
from mapsage_kaggle.imagery.polygons import block_lines
from mapsage_kaggle.imagery.reading import (
    Bytes,
    Picture,
    Pixels,
    ReadOptions,
    check_grid,
)
from mapsage_kaggle.imagery.sources import LOCK, Source
from mapsage_kaggle.imagery.windows import Axis, Blender
from mapsage_kaggle.imagery.writing import Labels, WriteFailed, aligned, overlay
from mapsage_kaggle.messages import Message, text_of, with_said

READERS = 2
WRITERS = 2
LOOK_AHEAD = 4
"""Images that are read, and results that are written, while the model is at work."""
WINDOW_BATCH_ON_GPU = 4
LOCK_WAIT_S = 15.0
"""More than a child whose parent was killed needs to end."""
_OF_ALL_IMAGES = (WriteFailed, UsageError, ConfigError)
"""Failures of the disk, the command or the config, not of one image."""
FORMAT = 2
"""Of the output. Where it is another one, an image is predicted again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be made of the images: the child's document, typed.

    The names are those of the options of :mod:`mapsage_kaggle.jobs.predict`, and :class:`.scaling.Scaling`'s.
    """

    out: Path
    sources: tuple[Source, ...]
    read: ReadOptions = field(default_factory=ReadOptions)
    overlay: bool = False
    probabilities: bool = False
    polygons: bool = False
    min_area: float = 0.0
    factor: float | None = None
    window: int | None = None
    overlap: int | None = None
    fast: bool = True
    half: bool = False

    @classmethod
    def from_job(cls, job: Mapping[str, Any]) -> Task:
        bands, value_range = job["bands"], job["value_range"]
        names = ("overlay", "probabilities", "polygons", "min_area", "window", "overlap", "fast")
        return cls(
            out=Path(job["out"]),
            sources=tuple(Source(**{**item, "path": Path(item["path"])}) for item in job["images"]),
            read=ReadOptions(
                bands=tuple(bands) if bands else None,
                value_range=(value_range[0], value_range[1]) if value_range else None,
            ),
            factor=job.get("factor"),
            half=bool(job.get("half")),
            **{name: job[name] for name in names},
        )

    def digest(self, cfg: Config, labels: Labels) -> str:
        """Return a digest of all that decides on the content of the files that are written."""
        options = [
            FORMAT, self.read.bands, self.read.value_range, self.overlay, self.probabilities, self.polygons,
            self.min_area, self.factor, self.window, self.overlap, self.fast, plain_copy(cfg.model),
            test_pipeline_of(cfg), asdict(labels), *(["half"] if self.half else []),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def run(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Predict every image; what is refused is reported and does not stop the others.

    Returns:
        ``num_done``, ``num_before`` (done by an earlier run), ``num_pixels`` (done now), ``refused``
        (``path`` and ``problem`` of each), ``files`` (masks by name), ``labels``, ``seconds`` and
        ``peak_memory_bytes``.

    Raises:
        ConfigError: The config has no test pipeline for single images.
        MachineError: Another process writes into the folder.
        UsageError: The bands that were named do not fit.
    """
    cfg = Config.fromfile(job["config"])
    task = Task.from_job(job)
    lock = WorkDirLock(task.out, file=task.out / LOCK, option="--out")
    lock.take(wait_s=LOCK_WAIT_S)
    try:
        model = load_model(
            cfg, Path(job["checkpoint"]), sha256=job["sha256"], device=job["device"], fast=task.fast,
            half=task.half,
        )  # fmt: skip
        emit("ready", device=str(model.device), total=len(task.sources))
        return Predictor(cfg, model, task, str(job["sha256"]), emit).run()
    finally:
        lock.release()


class Predictor:
    """Predicts a task's images with one model, by the config's test pipeline; emits progress and refusals."""

    def __init__(
        self, cfg: Config, model: TrainedModel, task: Task, checkpoint_sha256: str, emit: Emit
    ) -> None:
        self._model, self._task, self._emit = model, task, emit
        self._scaling = Scaling(factor=task.factor, window=task.window, overlap=task.overlap)
        self._prepare = TestPipeline(cfg, self._scaling.of_whole)
        if self._prepare.reads_rgb and len(task.read.bands or (1,)) not in (1, 3):
            raise UsageError(
                Message(
                    "--bands {bands} does not name three bands.", ",".join(map(str, task.read.bands or ()))
                ),
                "Give red, green and blue, counted from 1, such as 3,2,1; or one band for grey.",
            )
        self._labels = labels_of(cfg, model)
        task.out.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(task.out)
        self._stamp_by = {"checkpoint_sha256": checkpoint_sha256, "options": task.digest(cfg, self._labels)}
        self._lock = threading.Lock()
        self._notices = Notices(emit)
        self._num_done = self._num_before = self._num_pixels = 0
        self._files: dict[str, str] = {}
        self._refused: list[dict[str, str]] = []

    def run(self) -> dict[str, Any]:
        """Predict everything; see :func:`run`."""
        begin_s = time.monotonic()
        with (
            ThreadPoolExecutor(READERS, thread_name_prefix="read") as readers,
            ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as writers,
        ):
            written = Bounded(writers, LOOK_AHEAD)
            try:
                for source, future in ahead(readers, self._read, self._to_do(), LOOK_AHEAD):
                    self._predict(source, future, written)
                written.wait()
            except BaseException:
                readers.shutdown(wait=False, cancel_futures=True)
                writers.shutdown(wait=False, cancel_futures=True)
                raise
        return {
            "num_done": self._num_done,
            "num_before": self._num_before,
            "num_pixels": self._num_pixels,
            "refused": [with_said(item) for item in self._refused],
            "files": self._files,
            "labels": dict(zip(self._labels.classes, self._labels.numbers, strict=True)),
            "seconds": time.monotonic() - begin_s,
            "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }

    def _to_do(self) -> Iterator[Source]:
        for source in self._task.sources:
            try:
                if (other := self._journal.other_image(source)) is not None:
                    problem = Message(
                        "Its maps would replace those of {other}, which is called {name} as well.",
                        other,
                        source.name,
                    )
                    self._refuse(source, DataError(problem, "Give another --out."))
                    continue
                line = self._journal.finished(source, self._stamp(source))
            except OSError as error:
                self._refuse(source, error)
                continue
            if line is None:
                yield source
            else:
                self._num_before += 1
                self._files[source.name] = line["files"][0]

    def _stamp(self, source: Source) -> Stamp:
        return Stamp.of(source.path, **self._stamp_by)

    def _refuse(self, source: Source, error: Exception) -> None:
        """Record that an image could not be predicted, with its name."""
        if isinstance(error, OSError):
            error = DataError(Message("{name} cannot be read: {why}.", source.path, error.strerror or error))
        problem = text_of(as_refusal(error))
        if str(source.path) not in problem:
            problem = Message("{path}: {problem}", source.path, problem)
        self._refused.append({"path": str(source.path), "problem": problem})
        self._emit("refused", path=str(source.path), problem=problem)
        self._progress()

    def _progress(self, part: float = 0.0, name: str = "") -> None:
        before = self._num_before + len(self._refused)
        done, total = before + self._num_done + part, len(self._task.sources)
        self._emit("progress", done=done, before=before, total=total, name=name)

    # -- one image

    def _open(self, source: Source) -> AbstractContextManager[Picture]:
        options = replace(self._task.read, is_named=source.is_named)
        return open_as_trained(source.path, self._prepare, options, num_inputs(self._model.net))

    def _read(self, source: Source) -> _Read:
        """Open an image, and read and prepare it where it is of ordinary size."""
        stamp = self._stamp(source)
        with self._open(source) as picture:
            shape = ImageShape.of(picture)
            self._notices.tell(*picture.notices)
            if self._task.polygons:
                check_grid(picture)
            scaling, pixels, prepared, factor = self._scaling, None, None, self._scaling.factor or 1.0
            if scaling.is_whole(picture.height, picture.width):
                pixels = picture.read(0, picture.height)
        if pixels is not None:
            prepared = self._prepare(pixels)
            factor = scaling.of_whole or min(prepared[1].metainfo.get("scale_factor", (1.0,)))
        if scaling.of_whole is None and self._prepare.resizes:
            self._notices.tell(of_unknown_scale(source.path, factor))
        return _Read(stamp=stamp, shape=shape, pixels=pixels, prepared=prepared, factor=float(factor))

    def _predict(self, source: Source, future: Future[_Read], written: Bounded) -> None:
        try:
            found = future.result()
            if found.pixels is None:
                self._scene(source, found, written)
            else:
                self._image(source, found, found.pixels, written)
        except _OF_ALL_IMAGES:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other images can do without this one
            self._refuse(source, error)

    def _finish(self, source: Source, write: Callable[..., None], found: _Read, *arguments: Any) -> None:
        """Write an image's results, in a thread; a failure is that image's."""
        try:
            write(source, found, *arguments)
        except _OF_ALL_IMAGES:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(source, error)
        else:
            with self._lock:
                self._num_done += 1
                self._num_pixels += found.shape.width * found.shape.height
            self._progress()

    def _image(self, source: Source, found: _Read, pixels: Pixels, written: Bounded) -> None:
        assert found.prepared is not None
        logits = self._whole(*found.prepared)
        mask = self._labels.values(self._classes(logits[0]), pixels.valid)
        bands = self._bands(logits[0], pixels.valid) if self._task.probabilities else None
        written.submit(self._finish, source, self._write_image, found, pixels.rgb, mask, bands)

    def _whole(self, inputs: torch.Tensor, sample: Any) -> torch.Tensor:
        """Return one image's logits at its own size, as mmsegmentation's ``postprocess_result`` has them."""
        net = self._model.net
        found = net.data_preprocessor({"inputs": [inputs], "data_samples": [sample]}, False)
        logits = self._model.logits_of_inputs(found["inputs"], windows=self._model.windows)
        (prepared,) = found["data_samples"]  # a copy, which alone knows what was padded
        if prepared.metainfo.get("flip"):
            raise ConfigError("The test pipeline flips images.", "Take RandomFlip out of it.")
        return at_own_size(logits, prepared.metainfo, net)

    def _classes(self, logits: torch.Tensor) -> Bytes:
        """Return the class of each pixel, of shape ``(lines, columns)``."""
        if logits.device.type == "cpu" and len(logits) > 1:
            found: Bytes = logits.numpy().argmax(0).astype(np.uint8)  # in a fifth of torch's time
            return found
        return _as_bytes(self._model.labels(logits[None])[0])

    def _bands(self, logits: torch.Tensor, valid: np.ndarray[Any, Any] | None) -> Bytes:
        """Return probabilities, 0 to ``SCALE``, of shape ``(classes, lines, columns)``."""
        found = _as_bytes(shared_out(self._model.probabilities(logits[None])[0]))
        if valid is not None:
            found[:, ~valid] = NO_PROBABILITY
        return found

    def _write_image(
        self, source: Source, found: _Read, rgb: Bytes, mask: Bytes, bands: Bytes | None
    ) -> None:
        self._write(source, found, lambda: iter([mask]), iter([rgb]), iter([bands]))

    # -- one scene

    def _scene(self, source: Source, found: _Read, written: Bounded) -> None:
        shape = found.shape
        rows, columns = self._scaling.axes(shape.height, shape.width, self._model)
        num_bands = self._model.num_channels if self._task.probabilities else 0
        parts = Parts(
            self._task.out,
            source.name,
            rows,
            width=shape.width,
            num_probabilities=num_bands,
            stamp=found.stamp.to_json(),
        )
        missing = parts.num_done()
        try:
            if missing < len(rows.starts):
                self._rows(source, parts, rows, columns, missing, written)
            written.wait()
        except DataError:
            written.wait()  # rows that are being written would recreate the folder
            parts.remove()  # the image is damaged further down: nothing will continue from here
            raise
        written.submit(self._finish, source, self._assemble, found, parts, rows)

    def _rows(
        self, source: Source, parts: Parts, rows: Axis, columns: Axis, missing: int, written: Bounded
    ) -> None:
        """Compute the rows of windows from the first missing one on."""
        blender = Blender(rows, columns, self._model.num_channels)
        begin = rows.first_reaching(missing)
        strips = self._strips(source, rows, begin)
        with ThreadPoolExecutor(1, thread_name_prefix="strips") as reader:
            try:
                coming = reader.submit(next, strips)
                for index in range(begin, len(rows.starts)):
                    strip: Pixels = coming.result()
                    _check_channels(strip, self._model, self._prepare)
                    if index + 1 < len(rows.starts):
                        coming = reader.submit(next, strips)
                    mask, bands = self._row(blender, index, strip, rows, columns)
                    if index >= missing:
                        written.wait()  # a wide row with its probabilities is large: at most one waits
                        written.submit(parts.write, index, mask, bands)
                    self._progress((index + 1) / len(rows.starts), source.name)
            finally:
                # In the thread that opened the image: GDAL's environment belongs to a thread.
                reader.submit(strips.close)

    def _strips(self, source: Source, rows: Axis, begin: int) -> Generator[Pixels, None, None]:
        """Yield the lines of each row of windows; those shared with the row before are read once."""
        with self._open(source) as picture:
            bottom, held = rows.starts[begin], None
            for start in rows.starts[begin:]:
                new = picture.read(bottom, start + rows.size)
                held = new if held is None else _below(held, new, rows.size)
                bottom = start + rows.size
                yield held

    def _row(
        self, blender: Blender, index: int, strip: Pixels, rows: Axis, columns: Axis
    ) -> tuple[Bytes, Bytes | None]:
        """Return what a row of windows completes: the mask, and the probabilities where they are wanted."""
        top, bottom = rows.settled(index)
        valid = strip.valid[: bottom - top] if strip.valid is not None else None
        classes = np.zeros((bottom - top, columns.length), np.uint8)
        bands = None
        if self._task.probabilities:
            bands = np.zeros((self._model.num_channels, *classes.shape), np.uint8)
        single = self._model.num_channels == 1
        for left, right, summed in blender.row(index, self._windows(strip, columns)):
            # Which class is highest does not change with division by the weights; a threshold does.
            if single or bands is not None:
                summed = blender.mean(index, left, right, summed)
            logits = torch.from_numpy(summed)
            classes[:, left:right] = self._classes(logits)
            if bands is not None:
                here = valid[:, left:right] if valid is not None else None
                bands[:, :, left:right] = self._bands(logits, here)
        return self._labels.values(classes, valid), bands

    def _windows(self, strip: Pixels, columns: Axis) -> Iterator[np.ndarray[Any, Any] | None]:
        """Yield each window's logits, or None where it has no data."""
        batch = WINDOW_BATCH_ON_GPU if self._model.device.type == "cuda" else 1
        for begin in range(0, len(columns.starts), batch):
            places = [slice(start, start + columns.size) for start in columns.starts[begin : begin + batch]]
            seen = [strip.valid is None or bool(strip.valid[:, place].any()) for place in places]
            crops = [
                torch.from_numpy(np.ascontiguousarray(strip.as_read()[:, place].transpose(2, 0, 1)))
                for place, has_data in zip(places, seen, strict=True)
                if has_data
            ]
            found = iter(())
            if crops:
                logits = self._scaling.logits(torch.stack(crops), self._model)
                found = iter(logits.cpu().numpy())
            for has_data in seen:
                yield next(found) if has_data else None

    def _assemble(self, source: Source, found: _Read, parts: Parts, rows: Axis) -> None:
        """Write a scene's files from its rows."""
        indices = range(len(rows.starts))

        def pictures() -> Generator[Bytes, None, None]:
            with self._open(source) as picture:
                for index in indices:
                    yield picture.read(*rows.settled(index)).rgb

        with closing(pictures()) as read:
            self._write(
                source, found, lambda: map(parts.mask, indices), read, map(parts.probabilities, indices)
            )
        parts.remove()

    # -- what is written

    def _write(
        self,
        source: Source,
        found: _Read,
        masks: Callable[[], Iterator[Bytes]],
        pictures: Iterator[Bytes],
        bands: Iterator[Any],
    ) -> None:
        """Write an image's files from strips, of which those of the mask are asked for again and again."""
        shape, task = found.shape, self._task
        tally = Tally(shape.georeference, shape.height, shape.width)

        def counted() -> Iterator[Bytes]:
            for mask in masks():
                tally.add(mask)
                yield mask

        def blocks() -> Iterator[tuple[int, Bytes]]:
            top = 0
            for block in aligned((mask[None] for mask in masks()), block_lines(shape.width)):
                yield top, block[0]
                top += block.shape[1]

        write = ImageWriter(task.out, source.name, shape, self._labels)
        write.mask(counted())
        if task.overlay:
            write.picture(
                overlay(rgb, mask, self._labels) for mask, rgb in zip(masks(), pictures, strict=True)
            )
        if task.probabilities:
            write.probabilities(bands)
        if task.polygons:
            write.polygons(blocks(), task.min_area)
        numbers = dict(zip(self._labels.classes, self._labels.numbers, strict=True))
        facts = {"width": shape.width, "height": shape.height, "scale": round(found.factor, 4)}
        self._journal.add(source, found.stamp, write.files, {**facts, **tally.to_json(numbers)})
        self._files[source.name] = write.files[0].relative_to(task.out).as_posix()


def _as_bytes(values: torch.Tensor) -> Bytes:
    found: Bytes = values.to(torch.uint8).cpu().numpy()
    return found


def _check_channels(strip: Pixels, model: TrainedModel, prepare: TestPipeline) -> None:
    """Refuse a scene whose windows do not fit the model as they are read.

    Raises:
        DataError: Its test pipeline makes more, or fewer, channels of them.
    """
    takes, found = num_inputs(model.net), strip.as_read().shape[2]
    if takes is not None and prepare.transforms_channels and takes != found:
        raise DataError(
            Message(
                "It is read with {found} channels and the model takes {takes}, which the config's "
                "test pipeline makes of whole images alone.",
                found,
                takes,
            ),
            "Look at it whole: --window with a number that is larger than its sides.",
        )


def _below(held: Pixels, new: Pixels, lines: int) -> Pixels:
    """Return the last ``lines`` lines of two pieces of an image, one below the other."""
    begin = len(held.rgb) - (lines - len(new.rgb))
    samples = None
    if held.samples is not None and new.samples is not None:
        samples = np.concatenate([held.samples[begin:], new.samples])
    rgb = np.concatenate([held.rgb[begin:], new.rgb])
    if held.valid is None and new.valid is None:
        return Pixels(rgb=rgb, valid=None, samples=samples)
    valids = [
        piece.valid if piece.valid is not None else np.ones(piece.rgb.shape[:2], bool)
        for piece in (held, new)
    ]
    return Pixels(rgb=rgb, valid=np.concatenate([valids[0][begin:], valids[1]]), samples=samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """An image as it was opened, and the factor by which the model sees it larger.

    ``pixels`` and ``prepared`` are None for a scene.
    """

    stamp: Stamp
    shape: ImageShape
    pixels: Pixels | None
    prepared: tuple[torch.Tensor, Any] | None
    factor: float
