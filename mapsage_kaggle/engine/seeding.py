"""Randomness as a pure function of position: no draw depends on what was drawn before.

The idea is that of counter-based data loading (Google's Grain gives each record a generator of
its own, and its loader's checkpoint is one number). So a resume needs neither replay nor saved
generator state, and workers, prefetching and restarts cannot change a result.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch

ORDER = "order"
SAMPLE = "sample"
STEP = "step"
INIT = "init"
VALIDATION = "validation"
SUBSTITUTE = "substitute"
OWN = "own"
LOOK = "look"


def derive(domain: str, seed: int, *position: int) -> int:
    """Return an integer in ``[0, 2**64)`` that depends on the arguments alone, on every machine and version.

    Args:
        domain: What the stream is for. No two uses share a domain, so no two share a stream.
        seed: The run's seed.
        *position: Where in the stream: an epoch, a global sample position, an iteration and rank.
    """
    text = ":".join((domain, str(int(seed)), *(str(int(item)) for item in position)))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def seed_sample(value: int) -> None:
    """Seed Python's, NumPy's, OpenCV's and torch's CPU generator for one sample's pipeline."""
    random.seed(value)
    cv2.setRNGSeed(value & 0x7FFFFFFF)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value & 0x7FFFFFFFFFFFFFFF)


def seed_all(value: int) -> None:
    """Seed every generator that a forward pass may draw from, on all devices."""
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.manual_seed(value & 0x7FFFFFFFFFFFFFFF)


def seed_step(seed: int, iteration: int, rank: int, micro_batch: int) -> None:
    seed_all(derive(STEP, seed, iteration, rank, micro_batch))


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the CPU generators, but for OpenCV's: for samples loaded in the main process."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
