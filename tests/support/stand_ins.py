"""A pytest plugin that puts the kit's parts where mmsegmentation's own tests find the stock ones."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from typing import Any

import mmcv.transforms
import mmseg.datasets.transforms
import mmseg.evaluation
import mmseg.models.backbones
import mmseg.models.backbones.mit
import mmseg.models.decode_heads
from mmseg.models.segmentors import EncoderDecoder

from mapsage_kaggle.engine.deterministic import only_deterministic
from mapsage_kaggle.engine.fast.head import FoldedHead
from mapsage_kaggle.engine.fast.loading import MapsageLoadImage, MapsageLoadLabels
from mapsage_kaggle.engine.fast.mit import FusedAttention, MapsageMixVisionTransformer, TokenFFN
from mapsage_kaggle.engine.fast.prediction import quick_prediction
from mapsage_kaggle.engine.metric import IntegerIoUMetric

_CACHE = tempfile.TemporaryDirectory()
_FOR_GOOD = ExitStack()


class LoadImageFromFile(MapsageLoadImage):
    """The kit's loader, with a cache, under the name that a test expects."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, cache_dir=_CACHE.name, **options)


class LoadAnnotations(MapsageLoadLabels):
    """The kit's loader, with a cache, under the name that a test expects."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, cache_dir=_CACHE.name, **options)


_stock_init = EncoderDecoder.__init__


def _quick_init(self: EncoderDecoder, *args: Any, **options: Any) -> None:
    _stock_init(self, *args, **options)
    _FOR_GOOD.enter_context(quick_prediction(self))


EncoderDecoder.__init__ = _quick_init
mmcv.transforms.LoadImageFromFile = LoadImageFromFile
mmseg.datasets.transforms.LoadAnnotations = LoadAnnotations
mmseg.evaluation.IoUMetric = IntegerIoUMetric
mmseg.models.backbones.MixVisionTransformer = MapsageMixVisionTransformer
mmseg.models.backbones.mit.EfficientMultiheadAttention = FusedAttention
mmseg.models.backbones.mit.MixFFN = TokenFFN
mmseg.models.decode_heads.SegformerHead = FoldedHead
only_deterministic()  # cross entropy, pooling and enlarging
