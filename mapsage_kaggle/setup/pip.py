"""Runs pip so that nothing is ever compiled, ends it with everything it started, and reads what it says."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.processes import ChildError, clean_environment, module_command, run

PIP_TIMEOUT_S = 300.0

_PIP_OPTIONS_IN_THE_WAY = ("PIP_NO_BUILD_ISOLATION", "PIP_NO_BINARY", "PIP_ONLY_BINARY", "PIP_QUIET")
"""Variables that would let a build see torch, and then compile for half an hour."""


def index_unreachable(output: str) -> bool:
    """Tell whether pip's output says that the package index cannot be reached at all."""
    phrases = (
        "Temporary failure in name resolution",
        "Name or service not known",
        "Failed to establish a new connection",
        "Network is unreachable",
        "NameResolutionError",
    )
    return any(phrase in output for phrase in phrases)


def explain_failure(output: str, *, offline: bool) -> MachineError:
    """Return what pip's output means, and what to do. Pure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    said = errors[-1] if errors else "nothing"

    def has(*phrases: str) -> bool:
        return any(phrase in output for phrase in phrases)

    if has("No space left on device"):
        return MachineError(
            "The disk is full: the packages do not fit (No space left on device).", "Free some space."
        )
    if has("externally-managed-environment"):
        return MachineError(
            "This Python belongs to the operating system, and pip may not add to it.",
            "Make a virtual environment: `python3 -m venv .venv`.",
        )
    if has("Permission denied", "Read-only file system"):
        return MachineError(
            Message("The packages' folder cannot be written to ({said}).", said), "Use a virtual environment."
        )
    if has("ResolutionImpossible", "conflicting dependencies"):
        return MachineError(
            Message("The missing packages do not go together with those installed ({said}).", said),
            "Nothing was changed. Use a fresh environment, or report this with `pip freeze`.",
        )
    if index_unreachable(output) and not offline:
        return MachineError(
            "The package index cannot be reached (Temporary failure in name resolution, or the like): "
            "Internet is off in this session.",
            "Turn it on in the notebook's settings (it needs a verified phone number), or attach the data "
            "set that `mapsage-kaggle bundle` makes.",
        )
    if has("No matching distribution found", "Could not find a version"):
        where = Message("The attached wheels lack") if offline else Message("The package index lacks")
        return MachineError(
            Message("{where} a package for this Python: {said}", where, said),
            "Attach a bundle that was made for this Python: `mapsage-kaggle bundle --python-version`.",
        )
    return MachineError(
        Message("pip failed: {said}", said), Message("The whole of its output:\n") + "\n".join(lines[-20:])
    )


def run_pip(arguments: Sequence[str], *, environ: Mapping[str, str] | None = None) -> str | None:
    """Run pip in this interpreter's environment; return None if it succeeded, else its output.

    Raises:
        MachineError: It took more than ``PIP_TIMEOUT_S``, or there is no pip.
    """
    command = module_command("pip", *arguments, "--quiet", "--no-input", "--progress-bar=off")
    command += ["--disable-pip-version-check", "--retries=2", "--timeout=15"]
    kept = clean_environment(credentials=True)  # an index may ask for some
    for name in _PIP_OPTIONS_IN_THE_WAY:
        kept.pop(name, None)
    # Nothing that pip builds here needs a compiler; what asks for one fails at once, not after half an
    # hour.
    kept.update(CC="/bin/false", CXX="/bin/false", **(environ or {}))
    try:
        finished = run(command, timeout_s=PIP_TIMEOUT_S, env=kept, one_stream=True)
    except ChildError as error:
        raise MachineError(
            Message(
                "pip took more than {seconds} s: `pip {arguments}`.",
                f"{PIP_TIMEOUT_S:.0f}",
                " ".join(arguments),
            ),
            "The network may be slow: try again, or attach the data set that `mapsage-kaggle bundle` makes.",
        ) from error
    if "No module named pip" in finished.output:
        raise MachineError(
            Message("{python} has no pip, so nothing can be installed.", sys.executable),
            "Add it with `python -m ensurepip`, or make a virtual environment that has it.",
        )
    return None if finished.code == 0 else finished.output
