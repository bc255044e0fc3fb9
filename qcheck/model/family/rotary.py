"""Rotary position embeddings in real numbers: diffusers has complex ones, which have no place in an exported graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Rotation = tuple[torch.Tensor, torch.Tensor]


def rotation(angles: torch.Tensor) -> Rotation:
    """Cosines and sines [..., d/2], float32, of complex numbers of size 1 of that shape."""
    return angles.real.float().contiguous(), angles.imag.float().contiguous()


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """``x`` [n, tokens, heads, d], neighbours in pairs, turned by the angles [n or 1, tokens, d/2] of every token."""
    cosine, sine = (part.unsqueeze(-2) for part in by)
    first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.flatten(-2).type_as(x)


@contextmanager
def computing(model: nn.Module, forward: Callable[..., torch.Tensor], processor: Any) -> Iterator[None]:
    """While open, calls of ``model``, with its hooks, compute ``forward``, those of its attentions ``processor``."""
    layers = [layer for layer in model.modules() if hasattr(layer, "processor")]
    own = [layer.processor for layer in layers]
    try:
        vars(model)["forward"] = forward
        for layer in layers:
            layer.processor = processor
        yield
    finally:
        vars(model).pop("forward", None)
        for layer, before in zip(layers, own, strict=True):
            layer.processor = before
