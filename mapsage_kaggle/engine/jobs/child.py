"""The child of a job after training: evaluating, predicting, exporting, averaging.

    python -m mapsage_kaggle.engine.jobs.child evaluate job.json

runs ``mapsage_kaggle.engine.jobs.evaluate.run(job, emit)`` with the JSON document of the file. Whatever it
emits, and at last what it returns, is printed on standard output as one JSON object per line, each with
``event``; everything else that is printed goes to standard error. Standard input is a pipe that the parent
holds open: when the parent is gone, however it went, the child ends too. The parent's side is
:func:`mapsage_kaggle.jobs.child.run_child`.

Events: whatever the job emits, such as ``progress`` with ``done`` and ``total``, ``notice`` with ``message``
or ``warning`` with ``problem``; then either ``result`` with ``result``, or ``failed`` with ``kind`` (the name
of a ``MapsageError``), ``problem`` and ``remedy``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mapsage_kaggle import errors
from mapsage_kaggle.errors import EXIT_DONE, EXIT_INTERRUPTED, JobError, MachineError, MapsageError
from mapsage_kaggle.messages import Message, with_said

Emit = Callable[..., None]
"""``emit("progress", done=3, total=12)``; values as JSON takes them. Safe from any thread."""

_GRACE_S = 10.0


def main(arguments: list[str]) -> int:
    """Do the work that the arguments name; return the exit code."""
    entry, file = arguments
    # Libraries greet on stdout, from C too: what they say goes where errors go.
    # Bytes of a file name that are no UTF-8 become JSON's escapes of themselves.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    emit = _emitter(channel)
    threading.Thread(target=_leave_with_parent, name="parent-pipe", daemon=True).start()
    try:
        job = json.loads(Path(file).read_bytes())
        work = importlib.import_module(f"mapsage_kaggle.engine.jobs.{entry}")
        emit("result", result=work.run(job, emit))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_INTERRUPTED  # the parent has gone
    except MapsageError as error:
        return _fail(emit, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must learn of it
        return _fail(emit, as_refusal(error))
    return EXIT_DONE


def _emitter(channel: IO[str]) -> Emit:
    lock = threading.Lock()

    def emit(event: str, /, **data: Any) -> None:
        with lock:
            channel.write(json.dumps({"event": event, **with_said(data)}, ensure_ascii=False) + "\n")
            channel.flush()

    return emit


def _fail(emit: Emit, error: MapsageError) -> int:
    told = {"problem": error.problem, "remedy": error.remedy, "lines": error.lines}
    # The parent knows those of the kit's ground floor.
    known = (kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
    emit("failed", kind=next(known), **told)
    return error.exit_code


def as_refusal(error: Exception) -> MapsageError:
    """Return an error as one of the kit's, with a remedy where one is known."""
    if isinstance(error, MapsageError):
        return error
    with suppress(OSError):  # the disk with the log may be the one that is full
        traceback.print_exception(error)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return _known(error) or JobError(f"{type(error).__name__}: {first}")


def _known(error: Exception) -> MapsageError | None:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _PACKAGES:
        return MachineError(
            Message("The package {name} is missing.", error.name),
            _PACKAGES[str(error.name).partition(".")[0]],
        )
    from mapsage_kaggle.engine.faults import is_memory_fault

    if is_memory_fault(error):
        return MachineError(
            "There was not enough memory.",
            "Look through windows (--window), through fewer at a time (--window-batch 1), or on the CPU "
            "(--device cpu).",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return MachineError(f"{error.filename}: {error.strerror or error}.", "Check the disk and the path.")
    return None


_TRAIN = "Run the install cell first, or pip install 'mapsage-kaggle[train]'."
_PACKAGES: Mapping[str, str] = {
    **dict.fromkeys(("torch", "mmengine", "mmcv", "mmseg"), _TRAIN),
    **dict.fromkeys(("rasterio", "pyogrio", "shapely"), "Install it: pip install 'mapsage-kaggle[geo]'."),
    **dict.fromkeys(
        ("safetensors", "onnx", "onnxscript", "onnxruntime"),
        "Install it: pip install 'mapsage-kaggle[export]'.",
    ),
}


def _leave_with_parent() -> None:
    """End this process when the parent's end of the pipe is closed: by SIGINT, then for certain."""
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        return  # started by hand, without a pipe
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_GRACE_S)
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # Without other libraries' exit handlers: a teardown of CUDA or data workers that hangs must not
    # keep the parent waiting.
    os._exit(code)
