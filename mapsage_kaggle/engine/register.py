"""Registers the kit's loops, samplers, data sets and metric with mmengine, by being imported."""

from __future__ import annotations

from mapsage_kaggle.engine import data, loop, metric, sampling

__all__ = ["data", "loop", "metric", "sampling"]
