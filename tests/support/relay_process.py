"""Relays in processes of their own that start at once: forks of one that has Kaggle's client imported.

To import the client takes most of a second, which hundreds of killed and restarted relays cannot
afford. The forking process has one thread, and runs the command line's own ``main`` in the forks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Ended:
    """A relay that has ended: its exit code (negative for the signal that killed it), and what it printed."""

    code: int
    output: str


class Relays:
    """Starts relays, one at a time. A context."""

    def __init__(self, environ: dict[str, str], folder: Path) -> None:
        self._output = folder / "relay-output.txt"
        root = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", __file__], env={**environ, "PYTHONPATH": root}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._answer() == {"ready": True}

    def start(self, arguments: list[str], environ: dict[str, str]) -> int:
        """Start a relay and return its process id."""
        assert self._process.stdin is not None
        order = {"arguments": arguments, "environ": environ, "output": str(self._output)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> Ended:
        """Return how the relay that was started ended."""
        return Ended(code=int(self._answer()["code"]), output=self._output.read_text())

    def run(self, arguments: list[str], environ: dict[str, str]) -> Ended:
        """Run a relay to its end."""
        self.start(arguments, environ)
        return self.wait()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]

    def __enter__(self) -> Relays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _serve() -> None:
    import kaggle  # noqa: F401 - so that the forks have it

    from mapsage_kaggle.cli import main

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(order["environ"])
            with Path(order["output"]).open("w") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            code = 99
            try:
                code = main(order["arguments"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    _serve()
