"""A pytest plugin that puts the kit's parts where mmsegmentation's own tests import the stock ones from."""

from __future__ import annotations

import mmseg.evaluation
import mmseg.models.backbones
import mmseg.models.backbones.mit
import mmseg.models.decode_heads

from mapsage_kaggle.engine.fast.head import FoldedHead
from mapsage_kaggle.engine.fast.mit import FusedAttention, MapsageMixVisionTransformer, TokenFFN
from mapsage_kaggle.engine.metric import IntegerIoUMetric

mmseg.evaluation.IoUMetric = IntegerIoUMetric
mmseg.models.backbones.MixVisionTransformer = MapsageMixVisionTransformer
mmseg.models.backbones.mit.EfficientMultiheadAttention = FusedAttention
mmseg.models.backbones.mit.MixFFN = TokenFFN
mmseg.models.decode_heads.SegformerHead = FoldedHead
