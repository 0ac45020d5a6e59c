"""Registers the kit's loops, samplers and data sets with mmengine, by being imported."""

from __future__ import annotations

from mapsage_kaggle.engine import data, loop, sampling

__all__ = ["data", "loop", "sampling"]
