"""SegFormer's encoder with fused attention: the stock module's weights, names and results.

mmsegmentation's MiT asks ``torch.nn.MultiheadAttention`` for the attention weights and throws them
away, which keeps PyTorch off its fused kernels: every map of ``tokens × reduced tokens`` is written
to memory, and kept for the backward pass. And around each convolution it copies tokens to
``(batch, channels, height, width)`` and back, though a convolution of 1 x 1, or one whose stride is
its kernel, is a matrix product over tokens as they lie.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.backbones.mit import EfficientMultiheadAttention, MixFFN, MixVisionTransformer
from mmseg.registry import MODELS
from torch import nn

from mapsage_kaggle.engine.fast.stock import stands_in_for


class FusedAttention(EfficientMultiheadAttention):
    """Attention over a reduced number of tokens, by ``scaled_dot_product_attention``.

    Outputs and gradients equal the stock module's to rounding. Dropout (not drop path) is drawn from
    the same distribution, though not by the same draws.
    """

    def forward(
        self, x: torch.Tensor, hw_shape: tuple[int, int], identity: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``identity`` (``x`` if None) plus the attention's output.

        Tokens are of shape ``(batch, height * width, channels)``.
        """
        context = x
        if self.sr_ratio > 1:
            context = self.norm(reduce_tokens(x, hw_shape, self.sr))
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


def reduce_tokens(tokens: torch.Tensor, hw_shape: tuple[int, int], conv: nn.Conv2d) -> torch.Tensor:
    """Apply a convolution whose stride is its kernel; return ``(batch, fewer tokens, channels)``.

    Args:
        tokens: Of shape ``(batch, height * width, channels)``.
        hw_shape: Height and width. A remainder at the right and below is dropped, as by the convolution.
        conv: Square, without padding, dilation or groups.
    """
    (side, _), (height, width) = conv.kernel_size, hw_shape
    rows, columns = height // side, width // side
    maps = tokens.reshape(len(tokens), height, width, -1)[:, : rows * side, : columns * side]
    patches = maps.reshape(len(tokens), rows, side, columns, side, -1).transpose(2, 3)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patches.reshape(len(tokens), rows * columns, -1), weight, conv.bias)


class TokenFFN(MixFFN):
    """mmsegmentation's ``MixFFN`` without copies; outputs and gradients equal to rounding.

    On a GPU it is the stock one: how fast its kernels for depthwise convolutions are in this layout has
    not been measured.
    """

    def forward(
        self, x: torch.Tensor, hw_shape: tuple[int, int], identity: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``identity`` (``x`` if None) plus the layer's output.

        Tokens are of shape ``(batch, height * width, channels)``.
        """
        if x.is_cuda:
            return super().forward(x, hw_shape, identity)
        fc1, depthwise, activate, drop, fc2, drop_again = self.layers
        tokens = F.linear(x, fc1.weight.flatten(1), fc1.bias)
        # Channels last: this view is what a convolution takes without copying.
        maps = tokens.view(len(tokens), *hw_shape, -1).permute(0, 3, 1, 2)
        maps = drop(activate(depthwise(maps)))
        tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)
        output = drop_again(F.linear(tokens, fc2.weight.flatten(1), fc2.bias))
        return (x if identity is None else identity) + self.dropout_layer(output)


def fuse(model: nn.Module) -> tuple[str, ...]:
    """Give a model's modules of exactly mmsegmentation's own MiT types faster classes, in place.

    Parameters keep names and values, and nothing is drawn: a new module would draw initial values of its own,
    and so shift the draws of all that is built after it.

    Returns:
        What was changed: ``attention``, ``feed-forward``.
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
    return tuple(sorted(done))


@stands_in_for(MixVisionTransformer, MODELS)
class MapsageMixVisionTransformer(MixVisionTransformer):
    """mmsegmentation's ``MixVisionTransformer``, with :class:`FusedAttention` and :class:`TokenFFN`.

    Parameters have the same names, shapes and initial values, so that checkpoints go both ways.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        fuse(self)
