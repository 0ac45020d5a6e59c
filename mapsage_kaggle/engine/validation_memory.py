"""Validation with less memory on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmseg.models.segmentors import EncoderDecoder


@contextmanager
def less_memory(core: torch.nn.Module, level: int) -> Iterator[None]:
    """Within it, the model predicts at a level of ``training.fallback.VALIDATION_RUNGS``.

    Level 0 changes nothing; 1 first empties the allocator's cache; 2 also assembles and upsamples logits on
    the CPU. One image at a time is the data loader's part.
    """
    if level >= 1 and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with logits_on_cpu(core) if level >= 2 else ExitStack():
        yield


@contextmanager
def logits_on_cpu(core: torch.nn.Module) -> Iterator[None]:
    """Within it, a segmentor's full-size logits live on the CPU; only the network runs on its device.

    For 150 classes at 4096 × 4096 they take 10 GB, several times over while they are upsampled. Heads give
    logits at a quarter of the size or less, which is what is transferred. Half precision is upsampled as
    float32. A model that is no ``EncoderDecoder`` is left as it is.
    """
    if not isinstance(core, EncoderDecoder):
        yield
        return
    inference, encode_decode = core.inference, core.encode_decode
    # Its own parameters say where the network is; the images come to it window by window.
    device = next(core.parameters()).device
    replaced: list[tuple[Any, str]] = []

    def replace(owner: Any, name: str, function: Any) -> None:
        # On the instance, so that what a subclass overrides is still called.
        object.__setattr__(owner, name, function)
        replaced.append((owner, name))

    def inference_from_cpu(inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return inference(inputs.cpu(), *args, **kwargs)

    def encode_on_device(inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _to_cpu(encode_decode(inputs.to(device), *args, **kwargs))

    def enlarging(predict_by_feat: Any) -> Any:
        def on_cpu(seg_logits: Any, *args: Any, **kwargs: Any) -> Any:
            return predict_by_feat(_to_cpu(seg_logits), *args, **kwargs)

        return on_cpu

    try:
        replace(core, "inference", inference_from_cpu)
        replace(core, "encode_decode", encode_on_device)
        for module in core.modules():
            if hasattr(module, "predict_by_feat"):
                replace(module, "predict_by_feat", enlarging(module.predict_by_feat))
        yield
    finally:
        for owner, name in replaced:
            object.__delattr__(owner, name)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.cpu()
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value
