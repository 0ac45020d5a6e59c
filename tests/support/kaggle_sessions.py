"""What sessions of the kit's notebook leave behind on the Kaggle of ``kaggle_server``, without a training."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.kaggle_server import OWNER, KaggleServer, Version

CUT_OFF = ("killed", "damaged", "killed, no output", "killed, no log", "cancelled late", "uploads")
"""How a session ends whose record still says that it runs."""


@dataclass
class ScriptedNotebook:
    """Does in no time what a session of the kit's notebook would leave behind.

    Each session takes the next of ``script``; after the last one all is well. ``ok``: goes on by
    ``per_session``, or to the end. ``failed after progress``: ends ERROR with a new checkpoint.
    ``killed``: cancelled, its record still ``running``. ``killed, no output``, and ``killed, no log``: nor
    a log beyond its first line. ``no progress``: fails
    and hands over what it got. ``damaged``: like ``killed``, its newest checkpoint not what the manifest
    says. ``truncated``: its newest checkpoint was not saved. ``crashed``: ERROR without a word. ``no gpu``,
    ``no internet``: refused by the kit. ``wedged``: never ends. ``late record``: complete, and the first
    two listings do not name its files yet. ``late 10m``: listed after ten minutes, its log at once.
    ``cancelled late``: like ``killed``, listed three minutes after, half of it before. ``early``: ends
    the run before its end. ``uploads``: killed without output, after it has put its checkpoint into the
    data set.
    """

    max_iters: int = 400
    per_session: int = 100
    script: list[str] = field(default_factory=list)
    takes_s: float = 0.0
    more_files: int = 0
    done: list[tuple[int, int, str]] = field(default_factory=list)
    stem: str = "demo"
    run_id: str = "a-run"
    starts: int = 0
    server: KaggleServer | None = None

    def __call__(self, version: Version) -> str:
        mode = self.script.pop(0) if self.script else "ok"
        values = version.parameters
        work_dir = version.output / "work_dirs" / self.stem
        work_dir.mkdir(parents=True)
        start, previous, source = self._resume(version)
        expected = values["EXPECT_ITERATION"]
        if (values["RESUME"] == "require" and source is None) or (expected not in (None, start)):
            version.ends_s = version.begins_s + min(self.takes_s, 120.0)
            return self._refuse(version, work_dir, f"nothing to go on from at iteration {expected}")
        told = {
            "no gpu": "MachineError: --gpus 2 was asked for, but this machine has 0 that this torch can use.",
            "no internet": "MachineError: No Internet and no wheels are attached.",
        }
        if mode in told or mode == "crashed":
            version.ends_s = version.begins_s + min(self.takes_s, 120.0)
            version.log.clear()
            if mode in told:
                version.say(f"\x1b[31mmapsage_kaggle.errors.{told[mode]}\x1b[0m", "stderr", at_s=60.0)
            return "ERROR"
        if mode == "wedged":
            version.ends_s = float("inf")
            return "CANCEL_ACKNOWLEDGED"
        end = self._train(version, mode, start)
        self._write(work_dir, mode, start, end, previous, source, version)
        for index in range(self.more_files):
            (version.output / f"tile_{index}.txt").write_text("a")
        self.done.append((start, end, mode))
        self._shape_output(version, mode, work_dir)
        statuses = {"failed after progress": "ERROR"}
        complete = ("ok", "early", "no progress", "truncated", "late record", "late 10m", "huge")
        return statuses.get(mode, "COMPLETE" if mode in complete else "CANCEL_ACKNOWLEDGED")

    def _train(self, version: Version, mode: str, start: int) -> int:
        """Write the log, in the time that the session takes or is given; return the last iteration."""
        limit_s = float(version.request["sessionTimeoutSeconds"])
        share = min(1.0, limit_s / self.takes_s) if self.takes_s else 1.0
        version.ends_s = version.begins_s + self.takes_s * share
        steps = max(10, int(self.per_session * share) // 10 * 10)
        end = min(self.max_iters, start + steps) if mode != "no progress" else start
        numbers = range(start + 10, end + 1, 10)
        for count, iteration in enumerate(numbers, start=1):
            at_s = self.takes_s * share * count / (len(numbers) + 1)
            version.say(f"[{iteration}/{self.max_iters}]  loss 0.5000", at_s=at_s)
        text = f"[{end}] validation: mIoU {50 + end / 100:.2f} %, aAcc 70.00 %"
        version.say(text, at_s=self.takes_s * share * 0.98)
        return end

    def _shape_output(self, version: Version, mode: str, work_dir: Path) -> None:
        if mode == "killed, no log":
            del version.log[1:]
        if mode in ("killed, no output", "killed, no log", "uploads"):
            if mode == "uploads" and self.server is not None:
                ref = f"{OWNER}/{version.slug.removesuffix('-2')}-checkpoints"
                folder = self.server.folder / "datasets" / f"by-session-{version.session_id}"
                shutil.copytree(work_dir, folder)
                self.server.datasets[ref] = folder
            shutil.rmtree(work_dir)
        if mode == "late record":
            version.num_empty_listings = 2
        if mode == "late 10m":
            version.listed_s = version.ends_s + 600.0
        if mode == "cancelled late":
            version.half_s, version.listed_s = version.ends_s + 60.0, version.ends_s + 180.0

    def _resume(self, version: Version) -> tuple[int, list[dict[str, Any]], Path | None]:
        found: list[tuple[int, Path]] = []
        for folder in version.mounts.values():
            for path in folder.rglob("iter_*.pth"):
                if (path.parent / "manifest.json").is_file():
                    found.append((int(path.stem[5:]), path))
        if not found:
            return 0, [], None
        iteration, path = max(found)
        try:
            record = json.loads((path.parent / "session.json").read_text())
        except FileNotFoundError:
            return iteration, [], path
        return iteration, [*record["previous"], {**record, "previous": []}], path

    def _refuse(self, version: Version, work_dir: Path, message: str) -> str:
        from mapsage_kaggle.records import SessionRecord

        SessionRecord(
            run_id="refused", fingerprint="f", max_iters=self.max_iters, stop_reason="refused", exit_code=3,
            message=message,
        ).write(work_dir / "session.json")  # fmt: skip
        version.say(f"mapsage_kaggle.errors.CheckpointError: {message}", "stderr", at_s=60.0)
        self.done.append((-1, -1, "refused"))
        return "ERROR"

    def _write(
        self, work_dir: Path, mode: str, start: int, end: int, previous: list[dict[str, Any]],
        source: Path | None, version: Version,
    ) -> None:  # fmt: skip
        from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
        from mapsage_kaggle.records import CheckpointRef, Learned, SessionRecord

        manifest = Manifest()
        ref = None
        self.starts += source is None  # and each of them is another run
        own = self.run_id if self.starts == 1 else f"{self.run_id}-{self.starts}"
        run_id = previous[-1]["run_id"] if previous else own
        for iteration in sorted({start + (end - start) // 2, end} - {0}):
            path = work_dir / f"iter_{iteration}.pth"
            if iteration == start and source is not None:
                shutil.copyfile(source, path)
            else:
                path.write_bytes(checkpoint_bytes(iteration))
            ref = CheckpointRef(
                file=path.name, iteration=iteration, sha256=file_sha256(path), size_bytes=path.stat().st_size
            )
            manifest = manifest.with_file(ref)
        manifest.write(work_dir / "manifest.json")
        reason = "completed" if end == self.max_iters else "deadline"
        reason = {
            "failed after progress": "failed", "no progress": "failed", "early": "early",
            **dict.fromkeys(CUT_OFF, "running"),
        }.get(mode, reason)  # fmt: skip
        SessionRecord(
            run_id=run_id, fingerprint="f", session_index=len(previous) + 1, start_iteration=start,
            end_iteration=end, max_iters=self.max_iters, stop_reason=reason, checkpoint=ref,
            exit_code={"running": None, "failed": 5}.get(reason, 0), previous=tuple(previous),
            learned=Learned(pace={"iteration_s": 0.5}), message=f"session: {mode}",
            started_s=version.begins_s,
        ).write(work_dir / "session.json")  # fmt: skip
        newest = work_dir / f"iter_{end}.pth"
        if mode == "damaged":
            data = bytearray(newest.read_bytes())
            data[len(data) // 2] ^= 1
            newest.write_bytes(data)
        if mode == "truncated":
            newest.unlink()


_BYTES: dict[int, bytes] = {}


def checkpoint_bytes(iteration: int) -> bytes:
    """Return a very small checkpoint that can be resumed, as far as a look at it tells."""
    import io

    import torch

    if iteration not in _BYTES:
        weight = torch.full((2, 2), float(iteration))
        tree = {
            "meta": {"iter": iteration, "epoch": 0, "seed": 1},
            "state_dict": {"w": weight},
            "optimizer": {
                "state": {0: {"momentum_buffer": weight + 1}},
                "param_groups": [{"lr": 0.1, "params": [0]}],
            },
            "param_schedulers": [{"last_step": iteration}],
            "message_hub": {"log_scalars": {}, "runtime_info": {"iter": iteration}, "resumed_keys": {}},
        }
        stream = io.BytesIO()
        torch.save(tree, stream)
        _BYTES[iteration] = stream.getvalue()
    return _BYTES[iteration]
