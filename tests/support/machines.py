"""Machines as Kaggle gives them."""

from __future__ import annotations

from pathlib import Path

from mapsage_kaggle.machine import STACK, Gpu, Machine
from mapsage_kaggle.paths import KagglePaths

PATHS = KagglePaths.below(Path("/kaggle"))


T4 = Gpu(name="Tesla T4", memory_bytes=15 * 2**30, capability=(7, 5), supported=True)


GOOD = Machine(
    on_kaggle=True,
    run_type="batch",
    python="3.12.11",
    torch="2.10.0+cu128",
    gpus=(T4, T4),
    num_cpus=4,
    ram_bytes=30 * 2**30,
    internet=True,
    working_free_bytes=19 * 10**9,
    temp_free_bytes=50 * 10**9,
    inputs=(PATHS.input / "datasets" / "me" / "earthvqa",),
    installed=dict(STACK),
)
