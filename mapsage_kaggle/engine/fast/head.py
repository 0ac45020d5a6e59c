"""SegFormer's head that fuses before it upsamples: the stock head's weights, names and results.

A 1 x 1 convolution and upsampling are both linear, and so commute: the part of the fusing convolution that
belongs to a stage is applied at that stage's own size, and the upsampled results are added up. That is a
third of the products, and a map of four times the channels is never made, nor kept for the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import SegformerHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS

from mapsage_kaggle.engine.fast.stock import stands_in_for


@stands_in_for(SegformerHead, MODELS, name="MapsageSegformerHead")
class FoldedHead(SegformerHead):
    """mmsegmentation's ``SegformerHead`` that fuses each stage at its own size.

    Outputs and gradients equal the stock head's to rounding; parameters have the same names, shapes
    and initial values.
    """

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Return logits of shape ``(batch, classes, height, width)`` at the first stage's size."""
        stages = self._transform_inputs(inputs)
        fusion = self.fusion_conv
        weights = fusion.conv.weight.split(self.channels, dim=1)
        parts = [
            F.conv2d(conv(stage), weight)
            for stage, conv, weight in zip(stages, self.convs, weights, strict=True)
        ]
        total = parts[0] if fusion.conv.bias is None else parts[0] + fusion.conv.bias[:, None, None]
        for part in parts[1:]:
            total = total + resize(
                part,
                size=total.shape[2:],
                mode=self.interpolate_mode,
                align_corners=self.align_corners,
            )
        if fusion.with_norm:
            total = fusion.norm(total)
        if fusion.with_activation:
            total = fusion.activate(total)
        return self.cls_seg(total)
