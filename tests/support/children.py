"""Training children without torchrun and a supervisor, forked from a process that has imported torch.

A session by the command line takes about ten seconds, nearly all of it imports; one of these takes
little more than its training. ``Children`` is the test's side; run as a program this is the other
one: it reads one JSON request a line and answers with the child's exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mapsage_kaggle.clock import SessionClock, boot_time_s
from mapsage_kaggle.config.patch import PatchContext, apply_patch, plan_patch, write_config
from mapsage_kaggle.config.reading import data_roots_of, read_config
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.spec import ChildSpec
from support.standin import REPOSITORY, StandIn


class Children:
    """Starts children one after another; use it as a context."""

    def __enter__(self) -> Children:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
        env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, spec: Path, *, code: Path, log: Path) -> int:
        """Run one child until its end; return its exit code, negative for a signal."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"spec": str(spec), "code": str(code), "log": str(log)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


@dataclass
class DirectRun:
    """A run of a stand-in's config whose sessions are single children, planned as ``training`` plans them."""

    stand_in: StandIn
    children: Children

    def train(self, config: Path, *, workers_cap: int = 4, **changes: Any) -> int:
        """Run one child from the newest checkpoint of the work dir, or from nothing; return its exit code."""
        work_dir = self.stand_in.work_dir
        work_dir.path.mkdir(parents=True, exist_ok=True)
        found = sorted(work_dir.path.glob("iter_*.pth"), key=lambda path: int(path.stem[5:]))
        newest = found[-1] if found else None
        iteration = int(newest.stem[5:]) if newest else 0
        cfg = read_config(config)
        scenes = self.stand_in.root / "input" / "scenes"
        facts = PatchContext(
            work_dir=work_dir.path,
            num_cpus=workers_cap,
            data_roots=dict.fromkeys(data_roots_of(cfg), scenes),
            checkpoint=newest,
            action="resume" if newest else "fresh",
        )
        patch = plan_patch(cfg, config, facts)
        write_config(apply_patch(cfg, patch), patch, work_dir.path)
        record = SessionRecord(
            run_id="direct", fingerprint=patch.fingerprint, start_iteration=iteration,
            max_iters=patch.max_iters, started_s=time.time(),
        )  # fmt: skip
        record.write(work_dir.session)
        clock = SessionClock(started_s=boot_time_s(), limit_s=600.0, reserve_s=1.0)
        options: dict[str, Any] = {
            "config": work_dir.config,
            "work_dir": work_dir.path,
            "clock_started_s": clock.started_s,
            "limit_s": clock.limit_s,
            "reserve_s": clock.reserve_s,
            "action": facts.action,
            "run_id": record.run_id,
            "fingerprint": record.fingerprint,
            "checkpoint": newest,
            "expect_iteration": iteration if newest else None,
            "save_interval": patch.save_interval,
            "save_every_s": 0.0,
            "save_best": patch.save_best,
            "best_rules": dict(patch.best_rules),
        }
        spec = self.stand_in.root / "temp" / "child.json"
        ChildSpec(**(options | changes)).write(spec)
        work_dir.stop_request.unlink(missing_ok=True)
        return self.children.run(spec, code=config.parent, log=work_dir.log)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries greet on stdout
    import torch

    torch.set_num_threads(1)
    import mmengine.runner  # noqa: F401
    import mmseg.models  # noqa: F401

    import mapsage_kaggle.engine.register
    import mapsage_kaggle.engine.runner  # noqa: F401
    from mapsage_kaggle.engine import worker

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            sys.path.insert(0, request["code"])
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            code = 1
            try:
                code = worker.main([request["spec"]])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
