"""SegFormer's encoder with fused attention: the stock module's weights, names and results.

mmsegmentation's MiT asks ``torch.nn.MultiheadAttention`` for the attention weights and throws them
away, which keeps PyTorch off its fused kernels: every map of ``tokens × reduced tokens`` is written
to memory, and kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.backbones.mit import EfficientMultiheadAttention, MixVisionTransformer
from mmseg.models.utils import nchw_to_nlc, nlc_to_nchw
from mmseg.registry import MODELS


class FusedAttention(EfficientMultiheadAttention):
    """Attention over a reduced number of tokens, by ``scaled_dot_product_attention``.

    Outputs and gradients equal the stock module's to rounding. Dropout (not drop path) is drawn from
    the same distribution, though not by the same draws.
    """

    def forward(
        self, x: torch.Tensor, hw_shape: tuple[int, int], identity: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``identity`` (``x`` if None) plus the attention's output.

        Args:
            x: Tokens, of shape ``(batch, height * width, channels)``.
            hw_shape: Height and width.
            identity: What the output is added to.
        """
        context = x
        if self.sr_ratio > 1:
            context = self.norm(nchw_to_nlc(self.sr(nlc_to_nchw(x, hw_shape))))
        attention, channels, heads = self.attn, self.embed_dims, self.num_heads
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        query = F.linear(x, weight[:channels], None if bias is None else bias[:channels])
        both = F.linear(context, weight[channels:], None if bias is None else bias[channels:])
        query = query.view(*query.shape[:2], heads, -1).transpose(1, 2)
        key, value = both.view(*both.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4)
        dropout = attention.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        output = attention.out_proj(output.transpose(1, 2).flatten(2))
        return (x if identity is None else identity) + self.dropout_layer(self.proj_drop(output))


@MODELS.register_module()
class MapsageMixVisionTransformer(MixVisionTransformer):
    """mmsegmentation's ``MixVisionTransformer``, with :class:`FusedAttention`.

    Parameters have the same names, shapes and initial values, so that checkpoints go both ways.

    Args:
        *args: Of ``MixVisionTransformer``.
        **options: Of ``MixVisionTransformer``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for module in self.modules():
            if type(module) is EfficientMultiheadAttention and module.batch_first:
                # In place: a new module would draw initial values of its own, and so shift the
                # draws of all that is built after it.
                module.__class__ = FusedAttention
