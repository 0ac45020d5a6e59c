"""A Python whose children have torch and mmsegmentation imported already.

A session starts four interpreters that import torch, and that takes five times as long as the training
of a test. ``python()`` gives the path of a program to start instead of ``sys.executable``, for tests
whose subject is not how processes start, end or are told apart. With ``-m`` and a module of the kit,
torchrun or a kernel it asks a server for a fork of itself, and lends it its descriptors, environment,
arguments and working directory, its signals and its exit code. The kit itself is imported anew by each
of them, and other modules run in an ordinary interpreter.

What differs: the fork is no descendant of the one who started it; its ``/proc/<pid>/environ`` is the
server's; a third-party module that nobody imports is there all the same; and a session's report has no
pictures, which take as long as all the rest of it. Run as a program this is the server, which ends when
its standard input does.
"""

from __future__ import annotations

import atexit
import importlib
import io
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch", "torch._dynamo", "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "torch.distributed.run", "torch.onnx", "torch.utils.cpp_extension", "mmengine.runner", "mmseg.apis",
    "mmseg.engine", "mmseg.evaluation", "cv2", "ipykernel.kernelapp", "jinja2", "matplotlib.pyplot",
    "PIL.Image", "psutil", "yapf.yapflib.yapf_api",
)  # fmt: skip
WARM = ("mapsage_kaggle", "torch.distributed.run", "ipykernel_launcher")
LAUNCHER = """#!{real} -IS
import json, os, signal, socket, sys

arguments = [word for word in sys.argv[1:] if word != "-u"]
is_warm = arguments[0] == "-m" and arguments[1].startswith({warm!r})
if not is_warm and not (arguments[0] == "-c" and "torch" in arguments[1]):
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
request = dict(option=arguments[0], arguments=arguments[1:], environ=dict(os.environ), cwd=os.getcwd())
request["unbuffered"] = "-u" in sys.argv or bool(os.environ.get("PYTHONUNBUFFERED"))
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    content = json.dumps(request).encode()
    socket.send_fds(server, [len(content).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(content)
    # Whether this process lives or not says the same of the fork; its own descriptors must not hold a pipe.
    answers = server.makefile("r")
    pid = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""

_started: list[str] = []


def python() -> str:
    """Return the program to start children with; the server is started by the first who asks."""
    if not _started:
        _started.append(_start())
    return _started[0]


def _start() -> str:
    # No such path can stand behind #!, and what CUDA has begun in a process does not go on in a fork of it.
    if " " in sys.executable or len(sys.executable) > 100 or Path("/dev/nvidiactl").exists():
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    env["OMP_WAIT_POLICY"] = "PASSIVE"  # read once, when the library is loaded
    env.pop("PYTHONPATH", None)
    address = folder / "socket"
    with (folder / "server.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, __file__, str(address)], env=env, cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(_end, server)
    launcher = folder / "python"
    launcher.write_text(LAUNCHER.format(real=sys.executable, warm=WARM, address=str(address)))
    launcher.chmod(0o755)
    with server.stdout:
        assert server.stdout.readline() == "ready\n", (folder / "server.txt").read_text()
    return str(launcher)


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait()


# -- the server


def _serve(address: str, ready_end: int) -> tuple[dict[str, Any], list[int]]:
    """Fork for every request; return in the fork, with the request and its descriptors."""
    import select

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    asking: dict[int, socket.socket] = {}
    os.write(ready_end, b"ready\n")
    os.close(ready_end)
    while True:
        ready, _, _ = select.select([0, read_end, listener, *asking.values()], [], [])
        if 0 in ready:
            for pid in asking:
                _kill(pid)
            os._exit(0)
        if read_end in ready:
            os.read(read_end, 4096)
        if listener in ready:
            connection, _ = listener.accept()
            try:
                request, descriptors = _receive(connection)
            except (OSError, ValueError):  # its launcher was killed meanwhile
                connection.close()
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for thing in (listener, connection, *asking.values()):
                    thing.close()
                os.close(read_end)
                os.close(write_end)
                return request, descriptors
            for descriptor in descriptors:
                os.close(descriptor)
            asking[pid] = connection
            _tell(connection, pid)
        for pid in [pid for pid, connection in asking.items() if connection in ready]:
            _kill(pid)  # its launcher is gone
        for pid in list(asking):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                with asking.pop(pid) as connection:
                    _tell(connection, os.waitstatus_to_exitcode(status))


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # its launcher is gone
        connection.sendall(f"{number}\n".encode())


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    content, length = b"", int.from_bytes(header, "big")
    while len(content) < length:
        part = connection.recv(length - len(content))
        if not part:
            break
        content += part
    return json.loads(content), descriptors


def _become(request: dict[str, Any], descriptors: list[int], path: list[str], launcher: str) -> None:
    """Make this fork what an interpreter would be that was started so."""
    import numpy as np
    import torch

    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    before = [place for place in request["environ"].get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [request["cwd"], *before, *path]
    sys.path_importer_cache.clear()
    sys.executable = launcher
    sys.argv[:] = request["arguments"]
    threads = request["environ"].get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    torch.set_num_threads(int(threads))
    np.random.seed()  # Python's own is seeded anew in every fork
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if request["unbuffered"]:
            raw = open(stream.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115
            stream = io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True)
            setattr(sys, name, stream)


def _leave_out_pictures() -> None:
    from mapsage_kaggle.display import class_plots, plots

    for name in ("curves", "time_bars", "timelines"):
        setattr(plots, name, lambda *arguments, **options: b"")
    for name in ("iou_picture", "confusion_picture"):
        setattr(class_plots, name, lambda *arguments, **options: b"")


if __name__ == "__main__":
    import gc
    import threading

    import_path = sys.path[1:]
    sys.path[:] = import_path
    ready_pipe = os.dup(1)
    os.dup2(2, 1)  # libraries greet on stdout
    for imported in IMPORTED:
        importlib.import_module(imported)
    del sys.modules["torch.distributed.run"]  # which runpy is to run
    sys.modules["PIL.Image"].init()
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()
    asked, lent = _serve(sys.argv[1], ready_pipe)
    _become(asked, lent, import_path, str(Path(sys.argv[1]).with_name("python")))
    if asked["arguments"][:2] == ["mapsage_kaggle", "train"]:
        _leave_out_pictures()
    if asked["arguments"][0] == "torch.distributed.run":
        import inspect

        # It looks up the frames of its callers for its records, and that looks through all modules.
        inspect.getmodule = lambda *arguments: None
    if asked["option"] == "-m":
        runpy.run_module(asked["arguments"][0], run_name="__main__", alter_sys=True)
    else:
        exec(asked["arguments"][0], {"__name__": "__main__"})
