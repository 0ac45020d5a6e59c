"""A trained SegFormer made quicker for inference: the same weights, the same result to rounding.

Modules of exactly mmsegmentation's own types are given other classes in place; anything else is left alone.

- Attention runs in PyTorch's fused kernels (:mod:`.mit`).
- MixFFN keeps tokens where they lie. The stock one copies them to ``(batch, channels, height, width)`` and
  back, around two 1 x 1 convolutions that are matrix products over tokens.
- The head fuses before it enlarges. A 1 x 1 convolution and bilinear enlarging are both linear, and so
  may change places: the part of the fusing convolution that belongs to a stage is applied at that stage's
  own size, and the enlarged results are added up. At 1024 x 1024 that is a third of the products, and a map
  of four times the channels is never made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmseg.models.backbones.mit import EfficientMultiheadAttention, MixFFN
from mmseg.models.decode_heads import SegformerHead
from torch import nn

from mapsage_kaggle.engine.fast.mit import FusedAttention


class TokenFFN(MixFFN):
    """mmsegmentation's ``MixFFN`` without copies, for inference."""

    def forward(
        self, x: torch.Tensor, hw_shape: tuple[int, int], identity: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``identity`` (``x`` if None) plus the layer's output.

        Args:
            x: Tokens, of shape ``(batch, height * width, channels)``.
            hw_shape: Height and width.
            identity: What the output is added to.
        """
        fc1, depthwise, activate, _, fc2, _ = self.layers
        tokens = F.linear(x, fc1.weight.flatten(1), fc1.bias)
        # Channels last: this view is what a convolution takes without copying.
        maps = tokens.view(len(x), *hw_shape, -1).permute(0, 3, 1, 2)
        maps = activate(depthwise(maps))
        tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)
        return (x if identity is None else identity) + F.linear(tokens, fc2.weight.flatten(1), fc2.bias)


class FoldedHead(SegformerHead):
    """mmsegmentation's ``SegformerHead`` that fuses each stage at its own size, for inference."""

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
            total = total + F.interpolate(
                part, size=total.shape[2:], mode="bilinear", align_corners=self.align_corners
            )
        return self.cls_seg(fusion.activate(fusion.norm(total)))


def hasten(model: nn.Module) -> tuple[str, ...]:
    """Change a model in place, for inference only; return what was changed.

    Parameters keep names and shapes.
    """
    done = set()
    for module in model.modules():
        kind = type(module)
        if kind is EfficientMultiheadAttention and module.batch_first:
            module.__class__ = FusedAttention
            done.add("attention")
        elif kind is MixFFN:
            module.__class__ = TokenFFN
            done.add("feed-forward")
        elif kind is SegformerHead and module.interpolate_mode == "bilinear":
            module.__class__ = FoldedHead
            done.add("head")
    model.eval()
    return tuple(sorted(done))
