"""An interpreter that has imported torch and the training stack, and waits for what to run.

    python -m mapsage_kaggle.engine.warm

Standard input is a socket; :class:`mapsage_kaggle.processes.WarmPython` holds its other end. Each request
names a module with its arguments, environment and working directory, and lends descriptors for its output.
It is run in a fork, so that no request meets what another has left behind; or, the last one, in this
process itself, for which the socket then stands for whoever supervises it. Nothing but imports has run
here before, and no thread: what a fork could not take along is not there yet.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import traceback
from typing import Any

from mapsage_kaggle.engine.importing import TRAINING, import_ahead
from mapsage_kaggle.processes import WARM_NO_FORK

_MAX_BYTES = 1 << 20


def main() -> int:
    """Serve requests until the other end is closed, or one takes this process over."""
    import_ahead("mmseg.apis", *TRAINING, "mapsage_kaggle.engine.trackers")
    control = socket.socket(fileno=os.dup(0))
    while True:
        asked, lent = receive(control)
        if not asked:
            return 0
        if asked["takes_over"]:
            control.close()
            return run(asked, lent)
        pid = os.fork()
        if pid == 0:
            control.close()
            lent.insert(0, os.open(os.devnull, os.O_RDONLY))
            os._exit(WARM_NO_FORK if _cuda_has_begun() else run(asked, lent))
        for descriptor in lent:
            os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        control.sendall(f"{status}\n".encode())


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the next request and the descriptors that it lends; an empty one at the end."""
    data, lent, _, _ = socket.recv_fds(control, _MAX_BYTES, 3)
    while data and not data.endswith(b"\n"):
        more = control.recv(_MAX_BYTES)
        if not more:
            return {}, lent
        data += more
    return (json.loads(data) if data else {}), lent


def run(asked: dict[str, Any], lent: list[int]) -> int:
    """Run a module as ``python -m`` does, with the lent descriptors as its last standard ones.

    Returns:
        Its exit code.
    """
    for number, descriptor in zip(range(3 - len(lent), 3), lent, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = asked["cwd"]
    module, *sys.argv[1:] = asked["arguments"]
    code: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # noqa: BLE001 - as an interpreter ends by it
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)


def _cuda_has_begun() -> bool:
    """Tell, in a fork, whether the process that it was forked from had made use of a GPU's driver."""
    import torch

    return bool(torch.cuda._is_in_bad_fork())


if __name__ == "__main__":
    sys.exit(main())
