"""The checkpoint data set: what goes into it, whether it arrived, and what sessions have put there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
from mapsage_kaggle.checkpoints.names import kind_of
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.records import CheckpointRef, read_record
from mapsage_kaggle.relay import harvest
from mapsage_kaggle.relay.answers import Unreachable
from mapsage_kaggle.relay.client import KaggleClient
from mapsage_kaggle.relay.journal import Attempt, HandOver, Journal, Upload

CLOCKS_DIFFER_S = 3600.0
"""By how much this machine's clock may be ahead of Kaggle's."""
RECORD, MANIFEST = "session.json", "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointDataset:
    """The data set that a run's checkpoints are handed on by.

    Attributes:
        ref: ``owner/slug``.
        fetched: Where what versions left is kept.
        folder: Where an upload is put together.
    """

    kaggle: KaggleClient
    ref: str
    fetched: Path
    folder: Path
    stem: str

    def offered(self, journal: Journal) -> HandOver | None:
        """Return the newest checkpoint of this run in the data set; None where there is none.

        Raises:
            Unreachable: It cannot be seen now.
        """
        last = journal.attempts[-1] if journal.attempts else Attempt(slug=journal.slug, version=0)
        names = self.kaggle.datasets.files(self.ref)
        if names is None:
            if self.kaggle.datasets.state(self.ref) != "none":
                raise Unreachable(f"What {self.ref} holds cannot be seen now.")
            names = {}
        if not {RECORD, MANIFEST} <= set(names):
            return None
        folder = self.fetched / "dataset"
        record = read_record(self.kaggle.datasets.fetch(self.ref, RECORD, folder))
        # Without a run id to compare, it may be an earlier run's.
        first_s = min((item.intended_s for item in journal.attempts if item.token), default=float("inf"))
        ours = record is not None and (
            record.run_id == journal.run_id
            if journal.run_id
            else not journal.attempts or record.started_s > first_s - CLOCKS_DIFFER_S
        )
        if not ours:
            return None
        refs = self._stated(folder).values()
        there = [item for item in refs if item.file in names and kind_of(item.file) == "iter"]
        newest = max(there, key=lambda item: item.iteration, default=None)
        if newest is None:
            return None
        return HandOver(
            slug=last.slug, version=last.version, iteration=newest.iteration, file=newest.file,
            sha256=newest.sha256, size_bytes=newest.size_bytes, attachable=False,
        )  # fmt: skip

    def _stated(self, folder: Path) -> dict[str, CheckpointRef]:
        try:
            return dict(Manifest.read(self.kaggle.datasets.fetch(self.ref, MANIFEST, folder)).files)
        except ValueError:
            return {}

    def upload(self, hand_over: HandOver, *, now_s: float, earlier: Upload | None) -> Upload:
        """Make a checkpoint and its record the newest version, as far as Kaggle takes it.

        Raises:
            Unreachable: It cannot be now; to repeat it does no harm.
            Refusal: Kaggle said no.
            MachineError: The checkpoint is not to be had any more.
        """
        state = self.kaggle.datasets.state(self.ref)
        if state == "processing":
            # A second upload meanwhile would be refused.
            raise Unreachable(f"Kaggle is not done yet with the version of {self.ref} before.")
        self._prepare(hand_over)
        sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        del sizes["dataset-metadata.json"]
        notes = f"iteration {hand_over.iteration}"
        self.kaggle.datasets.upload(self.folder, self.ref, notes, create=state == "none")
        same = earlier is not None and earlier.iteration == hand_over.iteration
        return Upload(
            iteration=hand_over.iteration,
            sizes=sizes,
            since_s=earlier.since_s if earlier is not None and same else now_s,
            tries=earlier.tries + 1 if earlier is not None and same else 1,
            look_s=now_s,
        )

    def look(
        self, upload: Upload, *, now_s: float, patience_s: float
    ) -> Literal["there", "not yet", "wrong"]:
        """Tell whether an upload is what the data set holds now: all of its files, not the version before.

        The version before may still be what is shown for ``patience_s`` after the upload.
        """
        state = self.kaggle.datasets.state(self.ref)
        if state == "failed":
            return "wrong"
        late = now_s - upload.look_s > patience_s
        if state != "ready":
            return "wrong" if state == "none" and late else "not yet"
        found = self.kaggle.datasets.files(self.ref) or {}
        checkpoint = next(name for name in upload.sizes if kind_of(name) == "iter")
        stated = self._stated(self.fetched / "dataset") if MANIFEST in found else {}
        size = found.get(checkpoint)
        if set(upload.sizes) <= set(found) and checkpoint in stated:
            return "there" if size in (0, upload.sizes[checkpoint]) else "wrong"
        ours = checkpoint in stated or checkpoint in found
        return "wrong" if ours or late else "not yet"

    def _prepare(self, hand_over: HandOver) -> None:
        """Put the checkpoint and its record into one flat folder: a data set's folders may be lost."""
        source = self.fetched / f"{hand_over.slug}-v{hand_over.version}"
        name = Path(hand_over.file).name
        ref = CheckpointRef(
            file=name,
            iteration=hand_over.iteration,
            sha256=hand_over.sha256,
            size_bytes=hand_over.size_bytes,
        )
        if not (source / name).is_file() or file_sha256(source / name) != hand_over.sha256:
            left = harvest.fetch(
                self.kaggle, hand_over.slug, hand_over.version, stem=self.stem, folder=source
            )
            if left.fetch(self.kaggle, ref) != hand_over.sha256:
                raise MachineError(
                    f"{hand_over.file} of {hand_over.slug} version {hand_over.version} is gone, or another "
                    "one.",
                    "Attach a checkpoint by hand, or start a new run under another --slug.",
                )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        shutil.copyfile(source / name, self.folder / name)
        if (source / RECORD).is_file():
            shutil.copyfile(source / RECORD, self.folder / RECORD)
        Manifest().with_file(ref).write(self.folder / MANIFEST)
        metadata = {
            "id": self.ref,
            "title": self.ref.partition("/")[2].replace("-", " "),
            "licenses": [{"name": "other"}],
        }
        (self.folder / "dataset-metadata.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")
