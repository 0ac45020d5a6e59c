"""What is pushed: the notebook with this session's parameters, and the metadata beside it."""

from __future__ import annotations

import ast
import functools
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.kit import kit_files, kit_sha256, own_home
from mapsage_kaggle.relay.decide import Push
from mapsage_kaggle.relay.journal import TRANSPORTS, Attempt
from mapsage_kaggle.relay.log import NUMBER_KEY

CODE_FILE = "mapsage_train.ipynb"
OPTIONAL = ("RUN", "KIT_SHA256")
"""Parameters that make a session surer, and that a person's own notebook may lack."""
NUM_GPUS: Mapping[str, int] = {"NvidiaTeslaT4": 2}
"""How many GPUs a machine of Kaggle's has, where that is known; the session insists on them."""
MACHINES = (
    "NvidiaTeslaT4", "NvidiaTeslaT4Highmem", "NvidiaTeslaA100", "NvidiaL4", "NvidiaL4X1", "NvidiaH100",
    "NvidiaRtxPro6000",
)  # fmt: skip
"""The machines with a GPU that the documentation of Kaggle's client lists (November 2026)."""
UNFIT: Mapping[str, str] = {
    "NvidiaTeslaP100": "Kaggle has retired it, and torch there has no kernels for it any more",
    **dict.fromkeys(("TpuV38", "Tpu1VmV38", "TpuV5E8", "TpuV6E8"), "the kit trains on GPUs"),
}
MAX_SOURCE_BYTES = 1 << 20
"""Kaggle refuses a longer notebook, without a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is trained, and on what.

    Attributes:
        config: As the notebook's ``CONFIG`` wants it: a name of the kit's own, or a path on Kaggle.
        machine: Kaggle's name of the machine; None for one without GPU.
        reserve: The notebook's ``RESERVE``.
        reserve_s: The same in seconds.
        overrides: The notebook's ``OVERRIDES``.
        extend_to: The notebook's ``EXTEND_TO``.
        upload_to: The notebook's ``UPLOAD_TO``: a data set that sessions upload to while they train.
    """

    config: str
    notebook: Path
    machine: str | None = "NvidiaTeslaT4"
    internet: bool = True
    reserve: str = "10m"
    reserve_s: float = 600.0
    overrides: tuple[str, ...] = ()
    extend_to: int | None = None
    upload_to: str | None = None

    @property
    def stem(self) -> str:
        """The config's name without its ending, which is its work dir's."""
        return Path(self.config).stem


def parameters(push: Push, job: Job) -> dict[str, Any]:
    return {
        "CONFIG": job.config,
        "RESUME": "auto" if push.expect_iteration is None else "require",
        "RUN": push.run_id or None,
        "EXPECT_ITERATION": push.expect_iteration,
        "SESSION_LIMIT": f"{push.limit_s:.0f}s",
        "RESERVE": job.reserve,
        "GPUS": 0 if job.machine is None else NUM_GPUS.get(job.machine, "auto"),
        "OVERRIDES": list(job.overrides),
        "EXTEND_TO": push.extend_to,
        "UPLOAD_TO": job.upload_to,
        # The kit that plans the chain is the one that trains in it.
        "KIT_SHA256": _own_sha256(),
    }


@functools.cache
def _own_sha256() -> str:
    """Return the hash of this kit, as it was when this process first asked."""
    return kit_sha256(kit_files(own_home()))


