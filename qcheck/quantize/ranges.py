"""Streaming range observers: one running number a layer, whatever the number of samples."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class AbsoluteMaximum:
    """The largest absolute input of each observed layer so far."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def see(self, layer: str, inputs: torch.Tensor) -> None:
        """Take one batch of inputs of ``layer`` into account; NaN and infinity stick."""
        low, high = torch.aminmax(inputs)
        seen = torch.maximum(-low, high).item()
        known = self.values.get(layer, 0.0)
        self.values[layer] = seen if seen > known or math.isnan(seen) else known


@contextmanager
def observed(layers: Mapping[str, nn.Module], observers: Iterable[AbsoluteMaximum]) -> Iterator[None]:
    """While open, every forward of ``layers`` is seen by all ``observers``."""
    watching = tuple(observers)

    def hook(name: str) -> "object":
        def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            for observer in watching:
                observer.see(name, inputs[0].detach())

        return see

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in layers.items()]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
