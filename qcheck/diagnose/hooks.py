"""Hooks that give the gradient of every layer's weight, and its input with the gradient there, in a backward pass."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

OfWeight = Callable[[str, torch.Tensor], None]
OfInput = Callable[[str, torch.Tensor, torch.Tensor], None]


@contextmanager
def tapped(
    layers: Mapping[str, nn.Module], inputs: Collection[str], on_weight: OfWeight, on_input: OfInput
) -> Iterator[None]:
    """While open, a backward pass calls back with the gradients of ``layers``, and frees each after its call.

    ``on_weight`` gets a layer's name and dL/dW [out, in, ...], summed over the rows of the batch. For the layers in
    ``inputs``, ``on_input`` gets the name, x [rows, ...] and W^T dL/dy of the same shape: the gradient of this layer
    alone, even where other layers read x too.
    """
    handles: list[Any] = []
    try:
        for name, module in layers.items():
            parameter = module.get_parameter("weight").requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(_weight_hook(name, on_weight)))
            if name in inputs:
                handles.append(module.register_forward_pre_hook(_input_hook(name, on_input)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in layers.values():
            module.get_parameter("weight").requires_grad_(False)


def _weight_hook(name: str, on_weight: OfWeight) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            on_weight(name, parameter.grad)
        parameter.grad = None

    return hook


def _input_hook(
    name: str, on_input: OfInput
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """A hook by which the layer reads a view of its own, so that the gradient there is its own too."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        shared = inputs[0]
        own = shared.view_as(shared) if shared.requires_grad else shared.detach().requires_grad_()
        own.register_hook(lambda gradient: on_input(name, shared.detach(), gradient))
        return (own, *inputs[1:])

    return hook
