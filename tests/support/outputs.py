"""A folder of sessions' outputs with verdicts on the files in it, to choose from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.choose import Choice, choose
from mapsage_kaggle.checkpoints.inspect import Inspection
from mapsage_kaggle.checkpoints.scan import scan
from mapsage_kaggle.records import SessionRecord

OURS, THEIRS = "f" * 16, "e" * 16


class World:
    """A folder of sessions' outputs, and verdicts on the files in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.verdicts: dict[Path, Inspection] = {}
        self.inspected: list[str] = []
        self.headers: list[str] = []

    def output(self, name: str, *, fingerprint: str | None = None, run_id: str = "run", **refs: Any) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        if fingerprint is not None:
            record = SessionRecord(run_id=run_id, fingerprint=fingerprint, **refs)
            record.write(folder / "session.json")
        return folder

    def add(
        self,
        folder: Path,
        name: str,
        verdict: str = "resumable",
        *,
        iteration: int | None = None,
        fingerprint: str | None = None,
        run_id: str | None = None,
        content: bytes = b"x",
        problems: tuple[str, ...] = (),
    ) -> Path:
        path = folder / name
        path.write_bytes(content)
        if iteration is None and "iter_" in name:
            iteration = int(path.stem.rpartition("_")[2])
        if verdict != "resumable" and not problems:
            problems = (f"{verdict} for a reason",)
        self.verdicts[path] = Inspection(
            path=path,
            verdict=verdict,  # type: ignore[arg-type]
            iteration=iteration,
            problems=problems,
            fingerprint=fingerprint,
            run_id=run_id,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            full=True,
        )
        return path

    def inspect(self, path: Path, *, manifest_sha256: str | None = None, full: bool = True) -> Inspection:
        (self.inspected if full else self.headers).append(path.name)
        found = self.verdicts[path]
        if manifest_sha256 is not None and manifest_sha256 != found.sha256:
            return Inspection(path=path, verdict="rejected", problems=("its sha256 is another",))
        return found

    def choose(self, *, work_dir: Path | None = None, **options: Any) -> Choice:
        found = scan(self.root)
        mine = [item for item in found.files if item.path.parent == work_dir]
        rest = [item for item in found.files if item.path.parent != work_dir]
        load_from = options.get("load_from")
        rest = [item for item in rest if item.path != load_from]
        options.setdefault("fingerprint", OURS)
        options.setdefault("inspect_alone", self.inspect)
        return choose(inspect=self.inspect, work_dir=mine, inputs=rest, rejected=found.rejected, **options)


def taken(choice: Choice) -> str:
    assert choice.checkpoint is not None
    return choice.checkpoint.target.name
