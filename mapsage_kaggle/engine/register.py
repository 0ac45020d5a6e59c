"""Importing this registers the kit's loops, samplers, data sets, metric and faster parts."""

from __future__ import annotations

from mapsage_kaggle.engine import data, loop, metric, reading, sampling
from mapsage_kaggle.engine.fast import head, loading, mit, transforms

__all__ = ["data", "head", "loading", "loop", "metric", "mit", "reading", "sampling", "transforms"]
