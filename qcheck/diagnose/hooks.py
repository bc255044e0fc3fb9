"""What one backward pass says of every layer: the gradient of its weight, and its input with the gradient there."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

OfWeight = Callable[[str, torch.Tensor], None]
OfInput = Callable[[str, torch.Tensor, torch.Tensor], None]


@contextmanager
def tapped(
    layers: Mapping[str, nn.Module], inputs: Collection[str], weight: OfWeight, given: OfInput
) -> Iterator[None]:
    """While open, a backward pass hands over the gradients of ``layers``, each freed as soon as it was seen.

    ``weight`` gets a layer's name and dL/dW [out, in, ...], summed over the rows of the batch. For those in ``inputs``
    ``given`` gets the name, x [rows, ...] and W^T dL/dy of the same shape: of this layer alone, whoever else reads x.
    """
    handles: list[Any] = []
    try:
        for name, module in layers.items():
            parameter = module.get_parameter("weight").requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(_take(name, weight)))
            if name in inputs:
                handles.append(module.register_forward_pre_hook(_part(name, given)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in layers.values():
            module.get_parameter("weight").requires_grad_(False)


def _take(name: str, seen: OfWeight) -> Callable[[torch.Tensor], None]:
    def take(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            seen(name, parameter.grad)
        parameter.grad = None

    return take


def _part(name: str, seen: OfInput) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """The layer reads a tensor of its own, so that the gradient there is its own too."""

    def part(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        shared = inputs[0]
        own = shared.view_as(shared) if shared.requires_grad else shared.detach().requires_grad_()
        own.register_hook(lambda gradient: seen(name, shared.detach(), gradient))
        return (own, *inputs[1:])

    return part
