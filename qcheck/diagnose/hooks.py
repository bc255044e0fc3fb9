"""Taps of layers: what an error of a layer adds to a cotangent of the model's output, in a backward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from qcheck.model.stored import input_gradient, product, whole


class Taps(Protocol):
    """Called for every layer in a forward pass, and for each backward pass of it."""

    def enter(self, layer: str, inputs: torch.Tensor) -> Any:
        """From x [rows, ...] of a layer: a value that is kept for ``leave``."""
        ...

    def leave(self, layer: str, kept: Any, gradient: torch.Tensor, of_inputs: torch.Tensor) -> None:
        """Of a cotangent of the output: dL/dy, and W^T dL/dy of this layer alone, even where others read x too."""
        ...


class _Tapped(torch.autograd.Function):
    """A layer's product; the weight, which may be stored in 16 bit, is computed again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: Any, taps: Taps, name: str) -> torch.Tensor:
        ctx.layer, ctx.shape, ctx.taps, ctx.name = layer, inputs.shape, taps, name
        ctx.kept = taps.enter(name, inputs)
        return product(layer, inputs, whole(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        of_inputs = input_gradient(ctx.layer, gradient, ctx.shape, whole(ctx.layer))
        ctx.taps.leave(ctx.name, ctx.kept, gradient, of_inputs)
        return of_inputs, None, None, None


@contextmanager
def tapped(layers: Mapping[str, nn.Module], taps: Taps) -> Iterator[None]:
    """While open, a forward pass and its backward passes call ``taps`` for each of ``layers``."""
    try:
        for name, module in layers.items():
            layer: Any = module
            layer.forward = _Forward(module, taps, name)
        yield
    finally:
        for module in layers.values():
            vars(module).pop("forward", None)


class _Forward:
    """A layer's forward while it is tapped."""

    def __init__(self, layer: nn.Module, taps: Taps, name: str) -> None:
        self._layer, self._taps, self._name = layer, taps, name

    def __call__(self, values: torch.Tensor, *_: object) -> torch.Tensor:
        given = values if values.requires_grad else values.detach().requires_grad_()
        output: torch.Tensor = _Tapped.apply(given, self._layer, self._taps, self._name)
        return output
