"""How predictions are written: classes as mask values, probabilities as bytes."""

from __future__ import annotations

import inspect

import torch
from mmengine.config import Config

from mapsage_kaggle.config.reading import dataset_of
from mapsage_kaggle.engine.jobs.inference import TrainedModel
from mapsage_kaggle.engine.shapes import dataset_class, places_of_classes
from mapsage_kaggle.imagery.outputs import SCALE
from mapsage_kaggle.imagery.writing import Labels


def labels_of(cfg: Config, model: TrainedModel) -> Labels:
    """Return how the config's data set writes its classes into masks.

    Where it reduces the zero label, as LoveDA, EarthVQA and ADE20K do, the first class is 1 and 0 means
    *no data*; else the first class is 0, and 255 means *no data*. Where only some of its classes are used,
    they keep the values that they have among all.
    """
    data = dataset_of(cfg)
    cls = dataset_class(data)
    reduces = data.get("reduce_zero_label")
    if reduces is None and cls is not None:
        found = inspect.signature(cls).parameters.get("reduce_zero_label")
        reduces = found is not None and found.default is True
    first = 1 if reduces else 0
    return Labels(
        classes=model.classes,
        palette=model.palette,
        numbers=tuple(first + place for place in places_of_classes(data, len(model.classes))),
        no_data=0 if reduces else 255,
    )


def shared_out(probabilities: torch.Tensor) -> torch.Tensor:
    """Return whole numbers from 0 to ``SCALE`` that add up to it, by the largest remainder.

    ``probabilities`` are of shape ``(classes, lines, columns)``; those of a single class are just rounded.
    """
    wanted = probabilities.flatten(1) * SCALE
    found = wanted.round()
    if len(wanted) > 1:
        rest, left = wanted.sub_(found), SCALE - found.sum(0)
        for step in (1, -1):
            places = (step * left > 0).nonzero()[:, 0]
            while len(places):
                furthest = (step * rest[:, places]).argmax(0)
                found[furthest, places] += step
                rest[furthest, places] = -step
                left[places] -= step
                places = places[step * left[places] > 0]
    return found.reshape(probabilities.shape)
