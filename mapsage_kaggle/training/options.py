"""What a person may ask of a session."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mapsage_kaggle.clock import DEFAULT_LIMIT_S, DEFAULT_RESERVE_S
from mapsage_kaggle.errors import UsageError

_HANDLE = re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]{4,48}[a-z0-9]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a person may ask of a session. Defaults are right for Kaggle.

    Attributes:
        config: The training config.
        resume: ``auto``, ``require``, ``never``, or the file to resume from.
        allow_weights_only: Whether weights alone may be taken where nothing can be resumed.
        weights_only: Take only the weights of the file that ``resume`` names, even where it could be
            resumed.
        expect_iteration: The iteration that must be resumed from, else nothing is trained.
        extend_to: A new, later end for the run.
        session_limit_s: How long the platform lets the session live.
        reserve_s: What is kept free at its end.
        work_dir: Where to write; by default ``<working>/work_dirs/<config name>``.
        gpus: ``auto`` or a number, on this machine; 0 trains on the CPU.
        cpu_ranks: Workers on this machine where it trains on the CPU.
        threads: CPU threads per rank; by default those of the run's earlier sessions, else the cores.
        deterministic: Whether only deterministic algorithms may run on a GPU.
        fast: Whether the kit may swap in its own, faster parts.
        on_bad_image: ``fail`` or ``skip``.
        on_memory: ``adapt`` goes on with smaller micro-batches, ``fail`` ends where memory runs out.
        micro_batch: Images per forward pass and rank to begin with, whatever earlier sessions have
            learned of memory; None for what they learned, else the whole share of a rank.
        overrides: ``key=value`` with dotted keys.
        save_every_s: Seconds between checkpoints by the clock; 0 for none.
        budget_bytes: What the work dir may hold in checkpoints.
        hang_after_s: How long training may say nothing before it is started again.
        nnodes: Machines that train together, with as many workers each.
        node_rank: This machine's number. Machine 0 chooses the checkpoint and keeps what is saved;
            the others take over from it what they start from, and write only their own log, beside
            the work dir, in one that ends in ``-node<number>``.
        rdzv_endpoint: ``host:port`` where they meet.
        upload_to: The data set, ``owner/slug``, that the newest checkpoint is uploaded to while training
            goes on; None for none.
        upload_every_s: Seconds from one upload to the next.
    """

    config: Path
    resume: Literal["auto", "require", "never"] | Path = "auto"
    allow_weights_only: bool = False
    weights_only: bool = False
    expect_iteration: int | None = None
    extend_to: int | None = None
    session_limit_s: float = DEFAULT_LIMIT_S
    reserve_s: float = DEFAULT_RESERVE_S
    work_dir: Path | None = None
    gpus: int | Literal["auto"] = "auto"
    cpu_ranks: int = 1
    threads: int | None = None
    deterministic: bool = False
    fast: bool = True
    on_bad_image: Literal["fail", "skip"] = "fail"
    on_memory: Literal["adapt", "fail"] = "adapt"
    micro_batch: int | None = None
    overrides: tuple[str, ...] = ()
    save_every_s: float = 300.0
    budget_bytes: int = 4_000_000_000
    hang_after_s: float = 600.0
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str = ""
    upload_to: str | None = None
    upload_every_s: float = 3600.0


def check_options(options: Options) -> None:
    """Look at what can be told of the options without looking at anything else.

    Raises:
        UsageError: One has a value that means nothing.
    """
    for name, value, least in (
        ("--gpus", options.gpus if options.gpus != "auto" else 0, 0),
        ("--cpu-ranks", options.cpu_ranks, 1),
        ("--threads", options.threads, 1),
        ("--micro-batch", options.micro_batch, 1),
        ("--expect-iteration", options.expect_iteration, 0),
        ("--extend-to", options.extend_to, 1),
        ("--nnodes", options.nnodes, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} {value} is too low.", f"Give {least} or more.")
    if not 0 <= options.node_rank < options.nnodes:
        raise UsageError(
            f"--node-rank {options.node_rank} does not fit --nnodes {options.nnodes}.",
            "Machines are numbered from 0.",
        )
    if options.upload_to is not None:
        check_handle(options.upload_to)
        if options.upload_every_s <= 0:
            raise UsageError("--upload-every must be more than nothing.", "Give a time, such as 1h.")
    if options.nnodes > 1 and not options.rdzv_endpoint:
        raise UsageError(
            f"--nnodes {options.nnodes} needs --rdzv-endpoint.",
            "Give HOST:PORT of machine 0, the same on all of them.",
        )


def check_handle(handle: str) -> str:
    """Return a data set's ``owner/slug`` if Kaggle would take it.

    Raises:
        UsageError: It would not.
    """
    if not _HANDLE.fullmatch(handle):
        raise UsageError(
            f"{handle!r} cannot be a data set on Kaggle.",
            "Give OWNER/SLUG: your user name, and 6 to 50 small letters, digits and hyphens.",
        )
    return handle
