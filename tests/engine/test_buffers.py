"""A forward pass that is run again in the backward pass leaves the running figures as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.utils.checkpoint import checkpoint

from mapsage_kaggle.engine.buffers import keep_in_backward


class Seen(nn.Module):
    """Counts images in a buffer that it replaces, as mmsegmentation's EMAHead does with its bases."""

    def __init__(self) -> None:
        super().__init__()
        self.images: torch.Tensor
        self.register_buffer("images", torch.zeros(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.images = self.images + len(image)
        return image


class Block(nn.Module):
    """A convolution and a BatchNorm, recomputed where ``recomputes`` says so."""

    def __init__(self, *, recomputes: bool, says_so: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), Seen())
        if says_so:
            self.with_cp = recomputes
        self.recomputes = recomputes

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.recomputes:
            return checkpoint(self.body, image, use_reentrant=True)  # type: ignore[no-any-return]
        return self.body(image)  # type: ignore[no-any-return]


def trained(block: Block, steps: int = 3) -> dict[str, Any]:
    wrapper = OptimWrapper(torch.optim.SGD(block.parameters(), lr=0.1))
    keep_in_backward(wrapper, block)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        image = torch.rand(2, 2, 4, 4, generator=generator).requires_grad_()
        wrapper.update_params(block(image).square().mean())
    return block.state_dict()


@pytest.mark.parametrize("says_so", [True, False])
def test_recomputed_or_not_every_buffer_comes_out_the_same(says_so: bool) -> None:
    torch.manual_seed(0)
    plain = Block(recomputes=False)
    again = Block(recomputes=True, says_so=says_so)
    again.load_state_dict(plain.state_dict())
    expected, found = trained(plain), trained(again)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_where_nothing_is_recomputed_buffers_are_copied_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    block, copies = Block(recomputes=False), []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self: copies.append(1) or clone(self))
    trained(block)
    assert len(copies) == len(list(block.buffers()))