def with_parameters(
    notebook: Mapping[str, Any], values: Mapping[str, Any], note: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a notebook in which a cell after the one tagged ``parameters`` sets these values.

    Returns:
        It, and which of ``OPTIONAL`` it does not have.

    Raises:
        UsageError: There is no such cell, or it does not have another one of the names.
    """
    cells = list(notebook.get("cells", ()))
    tagged = [
        index for index, cell in enumerate(cells) if "parameters" in cell.get("metadata", {}).get("tags", ())
    ]
    if not tagged:
        raise UsageError(
            "The notebook has no cell tagged 'parameters'.", "Take the kit's own notebook, or a copy of it."
        )
    index = tagged[0]
    cell = cells[index]
    source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
    lacking = sorted(set(values) - _assigned(source))
    left = tuple(name for name in OPTIONAL if name in lacking)
    unknown = [name for name in lacking if name not in left]
    if unknown:
        raise UsageError(
            f"The notebook's parameters cell does not have {', '.join(unknown)}.",
            "Take the notebook of this version of the kit.",
        )
    lines = [
        f"# {note}",
        *(f"{name} = {value!r}" for name, value in values.items() if name not in left),
        # The session's first line: by this number Kaggle can be asked to end it.
        "import json, os",
        f"print(json.dumps({{{NUMBER_KEY!r}: os.environ.get('KAGGLE_CONTAINER_NAME', '')}}))",
    ]
    injected: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": "relay-parameters",
        "metadata": {"tags": ["injected-parameters"]},
        "outputs": [],
        "source": "\n".join(lines),
    }
    return {**notebook, "cells": [*cells[: index + 1], injected, *cells[index + 1 :]]}, left


def _assigned(source: str) -> set[str]:
    return {
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def metadata(push: Push, job: Job, owner: str) -> dict[str, Any]:
    return {
        "id": f"{owner}/{push.slug}",
        "title": push.slug.replace("-", " "),  # of which Kaggle makes the same slug
        "code_file": CODE_FILE,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": job.machine is not None,
        "enable_tpu": False,
        "enable_internet": job.internet,
        "dataset_sources": list(push.dataset_sources),
        "kernel_sources": list(push.kernel_sources),
        "competition_sources": [],
        "model_sources": [],
        # The same image for every session of a run, while Kaggle has it.
        "docker_image_pinning_type": "original",
    }


def check_machine(name: str) -> str | None:
    """Return a machine's name as Kaggle writes it; None for ``none``.

    Kaggle gives another machine for a name that it does not know, without a word.

    Raises:
        UsageError: It is none that the kit can train on.
    """
    if name.lower() == "none":
        return None
    known = {item.lower(): item for item in (*MACHINES, *UNFIT)}
    found = known.get(name.lower())
    if found is None:
        raise UsageError(
            f"--machine {name} is none of Kaggle's.", f"Take one of {', '.join(MACHINES)}, or none."
        )
    if found in UNFIT:
        raise UsageError(f"--machine {name}: {UNFIT[found]}.", "Take NvidiaTeslaT4.")
    return found


def mark(attempt: Attempt, run_id: str = "") -> str:
    """Return the line by which a push is known again, and all that it was, in the text of a version."""
    way = attempt.transport or "nothing"
    return (
        f"Set by mapsage-kaggle relay: push {attempt.token} at {attempt.intended_s:.0f}, handed on by {way}, "
        f"for {attempt.limit_s:.0f} s, from iteration {attempt.expect_iteration or 0}"
        + (f" of run {run_id}" if run_id else "")
    )


_MARK = re.compile(
    r"Set by mapsage-kaggle relay: push (\w+) at (\d+), handed on by (\w+), for (\d+) s, from iteration (\d+)"
)

_CONFIG = re.compile(r"Set by mapsage-kaggle relay: push [^']*CONFIG = '([^']*)'")


def attempt_of(source: str, slug: str, version: int) -> Attempt:
    """Return what a version's text says of its push; its number only, where it says nothing."""
    found = _MARK.search(source)
    if found is None:
        return Attempt(slug=slug, version=version, landed=True)
    token, at, way, limit_s, iteration = found.groups()
    transport = next((name for name in TRANSPORTS if name == way), None)
    return Attempt(
        slug=slug,
        version=version,
        token=token,
        transport=transport,
        expect_iteration=int(iteration) if transport else None,
        limit_s=float(limit_s),
        intended_s=float(at),
        landed=True,
    )


def is_for(source: str, config: str) -> bool:
    found = _CONFIG.search(source)
    return found is None or found[1] == config


def write_kernel(folder: Path, push: Push, job: Job, *, owner: str, attempt: Attempt) -> tuple[str, ...]:
    """Write what is pushed into ``folder``, in place of what was there.

    Returns:
        Which of ``OPTIONAL`` the notebook does not have.

    Raises:
        UsageError: The notebook cannot take the parameters.
    """
    try:
        notebook = json.loads(job.notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{job.notebook} is no readable notebook: {error}.") from error
    document, left = with_parameters(notebook, parameters(push, job), mark(attempt, push.run_id))
    num_bytes = len(json.dumps(document))
    if num_bytes > MAX_SOURCE_BYTES:
        raise UsageError(
            f"{job.notebook} has {num_bytes:,} bytes; Kaggle takes {MAX_SOURCE_BYTES:,} at most.",
            "Clear the outputs of its cells.",
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / CODE_FILE).write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    text = json.dumps(metadata(push, job, owner), indent=2)
    (folder / "kernel-metadata.json").write_text(text + "\n", encoding="utf-8")
    return left


def check_names(owner: str, slug: str, datasets: tuple[str, ...], checkpoint_dataset: str) -> None:
    """Check the names as far as that can be done without asking Kaggle.

    Raises:
        UsageError: One cannot be; the message says why.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        raise UsageError(
            f"--owner {owner!r} is no user name.", "It is what follows kaggle.com/ on your page."
        )
    # Kaggle makes the slug from the title; one that no title gives would end up as another notebook.
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or not 5 <= len(slug) <= 48:
        fitting = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")[:48]
        raise UsageError(
            f"--slug {slug!r} is no slug that Kaggle makes of a title: 5 to 48 small letters, digits and "
            "single dashes.",
            f"Try --slug {fitting}." if len(fitting) >= 5 else "Choose a longer one.",
        )
    for ref in (*datasets, *((checkpoint_dataset,) if checkpoint_dataset else ())):
        if not re.fullmatch(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+", ref):
            raise UsageError(
                f"{ref!r} is no data set.", "Write it as OWNER/SLUG, the end of its address on kaggle.com."
            )
    if checkpoint_dataset and not 6 <= len(checkpoint_dataset.partition("/")[2]) <= 50:
        raise UsageError(
            f"The checkpoint data set {checkpoint_dataset!r} must have a slug of 6 to 50 characters.",
            "Give another --checkpoint-dataset.",
        )
    if checkpoint_dataset and checkpoint_dataset.partition("/")[0].lower() != owner.lower():
        raise UsageError(
            f"The checkpoint data set {checkpoint_dataset!r} is not {owner}'s.",
            "The relay writes into it: name one of your own, which it creates.",
        )
